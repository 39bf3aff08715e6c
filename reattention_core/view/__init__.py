"""One answer as a page of HTML that needs nothing else; knows what an answer holds, and no model.

The page has no script and allows none, loads nothing, and shows what documents hold as text.
"""

from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from reattention_core.errors import InvalidRequestError
from reattention_core.view.page import render

if TYPE_CHECKING:
    from reattention_core.answer import Answer

__all__ = ["View"]


@dataclass(frozen=True)
class View:
    """An answer with its evidence, to be looked at. Made by `Answer.show`.

    Attributes:
        html: a whole page.
        text: the answer and its sources in a few lines, for where no page can be shown.
    """

    html: str = field(repr=False)
    text: str

    @classmethod
    def of(cls, answer: "Answer") -> "View":
        """The page of an answer.

        Raises:
            InvalidRequestError: the answer does not come from a corpus.
        """
        if answer.evidence is None:
            raise InvalidRequestError(
                "there is no evidence to show: the answer was not read from a corpus, or comes from JSON, which leaves it out; "
                "show the answer that `corpus.ask` gives"
            )
        lines = [f"{s.score:.2f}  {s.title or s.document_id}  {s.start:,}-{s.end:,}" for s in answer.sources]
        return cls(render(answer, answer.evidence), "\n".join([answer.text, *lines]))

    def save(self, path: str | Path) -> Path:
        """Write the page.

        Raises:
            OSError: it cannot be written.
        """
        path = Path(path)
        path.write_text(self.html, encoding="utf-8")
        return path

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        """What a notebook shows: the page in a frame of its own, where neither can reach the other."""
        # Without a base of its own, a link inside the page would lead to the notebook's address, and into the frame with it.
        framed = self.html.replace("<head>", '<head><base href="about:srcdoc">', 1)
        return (
            '<iframe sandbox title="answer and evidence" '
            'style="width: 100%; height: 42rem; border: 1px solid #8888; border-radius: 8px" '
            f'srcdoc="{escape(framed)}"></iframe>'
        )
