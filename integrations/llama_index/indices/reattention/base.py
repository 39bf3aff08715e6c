"""A LlamaIndex index over a corpus: documents are read once into a model's cache, instead of being cut and embedded.

It knows what the framework asks of an index. The corpus is the only record of the documents: nothing is put into the
framework's document store.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.chat_engine import CondensePlusContextChatEngine, CondenseQuestionChatEngine, ContextChatEngine
from llama_index.core.chat_engine.types import BaseChatEngine, ChatMode
from llama_index.core.llms.utils import LLMType, resolve_llm
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import BaseNode, Document, TransformComponent
from llama_index.core.settings import Settings
from llama_index.core.storage.storage_context import StorageContext

from llama_index.indices.reattention.editing import Edits
from llama_index.indices.reattention.nodes import WholeDocuments, transformed
from llama_index.indices.reattention.query_engine import ReAttentionQueryEngine
from llama_index.indices.reattention.retriever import ReAttentionRetriever
from llama_index.indices.reattention.storage import CorpusStruct, Kept, Publisher, register
from llama_index.llms.reattention import ReAttentionLLM
from reattention_core.errors import InvalidConfigError
from reattention_core.frameworks.conversation import CALL_SETTINGS

CHATS: dict[ChatMode, type[BaseChatEngine]] = {
    ChatMode.BEST: CondensePlusContextChatEngine,
    ChatMode.CONDENSE_PLUS_CONTEXT: CondensePlusContextChatEngine,
    ChatMode.CONTEXT: ContextChatEngine,
    ChatMode.CONDENSE_QUESTION: CondenseQuestionChatEngine,
}
"""The framework's chat engines that ask an index, by mode."""


