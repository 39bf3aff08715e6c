"""The page of an answer in a real browser: it is opened, walked through, and attacked by what a document holds."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from reattention_core import Document
from tests.core.answered import HOSTILE, answered

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)", allow_module_level=True)

QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"]
TEXT = "".join(f"line {n} of a document that is long enough to scroll\n" for n in range(300))
DOCUMENTS = [Document(text=TEXT, title="minutes"), Document(text=TEXT[200:], title="handbook")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Root, as in a container, may not have Chromium's own sandbox.
        made = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*QUIET, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        )
        yield made
        made.close()


def opened(browser: Browser, path: Path, width: int = 1000, scheme: str = "light") -> Page:
    """A page from a file, with everything that it asks the network for written down and refused."""
    page = browser.new_page(viewport={"width": width, "height": 700}, color_scheme=scheme)  # type: ignore[arg-type]
    asked = list[str]()
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    assert asked == [path.as_uri()]
    return page


@pytest.fixture
def report(tmp_path: Path) -> Path:
    return answered(DOCUMENTS, [(1, 60), (0, 90)]).show().save(tmp_path / "report.html")


def in_sight(page: Page, selector: str) -> bool:
    box = page.locator(selector).bounding_box()
    assert box is not None
    return 0 <= box["y"] < 700


def test_a_click_on_a_passage_goes_to_it(browser: Browser, report: Path) -> None:
    page = opened(browser, report)
    assert not in_sight(page, "#passage-2")
    page.click('tbody a[href="#passage-2"]')
    assert in_sight(page, "#passage-2")
    assert page.evaluate("getComputedStyle(document.querySelector('#passage-2')).outlineStyle") == "solid"
    page.click('.map a[href="#passage-1"]')
    assert in_sight(page, "#passage-1")


def test_keys_alone_reach_every_passage(browser: Browser, report: Path) -> None:
    page = opened(browser, report)
    reached = []
    for _ in range(page.locator("a").count()):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.getAttribute('href')"))
    assert reached.count("#passage-1") == 3 and reached.count("#passage-2") == 3
    page.keyboard.press("Enter")
    assert in_sight(page, reached[-1])


@pytest.mark.parametrize("width", [320, 390, 1000])
def test_it_is_as_wide_as_its_screen(browser: Browser, tmp_path: Path, width: int) -> None:
    long = Document(text="x" * 1_000_000, title="y" * 500, source="z" * 500)
    path = (
        answered([long, *DOCUMENTS], [(0, 60), (1, 3)], question="q" * 500, text="a" * 500)
        .show()
        .save(tmp_path / "w.html")
    )
    page = opened(browser, path, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_light_and_dark_can_be_read(browser: Browser, report: Path) -> None:
    """Contrast by WCAG's formula, at least 4.5 between each text and what it stands on."""
    contrast = """() => {
        const canvas = document.createElement('canvas').getContext('2d')
        const light = color => {
            canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1)
            const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(v => v / 255)
                .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            return 0.2126 * r + 0.7152 * g + 0.0722 * b
        }
        return [...document.querySelectorAll('h1, h2, h3, p, td, th, a:not(.map a), mark, dt, dd, .gap, article .text')].map(e => {
            let on = e
            while (getComputedStyle(on).backgroundColor === 'rgba(0, 0, 0, 0)') on = on.parentElement
            const [a, b] = [light(getComputedStyle(e).color), light(getComputedStyle(on).backgroundColor)]
            return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.tagName]
        })
    }"""
    papers = []
    for scheme in ("light", "dark"):
        page = opened(browser, report, scheme=scheme)
        assert [ratio for ratio in page.evaluate(contrast) if ratio[0] < 4.5] == [], scheme
        papers.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert papers[0] != papers[1]


def test_what_a_document_holds_does_nothing(browser: Browser, tmp_path: Path) -> None:
    hostile = Document(text=(HOSTILE + " ") * 20, title=HOSTILE, source=HOSTILE)
    view = answered([hostile, *DOCUMENTS], [(0, 2), (1, 9)], question=HOSTILE, text=HOSTILE).show()
    page = opened(browser, view.save(tmp_path / "hostile.html"))
    page.wait_for_timeout(200)
    assert page.title() != "owned"
    assert page.locator("script, img").count() == 0
    assert page.locator("main > section").count() == 4
    assert page.inner_text("footer").startswith("Passages are evidence")
    page.click('tbody a[href="#passage-1"]')
    assert in_sight(page, "#passage-1")


def test_text_from_right_to_left_turns_nothing_around_it(browser: Browser, tmp_path: Path) -> None:
    """The line that an override stands in is as it was; Arabic beside it is written from the right."""
    arabic = "\u0645\u0631\u062d\u0628\u0627 \u0628\u0643\u0645 \u0641\u064a \u0627\u0644\u062f\u0644\u064a\u0644 "
    documents = [Document(text="\u202e" + "abc def " * 40, title="over"), Document(text=arabic * 40, title="arabic")]
    page = opened(browser, answered(documents, [(0, 0), (1, 0)]).show().save(tmp_path / "rtl.html"))
    first, second = page.locator("article .text").all()
    assert first.evaluate("e => getComputedStyle(e).direction") == "ltr"
    assert second.evaluate("e => getComputedStyle(e).direction") == "rtl"
    # The first letter after the override stands left of the second.
    left = """e => [1, 2].map(n => { const range = document.createRange(); const text = e.querySelector('mark').firstChild
        range.setStart(text, n); range.setEnd(text, n + 1); return range.getBoundingClientRect().left })"""
    one, two = first.evaluate(left)
    assert one < two


def test_in_a_notebook_the_frame_works_and_keeps_to_itself(browser: Browser) -> None:
    view = answered([Document(text=HOSTILE * 9, title="hostile"), *DOCUMENTS], [(1, 60), (0, 2)]).show()
    page = browser.new_page(viewport={"width": 900, "height": 700})
    page.set_content(f"<title>notebook</title><p>cell</p>{view._repr_html_()}")
    frame = page.frames[1]
    frame.click('tbody a[href="#passage-1"]')
    assert frame.locator("#passage-1").evaluate("e => e.matches(':target')")
    assert page.title() == "notebook"
    assert frame.evaluate("window.origin") == "null"
