"""Tokens out of an attached model as text, through transformers' own `generate`; knows no documents.

The model runs in a worker thread and the caller iterates over pieces of text. Whatever happens in the worker reaches the
caller as itself; a caller who stops iterating stops the model within two tokens.
"""

import queue
import threading
from collections.abc import Callable, Generator
from contextlib import nullcontext
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from reattention_core.cache.kv_cache import ContextCache
from reattention_core.config import Generation
from reattention_core.errors import CancelledError, UnsupportedModelError
from reattention_core.graphs import Graphs
from reattention_core.prefill import Cancelled, prefill, running
from reattention_core.structured.constraint import Constraint

BLANK_LINE = "\n\n"


class TextStream(BaseStreamer, StoppingCriteria):
    """Turns tokens into text as they come, and says when a stop string ends it.

    Never emits a part of a stop string, nor a character whose bytes have not all come.

    Args:
        tokenizer: decodes.
        stop: strings that end the text; not part of it.
        emit: called with every new piece.
        cancelled: asked after every token.
        trim: leave out white space at the beginning and end, and do not look for stop strings in it; nor does a blank line end
            a text behind a colon, which announces more ("The answer is:").
        constraint: what the tokens follow; control tokens that it allows are text then.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop: tuple[str, ...],
        emit: Callable[[str], None],
        cancelled: Cancelled,
        trim: bool = False,
        constraint: Constraint | None = None,
    ) -> None:
        self._tokenizer, self._stop, self._emit, self._cancelled = tokenizer, stop, emit, cancelled
        self._trim, self._constraint = trim, constraint
        self._ids: list[int] = []
        self._sent = 0
        self._prompt_seen = False
        self.stopped = False

    @property
    def n_tokens(self) -> int:
        """Tokens drawn so far, one that ends the text included."""
        return len(self._ids)

    @property
    def empty(self) -> bool:
        """Whether no text has come yet."""
        return not self._sent and not self._text()

    @property
    def last(self) -> int:
        """The token drawn last."""
        return self._ids[-1]

    def put(self, value: torch.Tensor) -> None:
        """Take what `generate` hands out: the prompt first, then every new token."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self._ids += value.flatten().tolist()
        text = self._text()
        found = [at for at in (self._find(text, stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            self._send(text[: min(found)])
            return
        if text.endswith("\ufffd"):
            return
        self._send(text[: len(text) - self._held_back(text)])

    def end(self) -> None:
        """Send what was held back, now that nothing can follow."""
        if not self.stopped:
            self._send(self._text())

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        """Whether `generate` must stop, for each row."""
        stop = self.stopped or self._cancelled()
        return torch.full((input_ids.shape[0],), stop, dtype=torch.bool, device=input_ids.device)  # type: ignore[return-value]

    def _text(self) -> str:
        free, ids = self._constraint is None, self._ids
        if self._constraint is not None:
            ids = [index for index in ids if index not in self._constraint.ends]
        text = self._tokenizer.decode(ids, skip_special_tokens=free, clean_up_tokenization_spaces=False)
        return str(text).lstrip() if self._trim else str(text)

    def _find(self, text: str, stop: str) -> int:
        """Where a stop string ends the text, -1 where it does not."""
        at = text.find(stop)
        while self._trim and stop == BLANK_LINE and at >= 0 and _announces(text[:at]):
            at = text.find(stop, at + 1)
        return at

    def _held_back(self, text: str) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        longest = 0
        for stop in self._stop:
            for n in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:n]):
                    longest = n
                    break
        return longest

    def _send(self, text: str) -> None:
        text = text.rstrip() if self._trim else text
        if len(text) > self._sent:
            self._emit(text[self._sent :])
            self._sent = len(text)


def _announces(text: str) -> bool:
    """Whether a text ends with a line that announces more, and was not said before: what is repeated leads nowhere."""
    line = text.rstrip().rpartition("\n")[2]
    return line.endswith(":") and text.count(line) == 1


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cache: ContextCache,
    ids: list[int],
    settings: Generation,
    chunk: int,
    emit: Callable[[str], None],
    cancelled: Cancelled,
    trim: bool = False,
    graphs: Graphs | None = None,
    constraint: Constraint | None = None,
    between: Cancelled | None = None,
) -> tuple[int, str]:
    """Read what a cache does not hold of a prompt, and draw tokens after it.

    Args:
        model: an attached model.
        tokenizer: its tokenizer.
        cache: over whatever is to be read; its tail holds the prompt's beginning, or nothing.
        ids: the prompt.
        settings: how to draw.
        chunk: tokens of the prompt that are run at a time.
        emit: called with every piece of text.
        cancelled: asked between tokens, and between chunks where `between` is not given.
        trim: see `TextStream`; where nothing else rules the tokens, the text then does not end before it has begun.
        graphs: passes of fixed shapes to draw tokens with, or None to run each as it comes.
        constraint: what the tokens must follow.
        between: asked between chunks; see `Engine.busy`.

    Returns:
        How many tokens were drawn, and why it ended: "stop" or "length".

    Raises:
        CancelledError: `cancelled` said so.
        UnsupportedModelError: the model computes what is no number.
    """
    prompt = torch.tensor([ids], device=model.device)
    known = cache.layers[0].n_tail
    # The last chunk is left to `generate`, which needs its logits.
    whole = known + (len(ids) - known - 1) // chunk * chunk
    if whole > known:
        prefill(model, cache, prompt[:, known:whole], chunk, between or cancelled)
    for layer in cache.layers:
        # To `generate` the prompt begins here; some models act on how long it is (Phi-3 drops its cache).
        layer.prefilled = whole
    stream = TextStream(tokenizer, settings.stop, emit, cancelled, trim, constraint)
    held = [] if constraint is None else [constraint]
    masks: list[LogitsProcessor] = [Numbers(), *(one.mask for one in held)]
    if trim and constraint is None:
        masks.append(Begun(stream, _end_tokens(model)))
    penalty = settings.repetition_penalty or model.generation_config.repetition_penalty or 1.0
    if penalty != 1:
        masks.insert(1, Repetition(float(penalty), prompt[:, :whole]))
    sampling: dict[str, Any] = {"do_sample": False}
    if settings.temperature > 0:
        sampling = {
            "do_sample": True,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": 0,
        }
    taking_over = graphs.taking_over(model, cache) if graphs is not None else nullcontext()
    with running(), torch.random.fork_rng(enabled=settings.seed is not None), taking_over:
        if settings.seed is not None:
            torch.manual_seed(settings.seed)
        model.generate(  # type: ignore[operator]
            prompt[:, whole:],
            attention_mask=torch.ones_like(prompt[:, whole:]),
            past_key_values=cache,
            # What a checkpoint's own configuration may ask for, and what one answer over our cache cannot be.
            use_cache=True,
            num_beams=1,
            num_return_sequences=1,
            cache_implementation=None,
            max_time=None,
            repetition_penalty=1.0,
            tokenizer=tokenizer,
            max_new_tokens=settings.max_new_tokens,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
            streamer=stream,
            stopping_criteria=StoppingCriteriaList([stream, *held]),
            logits_processor=LogitsProcessorList(masks),
            **sampling,
        )
    if cancelled() and not stream.stopped:
        raise CancelledError("cancelled while an answer was being written")
    ended = stream.stopped or stream.n_tokens < settings.max_new_tokens or stream.last in _end_tokens(model)
    return stream.n_tokens, "stop" if ended else "length"


