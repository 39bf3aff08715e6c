"""A selection rule of a user's own, passed where a strategy is named."""

from typing import ClassVar

import pytest
import torch

from reattention_core import Corpus, Engine
from reattention_core.cache.kv_cache import ContextLayer
from reattention_core.errors import ContextTooLongError, InvalidConfigError, InvalidRequestError
from reattention_core.select import Context, Reader, Selection, Selector, Settled

OLD = "The quick brown fox jumps over the lazy dog. " * 6
NEW = "A cache keeps the keys and the values of every token the model has read. " * 4


class Newest(Selector):
    """The sink and the last pages of the corpus."""

    name: ClassVar[str] = "newest"
    n_pages: int = 1

    def reader(self, context: Context) -> Reader:
        return NewestReader(context, self.n_pages)


class NewestReader(Reader):
    def __init__(self, context: Context, n_pages: int) -> None:
        assert context.pages is not None
        last = torch.arange(context.pages.n_pages)[-n_pages:]
        self.evidence = torch.zeros(context.pages.n_pages)
        self.evidence[last] = 1.0
        self._selection = Selection(context.pages.addresses_of(torch.cat([torch.tensor([0]), last])))

    def select(self, layer: ContextLayer, query: torch.Tensor) -> Selection:
        return self._selection


@pytest.fixture
def corpus(engine: Engine) -> Corpus:
    return engine.ingest([OLD, NEW], progress=False)


@pytest.mark.parametrize("n_pages", [1, 2])
def test_it_is_what_attention_looks_at(corpus: Corpus, n_pages: int) -> None:
    answer = corpus.ask("What keeps the keys?", strategy=Newest(n_pages=n_pages), max_new_tokens=3)
    chosen = sum(corpus.pages.filled.tolist()[-n_pages:])
    assert answer.usage.window_tokens == 32 + chosen + answer.usage.prompt_tokens + 2, "the third token is not run"
    assert answer.usage.cached_tokens == corpus.n_tokens


def test_its_evidence_becomes_the_sources(corpus: Corpus) -> None:
    answer = corpus.ask("What keeps the keys?", strategy=Newest(n_pages=2), max_new_tokens=1)
    (source,) = answer.sources
    document = corpus.documents[1].document
    assert source.document_id == document.id
    assert source.score == 1.0
    assert source.quote == document.text[source.start : source.end]
    assert document.text.rstrip().endswith(source.quote)
    assert source.start > 0, "not the whole document"


class Likeliest(Selector):
    """As the cookbook writes it: `Settled` with evidence for pages that are not read too."""

    name: ClassVar[str] = "likeliest"

    def reader(self, context: Context) -> Reader:
        pages, _ = context.asked()
        evidence = torch.arange(pages.n_pages).flip(0) + 1.0
        return Settled(Selection.of_pages(pages, torch.tensor([0, 1, 3])), evidence)


def test_the_pages_that_are_read_are_cited_and_no_others(corpus: Corpus) -> None:
    answer = corpus.ask("What keeps the keys?", strategy=Likeliest(), max_new_tokens=1)
    n_pages = corpus.pages.n_pages
    shares = [(n_pages - page) / (n_pages * (n_pages + 1) / 2) for page in (1, 3)]
    assert [source.score for source in answer.sources] == pytest.approx(shares)
    assert Settled(Selection(torch.arange(64))).cited().tolist() == []
    few = Settled(Selection(torch.arange(8 * 32)), torch.tensor([9.0, 1, 2, 0, 3, 4, 5, 6, 7]))
    assert few.cited().tolist() == [0, 4, 5, 6, 7] and few.cited(2).tolist() == [0, 7]


def test_a_rule_for_questions_to_a_corpus_says_so_elsewhere(engine: Engine) -> None:
    for call in (
        lambda: engine.generate("The fox", strategy=Likeliest(), max_new_tokens=1),
        lambda: engine.ingest([OLD, NEW], mode="joint", strategy=Likeliest(), progress=False),
    ):
        with pytest.raises(InvalidRequestError, match="questions to a corpus and nothing else"):
            call()


def test_what_it_does_not_select_cannot_change_the_answer(engine: Engine) -> None:
    """The old document's keys and values are overwritten; only a rule that reads them notices."""
    corpus = engine.ingest([OLD, NEW], progress=False)
    question = "What keeps the keys?"
    before = [corpus.ask(question, strategy=s, max_new_tokens=6).text for s in (Newest(), "reattention")]
    first, stop = (document.start // 32 for document in corpus.documents)
    for tensor in (*corpus.pages.keys, *corpus.pages.values):
        tensor[:, first:stop] = torch.randn_like(tensor[:, first:stop])
    after = [corpus.ask(question, strategy=s, max_new_tokens=6).text for s in (Newest(), "reattention")]
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_it_reads_documents_too(engine: Engine) -> None:
    """In `joint` ingest, where it says what a document sees of the earlier ones."""
    joint = engine.ingest([OLD, NEW], mode="joint", strategy=Newest(), progress=False)
    alone = engine.ingest([OLD, NEW], mode="joint", strategy="reattention", progress=False)
    start = joint.documents[1].start // 32
    # Chunks of other sizes may be multiplied in another order.
    assert torch.allclose(joint.pages.keys[0], alone.pages.keys[0], atol=1e-5), "the first layer sees the token alone"
    assert not torch.allclose(joint.pages.keys[1][:, start:], alone.pages.keys[1][:, start:])


def test_its_parameters_are_checked_and_its_name_is_not_a_strategy(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match="Extra inputs"):
        Newest(pages=3)  # type: ignore[call-arg]
    with pytest.raises(InvalidConfigError, match="or a Selector of yours"):
        corpus.ask("What?", strategy="newest")


def test_a_rule_that_wants_more_than_the_window_is_stopped(engine: Engine) -> None:
    """Its mistake is an error of this library, not an answer from positions the model never saw."""
    corpus = engine.ingest([OLD * 8], progress=False)
    with pytest.raises(ContextTooLongError, match="trained on 512") as error:
        corpus.ask("What?", strategy=Newest(n_pages=15), max_new_tokens=1)
    assert error.value.n_tokens > error.value.limit == 512
