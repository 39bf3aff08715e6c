"""Has a model prefer given texts, answer by answer, where a test needs a competent one; everything around it stays real.

The next token of the text gets a far higher score. A grammar may still forbid it, the tokens are still drawn, decoded and
parsed, and after the last text the model is its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from reattention_core import Engine


class Script:
    """What the model is to say next.

    Attributes:
        said: how many answers have begun.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine, self._ids, self._at, self._cache = engine, list[list[int]](), 0, None
        self.said = 0

    def __call__(self, *texts: str, plain: bool = False) -> None:
        """Set the texts of the next answers; `plain` writes control tokens as text."""
        tokenizer, encode = self._engine.tokenizer, self._engine.tokens.encode
        ids = [encode(t).ids if plain else tokenizer.encode(t, add_special_tokens=False) for t in texts]
        self._ids, self._at, self.said = [[*one, tokenizer.eos_token_id] for one in ids], 0, 0

    def hook(self, module: Any, args: Any, given: dict[str, Any], output: Any) -> Any:
        """After a forward pass: raise the score of the next token."""
        read = given["past_key_values"].read
        if read is not None and read.addresses.dim() == 2:
            return output  # passages are compared, nothing is written
        # Every answer has a cache of its own.
        if given["past_key_values"] is not self._cache:
            self._cache, self._at = given["past_key_values"], 0
            self.said += 1
        if 0 < self.said <= len(self._ids) and self._at < len(self._ids[self.said - 1]):
            output.logits[0, -1, self._ids[self.said - 1][self._at]] += 1e4
        self._at += 1
        return output


@contextmanager
def scripted(engine: Engine, *texts: str) -> Iterator[Script]:
    """An engine whose model prefers these texts, one an answer."""
    script = Script(engine)
    script(*texts)
    handle = engine.attachment.model.register_forward_hook(script.hook, with_kwargs=True)
    try:
        yield script
    finally:
        handle.remove()


def call(name: str, arguments: str, before: str = "") -> str:
    """A call as `GENERIC` writes it."""
    return f'{before}<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'