class ReAttentionIndex(Edits):
    """Documents that a local model has read, in the place of a VectorStoreIndex; no embeddings, and nothing is cut.

    `storage_context.persist()` and `load_index_from_storage` work as with other indices. The framework's folder keeps the
    name of the corpus, the engine's folder of corpora its pages: there it is from the first `persist`, or from the beginning
    where `corpus` names it, and from then on every edit is saved at once.

    Example:
        >>> from llama_index.core import SimpleDirectoryReader
        >>> from llama_index.indices.reattention import ReAttentionIndex
        >>> documents = SimpleDirectoryReader("data").load_data()
        >>> index = ReAttentionIndex.from_documents(documents)
        >>> print(index.as_query_engine().query("How long is the warranty?"))

    Args:
        nodes: to read; each becomes a document of the corpus.
        index_struct: of an index that was persisted.
        storage_context: the framework's stores.
        callback_manager: the framework's.
        transformations: make nodes of documents; one node of each when left out. They need not be cut.
        show_progress: show a bar while documents are read.
        llm: reads the documents and answers. When left out, `Settings.llm` if that is a ReAttentionLLM, else
            `ReAttentionLLM()`.
        corpus: saves the corpus under this name as soon as it is read.
        replace: overwrite a saved corpus of that name.

    Raises:
        CorpusExistsError: the name is taken.
        InvalidConfigError: `llm` answers from a corpus of its own.
    """

    index_struct_cls = CorpusStruct

    def __init__(
        self,
        nodes: Sequence[BaseNode] | None = None,
        *,
        index_struct: CorpusStruct | None = None,
        storage_context: StorageContext | None = None,
        callback_manager: CallbackManager | None = None,
        transformations: list[TransformComponent] | None = None,
        show_progress: bool = False,
        llm: ReAttentionLLM | None = None,
        corpus: str | None = None,
        replace: bool = False,
    ) -> None:
        self._llm = _reader(llm, index_struct)
        self._show_progress = show_progress
        own = index_struct or CorpusStruct(model=self._llm.model)
        own.corpus = own.corpus or corpus or own.index_id
        self._index_struct = own
        self._kept = Kept(self._llm._engine, own.corpus, index_struct is not None or corpus is not None, replace)
        if index_struct is not None:
            self._kept.open(index_struct.n_documents)
        super().__init__(
            nodes=nodes,
            index_struct=index_struct,
            storage_context=storage_context,
            callback_manager=callback_manager,
            transformations=transformations or [WholeDocuments()],
            show_progress=show_progress,
        )
        self._noted()
        self._storage_context.add_vector_store(Publisher(self._kept), f"reattention-{self.index_id}")

    @classmethod
    def from_documents(  # type: ignore[override]  # it takes no further arguments, because they would have no effect
        cls,
        documents: Sequence[Document],
        storage_context: StorageContext | None = None,
        show_progress: bool = False,
        callback_manager: CallbackManager | None = None,
        transformations: list[TransformComponent] | None = None,
        llm: ReAttentionLLM | None = None,
        corpus: str | None = None,
        replace: bool = False,
    ) -> "ReAttentionIndex":
        """Read documents; the arguments are those of the class."""
        transformations = transformations or [WholeDocuments()]
        nodes = transformed(documents, transformations, show_progress)
        return cls(
            nodes,
            storage_context=storage_context,
            callback_manager=callback_manager,
            transformations=transformations,
            show_progress=show_progress,
            llm=llm,
            corpus=corpus,
            replace=replace,
        )

    @classmethod
    def from_corpus(cls, name: str, llm: ReAttentionLLM | None = None, **given: Any) -> "ReAttentionIndex":
        """An index over a corpus that is saved already, whoever saved it.

        Args:
            name: of the corpus.
            llm: the model that read it.
            given: further arguments of the class.

        Raises:
            CorpusNotFoundError: there is none of that name.
        """
        return cls(index_struct=CorpusStruct(corpus=name, n_documents=1), llm=llm, **given)

    def as_retriever(self, **kwargs: Any) -> ReAttentionRetriever:
        """Finds passages; `similarity_top_k` says how many at most, 4 when left out.

        Raises:
            InvalidConfigError: another argument is given.
        """
        _check(kwargs, ["similarity_top_k"], "as_retriever")
        return ReAttentionRetriever(self._kept.filled, callback_manager=self._callback_manager, **kwargs)

    def as_query_engine(self, llm: LLMType | None = None, **kwargs: Any) -> BaseQueryEngine:
        """Answers questions.

        The model reads the corpus itself, unless another model shall answer, or an argument is given that only makes sense
        where passages are put into a prompt: then it is the framework's RetrieverQueryEngine over `as_retriever`.

        Args:
            llm: another model that answers, or a ReAttentionLLM over the same engine with other settings.
            kwargs: `streaming`, settings of answers such as `max_tokens`; or `similarity_top_k` and the arguments of
                RetrieverQueryEngine.from_args, such as `node_postprocessors` and `response_mode`.

        Raises:
            InvalidConfigError: an argument is unknown, or has no effect beside another one.
        """
        settings = {name: value for name, value in kwargs.items() if name in CALL_SETTINGS}
        rest = {name: value for name, value in kwargs.items() if name not in CALL_SETTINGS}
        framework = _arguments(RetrieverQueryEngine.from_args)
        _check(rest, ["similarity_top_k", *framework], "as_query_engine", ["streaming", *CALL_SETTINGS])
        model = self._llm if llm is None else resolve_llm(llm, callback_manager=self._callback_manager)
        if set(rest) <= {"streaming"} and isinstance(model, ReAttentionLLM) and model._engine() is self._llm._engine():
            _alone(model)
            manager = self._callback_manager
            return ReAttentionQueryEngine(self._kept.filled, model, rest.get("streaming", False), settings, manager)
        if settings:
            raise InvalidConfigError(
                f"{', '.join(settings)} is said to the model where passages are put into a prompt (as {', '.join(rest)} asks "
                "for): make a ReAttentionLLM with it and pass it as llm"
            )
        retriever = self.as_retriever(**{name: rest.pop(name) for name in list(rest) if name == "similarity_top_k"})
        return RetrieverQueryEngine.from_args(
            retriever, llm=model, **{"callback_manager": self._callback_manager, **rest}
        )

    def as_chat_engine(
        self, chat_mode: ChatMode = ChatMode.BEST, llm: LLMType | None = None, **kwargs: Any
    ) -> BaseChatEngine:
        """The framework's chat engine of a mode: it makes one question of the conversation, and asks the index.

        Args:
            chat_mode: "condense_question" has the corpus itself answer the question, "condense_plus_context" (the default)
                and "context" put passages into the prompt.
            llm: makes the question, and answers from passages; the index's when left out.
            kwargs: `similarity_top_k` for passages, and the arguments of the chat engine's `from_defaults`.

        Raises:
            InvalidConfigError: an argument or the mode is unknown.
        """
        if chat_mode not in CHATS:
            allowed = ", ".join(mode.value for mode in CHATS)
            raise InvalidConfigError(f"chat_mode {chat_mode!r} does not ask an index (allowed: {allowed})")
        made = CHATS[ChatMode(chat_mode)]
        model = self._llm if llm is None else resolve_llm(llm, callback_manager=self._callback_manager)
        from_defaults: Callable[..., BaseChatEngine] = made.from_defaults  # type: ignore[attr-defined]  # all have it
        if made is CondenseQuestionChatEngine:
            _check(kwargs, ["streaming", *_arguments(from_defaults)], "as_chat_engine")
            streaming = kwargs.pop("streaming", False)
            return from_defaults(self.as_query_engine(llm, streaming=streaming), llm=model, **kwargs)
        _check(kwargs, ["similarity_top_k", *_arguments(from_defaults)], "as_chat_engine")
        retriever = self.as_retriever(**{name: kwargs.pop(name) for name in list(kwargs) if name == "similarity_top_k"})
        return from_defaults(retriever, llm=model, **kwargs)

    def _build_index_from_nodes(self, nodes: Sequence[BaseNode], **build_kwargs: Any) -> CorpusStruct:
        raise NotImplementedError("build_index_from_nodes has no need of it")

    def build_index_from_nodes(self, nodes: Sequence[BaseNode], **build_kwargs: Any) -> CorpusStruct:
        """Read the first nodes. The framework's form would put their texts into its document store, too."""
        self._insert(nodes)
        return self._index_struct


