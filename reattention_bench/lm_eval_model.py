"""An engine as a model of lm-evaluation-harness (extra `eval`): its tasks at any length, offline where the tasks are.

    from lm_eval import simple_evaluate
    from reattention_bench.lm_eval_model import ReAttentionLM

    simple_evaluate(model=ReAttentionLM(engine, documents=True), tasks=["niah_single_1"], metadata={…})

Knows no task. RULER's tasks there make their own data; their `metadata` names a tokenizer and the lengths.
"""

from typing import Any

from tqdm import tqdm

from reattention_bench.extras import need
from reattention_bench.haystack import PER_DOCUMENT, cut_text
from reattention_bench.likelihood import Likelihood, read
from reattention_core.engine import Engine
from reattention_core.errors import InvalidRequestError
from reattention_core.select import Selector

LM: Any = need("lm_eval.api.model", "lm-eval", "eval").LM

MAX_STOPS = 16
"""Stop strings that the engine takes."""


class ReAttentionLM(LM):  # type: ignore[misc]  # the harness is not annotated
    """Answers the harness's requests with an engine, one after another.

    Args:
        engine: attached; stays open.
        strategy: the rule for texts beyond the window, by name or instance; the engine's when left out.
        documents: read what stands before the last line of a prompt as documents of about 1,000 tokens, and ask them the
            last line, as a user of the library does; otherwise a prompt is one text, as the papers have it.
    """

    def __init__(self, engine: Engine, strategy: str | Selector | None = None, documents: bool = False) -> None:
        super().__init__()
        self._engine, self._selector, self._documents = engine, engine.selector(strategy), documents

    @property
    def tokenizer_name(self) -> str:
        """The model's name, for the harness's cache of requests."""
        return self._engine.name.replace("/", "__")

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuations; of their settings `until`, `max_gen_toks`, `do_sample`, `temperature` and `top_p` are known.

        Raises:
            InvalidRequestError: a setting is not known.
        """
        return [self._generate(*request.args) for request in tqdm(requests, disable=disable_tqdm)]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Logarithm of each continuation's probability, and whether it is what the model would write."""
        found = []
        for request in tqdm(requests, disable=disable_tqdm):
            context, continuation = request.args
            # White space belongs to the word behind it, in most vocabularies.
            space = context[len(context.rstrip()) :] if context.strip() else ""
            context, continuation = context[: len(context) - len(space)], space + continuation
            before = self._encode(context)
            whole = self._encode(context + continuation)
            likelihood = self._read([*self._prefix(), *whole], len(whole) - len(before))
            found.append((float(likelihood.each.sum()), likelihood.greedy))
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Logarithm of each whole text's probability, its first token after the end-of-text token."""
        found = []
        for request in tqdm(requests, disable=disable_tqdm):
            ids = self._encode(request.args[0])
            found.append(float(self._read([*self._prefix(), *ids], len(ids)).each.sum()) if ids else 0.0)
        return found

    def _generate(self, context: str, settings: dict[str, Any]) -> str:
        given = dict(settings)
        until = given.pop("until", None) or []
        until = [until] if isinstance(until, str) else list(until)
        sampled = given.pop("do_sample", False)
        generation: dict[str, Any] = {"max_new_tokens": given.pop("max_gen_toks", 256), "stop": until[:MAX_STOPS]}
        for name in ("temperature", "top_p"):
            value = given.pop(name, None)
            if sampled and value is not None:
                generation[name] = float(value)
        if given or len(until) > MAX_STOPS:
            raise InvalidRequestError(
                f"generation settings {sorted(given)} are not known, or there are more than {MAX_STOPS} stop strings "
                f"({len(until)}): change the task's generation_kwargs"
            )
        head, line, last = context.rstrip("\n").rpartition("\n")
        if not (self._documents and line and head.strip() and last.strip()):
            return self._engine.generate(context, strategy=self._selector, **generation).text
        parts = cut_text(head, PER_DOCUMENT, lambda text: len(self._encode(text)))
        before = self._engine.config
        self._engine.config = before.model_copy(update={"question_form": "\n{question}"})
        try:
            corpus = self._engine.ingest(parts, strategy=self._selector, progress=False)
            return corpus.ask(last, strategy=self._selector, **generation).text
        finally:
            self._engine.config = before

    def _encode(self, text: str) -> list[int]:
        return self._engine.tokens.encode(text).ids

    def _prefix(self) -> list[int]:
        """One token before every text, so that its first one has a probability."""
        tokenizer = self._engine.tokenizer
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if first is None:
            raise InvalidRequestError("this tokenizer has neither a begin nor an end token to put before a text")
        return [int(first)]

    def _read(self, ids: list[int], last: int) -> Likelihood:
        return read(self._engine, self._selector, ids, last)
