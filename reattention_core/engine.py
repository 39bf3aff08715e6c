"""A model that reads documents once and answers from them: the only file that knows all others."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reattention_core.answer import Answer, AnswerStream, finish
from reattention_core.cache.kept import Kept
from reattention_core.cache.pages import Pages
from reattention_core.cache.prefix import PrefixTree
from reattention_core.config import Config, Generation, checked
from reattention_core.corpus import Corpus
from reattention_core.documents import Document, collect
from reattention_core.edition import assembled
from reattention_core.errors import InvalidConfigError
from reattention_core.home import home
from reattention_core.ingest import read_sink
from reattention_core.joining import joined
from reattention_core.long_prompt import request
from reattention_core.memory import free_bytes, within_memory
from reattention_core.models.attach import Attachment, embedding_rows
from reattention_core.models.fingerprint import fingerprint
from reattention_core.models.loading import BUNDLED, load
from reattention_core.models.unchanged import Unchanged
from reattention_core.opening import opened
from reattention_core.prefill import Cancelled
from reattention_core.progress import Progress
from reattention_core.prompts import leading
from reattention_core.reading import How, Mode, drafted, obtain
from reattention_core.select import Selector, named
from reattention_core.select.base import Trusted
from reattention_core.sink import sink_ids
from reattention_core.stats import Stats, Tally, measured
from reattention_core.store import Store
from reattention_core.structured.call_syntax import call_syntax
from reattention_core.structured.constraint import Grammars
from reattention_core.structured.structure import Shape, Structure
from reattention_core.texts import Texts
from reattention_core.tiers import Tiers
from reattention_core.tokens import PlainTokenizer
from reattention_core.trusted import trusted
from reattention_core.turns import Turns
from reattention_core.unpicklable import Unpicklable

Sources = str | Path | Document | Iterable[str | Path | Document]

logger = logging.getLogger(__name__)


class Engine(Unpicklable):
    """A language model with ReAttention's cache and attention.

    Threads may share an engine; its model serves one request at a time, in the order they come. Long reading
    gives way between its forward passes; see `Turns`.

    Args:
        model: a causal LM in evaluation mode. It is attached: until `close`, plain calls of it go through our attention.
        tokenizer: its tokenizer, a fast one.
        config: settings.
        store: folder of saved corpora; `corpora` in the cache folder when left out.

    Attributes:
        name: the model's, as it was asked for.
        sink: the 32 token ids that stand before every document.
        prefixes: beginnings of prompts that were read without a corpus.
        texts: long texts that prompts asked something of, within the same budget.
        weights: the model's, which must stay as they are.
        turns: who has the model, and who waits.
        tally: what was done so far.
        folder: of saved corpora.
        tiers: where corpora lie, and what they may take.

    Raises:
        UnsupportedModelError: the model cannot be attached; the message says why.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: Config | None = None,
        store: str | Path | None = None,
    ) -> None:
        self.config, self.tokenizer = config or Config(), tokenizer
        self.name = model.name_or_path or model.config.model_type
        self.tokens = PlainTokenizer(tokenizer, embedding_rows(model))
        self.turns, self.tally = Turns(self.config.max_waiting), Tally()
        self.sink = sink_ids(self.tokens, self.config.sink, leading(tokenizer))
        self._sink_page: Pages | None = None
        self.attachment, self.weights = Attachment(model), Unchanged(model)
        quarter = free_bytes(model.device) // 4
        kept = Kept(quarter if self.config.prefix_bytes is None else self.config.prefix_bytes)
        self.prefixes, self.texts = PrefixTree(kept), Texts(kept)
        self.folder = Path(store) if store is not None else home() / "corpora"
        self.store = Store(self.folder)
        self.tiers = Tiers(self)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = BUNDLED,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "auto",
        store: str | Path | None = None,
        **config: Any,
    ) -> "Engine":
        """Load a model and attach to it.

        Args:
            model: the bundled `smollm2-135m-instruct`, a hub id, a folder, or the path of a GGUF file.
            device: where to put it; the first GPU when left out, or the CPU without one.
            dtype: of the weights; `auto` is bfloat16 on a CPU that multiplies it and float32 on others, bfloat16 or the
                checkpoint's other 16-bit type elsewhere.
            store: folder of saved corpora.
            config: fields of `Config`.

        Raises:
            UnsupportedModelError: it cannot be loaded safely, or cannot be attached.
            InvalidConfigError: a setting is unknown or not allowed.
        """
        settings = checked(Config, config)
        engine = cls(*load(model, device, dtype), settings, store)
        engine.name = str(model)
        return engine

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Detach from the model, restoring it exactly; later calls raise `EngineClosedError`."""
        with self.turns.last():
            self.attachment.detach()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.turns.closed

    @property
    def window(self) -> int:
        """Tokens the model was trained on: the most that attention looks at at once."""
        return self.attachment.window

    @cached_property
    def identity(self) -> dict[str, str]:
        """What a saved corpus depends on, field by field: model, tokenizer, sink and type of the cache."""
        own = {"cache_dtype": str(self.cache_dtype).removeprefix("torch.")}
        own["sink"] = hashlib.sha256(str(self.sink).encode()).hexdigest()[:16]
        return fingerprint(self.attachment.model, self.tokenizer) | own

    def ingest(
        self,
        documents: Sources,
        *,
        name: str | None = None,
        mode: Mode = "independent",
        strategy: str | Selector | None = None,
        strict: bool = False,
        replace: bool = False,
        progress: bool | Progress = True,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Corpus:
        """Read documents once.

        Args:
            documents: a file, a folder, a text, a `Document`, or an iterable of these.
            name: saves the corpus under this name; without one it lives as long as the object.
            mode: `independent` reads every document alone behind one shared sink (linear cost); `joint` lets each see the
                earlier ones, as the papers do.
            strategy: the rule by which `joint` reads; `longheads` also keeps what it needs for asking later.
            strict: raise on the first unreadable file instead of leaving it out.
            replace: overwrite a saved corpus of that name.
            progress: a bar on a terminal (True), none (False), or a function of tokens read and tokens in all.
            cancelled: asked between forward passes; True stops the ingest.

        Returns:
            The corpus, ready for questions. `corpus.skipped` names what could not be read.

        Raises:
            EmptyPromptError: there is nothing to read.
            UnreadableDocumentError: with `strict`, a file cannot be read.
            CapacityError: it would not fit the memory, said before the first token is read.
            CorpusExistsError: the name is taken.
            CancelledError: `cancelled` said so. Documents that were saved by then are not read again by a next ingest of that
                name; so it is when an ingest is broken off in any other way.
        """
        self.turns.check_open()
        if name is not None:
            self.store.check_free(name, replace)
        if mode not in ("independent", "joint"):
            raise InvalidConfigError(f"mode must be 'independent' or 'joint', got {mode!r}")
        selector = self.selector(strategy)
        texts, skipped = collect(documents, strict=strict)
        for error in skipped:
            logger.warning("left out: %s", error)
        how = How(mode, selector, progress, cancelled)
        with drafted(self, name, how, replace=replace) as draft:
            sink, parts = obtain(self, texts, how, draft)
            with within_memory():
                pages, read = assembled(sink, parts)
            return Corpus.made(self, name, how, pages, read, draft, skipped)

    def join(self, *corpora: str | Corpus, name: str | None = None, replace: bool = False) -> Corpus:
        """The documents of several corpora as one, in their order; none is read again, and what several have is taken once.

        Args:
            corpora: names of saved ones, or open ones of this engine.
            name: saves the corpus under this name.
            replace: overwrite a saved corpus of that name.

        Raises:
            InvalidRequestError: two different documents have one id, or a corpus cannot be joined (see `joined`).
            CorpusNotFoundError: one is not saved; or another error of `open`.
            CorpusExistsError: the name is taken.
        """
        if name is not None:
            self.store.check_free(name, replace)
        opened = [self.open(corpus) if isinstance(corpus, str) else corpus for corpus in corpora]
        pages, documents = joined(opened)
        how = How("independent", opened[0].rule())
        with drafted(self, name, how, replace=replace) as draft:
            return Corpus.made(self, name, how, pages, documents, draft)

    def open(self, name: str) -> Corpus:
        """A saved corpus, without reading its documents again.

        Raises:
            CorpusNotFoundError: there is none of that name.
            FingerprintMismatchError: another model read it; the message names the fields that differ.
            CorpusError: its files are damaged, incomplete or too new.
        """
        self.turns.check_open()
        return opened(self, name)

    def generate(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        *,
        strategy: str | Selector | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | None = None,
        parallel_tool_calls: bool = False,
        schema: Mapping[str, Any] | None = None,
        limit: int | None = None,
        **generation: Any,
    ) -> Answer:
        """Continue a text, or answer chat messages, of any length that memory holds.

        A prompt beyond the model's window that asks something of a long text, as frameworks' stock chains make them, is answered
        from the passages that `consensus` finds in it; `take_apart` has the rule. Any other is read in chunks by the engine's
        strategy (`reattention` for `consensus`).

        Args:
            prompt: a text to continue, or messages {"role": …, "content": …} for the model's chat template; see `render_chat`.
            strategy: the rule for a prompt beyond the window, by name or instance; the engine's when left out.
            tools: that may be called, as `read_tools` takes them; the calls are in the answer's `tool_calls`.
            tool_choice: "auto" (text or calls), "required", "none" or the name of the tool to call.
            parallel_tool_calls: whether there may be several calls; small models then often repeat one.
            schema: JSON schema of what is answered, if no tool is called. Stop strings then have no effect.
            limit: tokens of prompt and answer at most, where memory holds more.
            generation: fields of `Generation`.

        Raises:
            EmptyPromptError: there is nothing to continue.
            ContextTooLongError: prompt and answer may take more tokens than `limit`, or than memory holds.
            InvalidConfigError: a setting is unknown or not allowed, or a schema cannot be followed.
            IncompleteAnswerError: tokens ran out, or a stop string came, inside of a call or of JSON.
        """
        asked: dict[str, Any] = {"tools": tools, "tool_choice": tool_choice, "schema": schema}
        asked["parallel_tool_calls"] = parallel_tool_calls
        return finish(self.stream(prompt, strategy=strategy, limit=limit, **asked, **generation))

    def stream(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        *,
        strategy: str | Selector | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | None = None,
        parallel_tool_calls: bool = False,
        schema: Mapping[str, Any] | None = None,
        limit: int | None = None,
        **generation: Any,
    ) -> AnswerStream:
        """Like `generate`, but gives pieces of text as they are drawn; the whole answer is in `.answer` afterwards."""
        settings = checked(Generation, {"max_new_tokens": self.config.max_new_tokens, **generation})
        structure = Structure.read(tools, tool_choice, parallel_tool_calls, schema)
        return request(self, prompt, settings, self.selector(strategy), structure, limit).stream()

    def stats(self) -> Stats:
        """What the engine holds, who waits for the model, and what was done so far."""
        return measured(self)

    def shape(self, structure: Structure) -> Shape | None:
        """What holds one answer to a structure; None where nothing is asked of it."""
        return structure.shape(self._grammars, call_syntax(self.tokenizer)) if structure else None

    @cached_property
    def trusted(self) -> Trusted:
        """What of the model finds what a question asks for; for who has the model (`busy`)."""
        return trusted(self)

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self.tokenizer, self.attachment.model)

    def selector(self, strategy: str | Selector | None) -> Selector:
        """The selection rule of a name, with parameters that suit the model's window; an instance is itself.

        Raises:
            InvalidConfigError: no rule has that name.
        """
        if isinstance(strategy, Selector):
            return strategy
        return named(self.config.strategy if strategy is None else strategy, self.window)

    def busy(self, cancelled: Cancelled = lambda: False) -> AbstractContextManager[Cancelled]:
        """The model for one piece of work: others wait; see `Turns.turn`. Refused once its weights were changed."""
        self.weights.check()
        return self.turns.turn(cancelled)

    def sink_page(self, selector: Selector, cancelled: Cancelled) -> Pages:
        """The sink, read: the same for all corpora, unless a rule wants a summary of it. For who has the model (`busy`)."""
        page = None if selector.summary_size else self._sink_page
        if page is None:
            page = read_sink(self.attachment, self.sink, selector, self.cache_dtype, cancelled)
            self._sink_page = None if selector.summary_size else page
        return page

    @property
    def cache_dtype(self) -> torch.dtype:
        """Type of cached keys and values."""
        model = self.attachment.model.dtype
        if self.config.cache_dtype != "auto":
            return getattr(torch, self.config.cache_dtype)  # type: ignore[no-any-return]
        return torch.bfloat16 if model == torch.float32 else model
