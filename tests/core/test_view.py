"""The page of an answer as its parser reads it: what it says, what it escapes, how long it can get."""

import math
import re
from pathlib import Path

import pytest
import torch
from bs4 import BeautifulSoup, Tag

from reattention_core import Answer, Document, Engine
from reattention_core.errors import InvalidRequestError
from reattention_core.evidence import Evidence
from reattention_core.view.corpus_map import CELLS
from reattention_core.view.excerpts import AROUND, LONGEST, excerpt
from tests.core.answered import HOSTILE, answered

WORDS = "".join(f"word{n:04d} " for n in range(1000))
DOCUMENTS = [Document(text=WORDS, title="first", source="a/first.md"), Document(text=WORDS.upper(), title="second")]


def parsed(answer: Answer) -> BeautifulSoup:
    return BeautifulSoup(answer.show().html, "html.parser")


def the(page: BeautifulSoup, selector: str) -> Tag:
    found = page.select(selector)
    assert len(found) == 1, (selector, len(found))
    return found[0]


def test_a_page_says_what_was_answered_and_shows_each_passage_in_its_document() -> None:
    answer = answered(DOCUMENTS, [(1, 7), (0, 20), (0, 3)], question="Which word?", text="word0042")
    page = parsed(answer)
    assert the(page, "h1").text == "Which word?"
    assert the(page, ".answer").text == "word0042"
    assert [one.text for one in page.select("article h3")] == ["second", "first"]
    assert len(answer.sources) == 3
    for number, source in enumerate(answer.sources, 1):
        mark = the(page, f"mark#passage-{number}")
        assert mark.text == source.quote
        around = mark.find_parent("div")
        assert around is not None
        text = DOCUMENTS[source.document_id == DOCUMENTS[1].id].text
        before, after = text[: source.start][-AROUND:], text[source.end :][:AROUND]
        assert before in around.text and after in around.text
        links = page.select(f'a[href="#passage-{number}"]')
        # In the article's list, in the table, and one for each page of it in the map.
        assert len(links) == 3
        assert f"{source.start:,} to {source.end:,}, score {source.score:.3f}" in page.text


def test_every_link_leads_to_a_passage_of_the_page_and_says_so_to_those_who_do_not_see() -> None:
    page = parsed(answered(DOCUMENTS, [(1, 7), (0, 20)]))
    for link in page.select("a"):
        the(page, str(link["href"]))
        assert link.text or link["aria-label"]
    for section in page.select("section[aria-labelledby]"):
        the(page, f"#{section['aria-labelledby']}")


def test_text_that_is_left_out_is_counted() -> None:
    sources = answered(DOCUMENTS, [(0, 5), (0, 40)]).sources
    before, pieces = excerpt(WORDS, list(enumerate(sources, 1)))
    assert before + sum(len(piece.text) + piece.left_out for piece in pieces) == len(WORDS)
    marked = [piece for piece in pieces if piece.passage]
    assert {piece.text for piece in marked} == {source.quote for source in sources}
    # Two passages with less than twice the text around them between: nothing is left out, nothing comes twice.
    sources = answered(DOCUMENTS, [(0, 5), (0, 12)]).sources
    before, pieces = excerpt(WORDS, list(enumerate(sources, 1)))
    assert "".join(piece.text for piece in pieces) in WORDS
    assert [piece.left_out for piece in pieces[:-1]] == [0] * (len(pieces) - 1)


def test_the_map_holds_every_page_once_and_is_strongest_where_the_evidence_is() -> None:
    answer = answered(DOCUMENTS, [(1, 7), (0, 20)])
    assert answer.evidence is not None
    cells = parsed(answer).select(".map > *")
    assert len(cells) == len(answer.evidence.pages) - 1  # the sink is no document's
    strengths = [int(re.findall(r"--e: (\d+)%", str(cell["style"]))[0]) for cell in cells]
    pages = len(answer.evidence.documents[0].spans) / 32
    assert strengths[math.ceil(pages) + 7] == 100
    assert strengths[20] == round(100 * 0.5**0.5)
    assert sum(strength > 0 for strength in strengths) == 2
    assert "second: 66.7% of the evidence" in str(cells[math.ceil(pages) + 7]["title"])
    assert answer.evidence.by_document == pytest.approx([1 / 3, 2 / 3])


def test_a_large_corpus_has_a_small_page() -> None:
    many = [Document(text=f"{n} {WORDS[:900]}", title=f"{n} " + "long title " * 400) for n in range(1500)]
    answer = answered(many, [(700, 2), (3, 0)], text="long " * 100_000)
    html = answer.show().html
    page = BeautifulSoup(html, "html.parser")
    assert 0 < len(page.select(".map > *")) <= CELLS
    assert len(page.select("tbody tr")) == 12
    assert "1,488 further documents are not listed" in page.text
    assert len(html) < 250_000