class Numbers(LogitsProcessor):
    """Refuses to draw a token by what is no number, which would be any token."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """The scores as they are."""
        if bool(scores.isnan().any()):
            raise UnsupportedModelError(
                f"the model computed NaN in {scores.dtype} instead of scores for its next token: load it with dtype='float32' "
                "or 'bfloat16', whose range is wider than float16's, and ingest the documents again; if that does not help, its "
                "weights are damaged"
            )
        return scores


class Begun(LogitsProcessor):
    """Does not let an answer end before it has begun: behind several documents a small model may say nothing at all.

    Args:
        stream: knows what has been said.
        ends: tokens that end a text.
    """

    def __init__(self, stream: TextStream, ends: list[int]) -> None:
        self._stream, self._ends = stream, ends

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """The scores, where nothing was said without those of the ends."""
        if not self._ends or not self._stream.empty:
            return scores
        return scores.index_fill(1, torch.tensor(self._ends, device=scores.device), -torch.inf)  # type: ignore[return-value]


class Repetition(LogitsProcessor):
    """Makes what was said, or stands in the prompt, less likely: in the whole prompt, of which `generate` sees the end alone.

    Args:
        penalty: see `Generation.repetition_penalty`.
        before: [1, n] int64, what `generate` does not see.
    """

    def __init__(self, penalty: float, before: torch.Tensor) -> None:
        self._rule, self._before = RepetitionPenaltyLogitsProcessor(penalty), before

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """The scores after the penalty."""
        return self._rule(torch.cat([self._before, input_ids], 1), scores)  # type: ignore[no-any-return]


def _end_tokens(model: PreTrainedModel) -> list[int]:
    """The tokens at which the model itself ends a text."""
    end = model.generation_config.eos_token_id
    ends = end if isinstance(end, (list, tuple)) else [end]
    return [one for one in ends if one is not None]


class Worker:
    """A function that emits pieces of text, running in a thread of its own and read as an iterator.

    Args:
        run: called with `emit` and `cancelled`.
        stop: set to have it stop.
    """

    def __init__(self, run: Callable[[Callable[[str], None], Cancelled], None], stop: threading.Event) -> None:
        self._pieces: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
        self._stop = stop
        self._run = run
        self._thread = threading.Thread(target=self._work, name="reattention-generate", daemon=True)

    def pieces(self) -> Generator[str, None, None]:
        """Pieces of text; leaving the loop early cancels the work and waits for it to end.

        Raises:
            Exception: whatever the function raised.
        """
        self._thread.start()
        try:
            while (piece := self._pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            self._stop.set()
            self._thread.join()

    def _work(self) -> None:
        try:
            self._run(self._pieces.put, self._stop.is_set)
        except BaseException as error:  # the caller must see whatever it is, or would wait for ever
            self._pieces.put(error)
        else:
            self._pieces.put(None)