def _reader(llm: ReAttentionLLM | None, struct: CorpusStruct | None) -> ReAttentionLLM:
    """The model of an index."""
    if llm is None and isinstance(Settings._llm, ReAttentionLLM):
        # Asked for where one is set only, or it would make a model of the framework's choice.
        llm = cast(ReAttentionLLM, Settings.llm)
    if llm is None:
        llm = ReAttentionLLM(model=struct.model) if struct is not None and struct.model else ReAttentionLLM()
    return _alone(llm)


def _alone(llm: ReAttentionLLM) -> ReAttentionLLM:
    if llm.corpus is not None:
        raise InvalidConfigError(
            f"the llm of an index answers from corpus {llm.corpus!r}: leave out its `corpus`, the index has one of its own "
            f"(ReAttentionIndex.from_corpus({llm.corpus!r}) is an index over that one)"
        )
    return llm


def _arguments(function: Callable[..., Any]) -> list[str]:
    """What a function of the framework takes by name; it swallows all else."""
    own = ("llm", "retriever", "query_engine", "kwargs")
    return [name for name in inspect.signature(function).parameters if name not in own]


def _check(given: Mapping[str, Any], allowed: Iterable[str], where: str, more: Iterable[str] = ()) -> None:
    unknown = [name for name in given if name not in (allowed := [*allowed])]
    if unknown:
        names = ", ".join(dict.fromkeys([*more, *allowed]))
        raise InvalidConfigError(f"unknown argument of {where}: {', '.join(unknown)} (allowed: {names})")


register(ReAttentionIndex)