def test_a_megabyte_in_one_line_is_cut() -> None:
    """As a token of a hostile tokenizer could have it: a passage of a whole megabyte."""
    document = Document(text="x" * 1_000_000)
    answer = answered([document], [(0, n) for n in range(1, 7000)])
    assert sum(len(source.quote) for source in answer.sources) > 800_000
    html = answer.show().html
    assert len(html) < 150_000
    page = BeautifulSoup(html, "html.parser")
    assert max(len(mark.text) for mark in page.select("mark")) <= LONGEST
    assert "characters) …" in page.text


def test_what_documents_hold_is_text_and_nothing_else() -> None:
    documents = [
        Document(text=(HOSTILE + " ") * 9, title=HOSTILE, source=HOSTILE, id=HOSTILE),
        Document(text=(HOSTILE + "\u202b") * 9),
    ]
    answer = answered(documents, [(0, 1), (1, 2)], question=HOSTILE, text=HOSTILE)
    html = answer.show().html
    page = BeautifulSoup(html, "html.parser")
    clean = parsed(answered(DOCUMENTS, [(0, 1), (1, 2)]))
    assert {tag.name for tag in page.find_all()} == {tag.name for tag in clean.find_all()}
    assert not page.select("script, img, [onerror], [onmouseover]")
    assert "<script>document.title" in the(page, ".answer").text
    assert "{{ 7 * 7 }}" in the(page, ".answer").text
    # Controls, and marks that turn the direction of what follows them, are replaced.
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", html)
    policy = the(page, 'meta[http-equiv="Content-Security-Policy"]')["content"]
    assert str(policy).startswith("default-src 'none'; style-src 'unsafe-inline'")


def test_a_page_loads_nothing() -> None:
    page = parsed(answered(DOCUMENTS, [(0, 1)]))
    for tag in page.find_all():
        assert not {"src", "srcset", "action", "data", "poster"} & set(tag.attrs), tag
        assert str(tag.get("href", "#")).startswith("#"), tag
    assert "url(" not in the(page, "style").text and "@import" not in the(page, "style").text


def test_a_notebook_shows_the_page_in_a_frame_that_may_do_nothing() -> None:
    view = answered([Document(text=HOSTILE * 9)], [(0, 1)]).show()
    frame = the(BeautifulSoup(view._repr_html_(), "html.parser"), "iframe")
    assert not frame["sandbox"]  # there, and grants nothing
    assert str(frame["srcdoc"]).replace('<base href="about:srcdoc">', "") == view.html


def test_an_answer_from_a_corpus_shows_itself(engine: Engine, tmp_path: Path) -> None:
    corpus = engine.ingest(DOCUMENTS, progress=False)
    answer = corpus.ask("Which word?")
    assert answer.evidence is not None and answer.evidence.question == "Which word?"
    assert float(answer.evidence.pages.sum()) == pytest.approx(1)
    scores = sum(source.score for source in answer.sources)
    assert float(answer.evidence.pages[list(answer.evidence.read)].sum()) == pytest.approx(scores, abs=1e-4)
    corpus.remove(DOCUMENTS[0].id)  # the page is of the documents that were asked
    saved = answer.show().save(tmp_path / "report.html")
    page = BeautifulSoup(saved.read_text(encoding="utf-8"), "html.parser")
    assert sorted(row.text for row in page.select("tbody td[dir]")) == ["first", "second"]
    assert len(page.select("mark")) == len(answer.sources)
    assert str(answer.show()).startswith(answer.text)


@pytest.mark.parametrize("strategy", ["reattention", "longheads"])
def test_every_rule_can_be_shown(engine: Engine, strategy: str) -> None:
    corpus = engine.ingest(DOCUMENTS, progress=False, strategy=strategy)
    page = parsed(corpus.ask("Which word?", strategy=strategy))
    assert strategy in the(page, "header").text
    assert page.select("mark")


def test_an_answer_without_evidence_says_why_there_is_nothing_to_show(engine: Engine) -> None:
    corpus = engine.ingest(DOCUMENTS, progress=False)
    answer = corpus.ask("Which word?")
    with pytest.raises(InvalidRequestError, match=r"comes from JSON, which leaves it out; show the answer"):
        Answer.model_validate_json(answer.model_dump_json()).show()
    with pytest.raises(InvalidRequestError, match="not read from a corpus"):
        engine.generate("Some words").show()
    assert "evidence" not in Answer.model_json_schema()["properties"]
    assert "evidence" not in repr(answer)


def test_a_rule_without_evidence_has_a_page_without_passages() -> None:
    answer = answered(DOCUMENTS, [])
    assert Evidence.shares(None, 3).tolist() == [0, 0, 0]
    assert Evidence.shares(torch.tensor([0.0, 3.0, 1.0, -5.0]), 4).tolist() == [0, 0.75, 0.25, 0]
    page = parsed(answer)
    assert "No passage of the documents." in page.text
    assert not page.select("mark, a")
