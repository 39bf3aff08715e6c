"""Reads the Python language reference once and answers three questions from it; knows nothing that the library does not.

The reference is the one inside every Python, `pydoc_data.topics`: about 113,000 tokens, fourteen times what the bundled
model can look at. Run it twice (`make demo`): the second run opens what the first one saved and reads nothing.
"""

import resource
import sys
import time
from pydoc_data.topics import topics

from transformers.utils import logging as transformers_logging

from reattention_core import Corpus, Document, Engine
from reattention_core.cli.console import out, show_answer, show_sources, show_timings, size
from reattention_core.cli.progress import reading
from reattention_core.errors import CorpusError, CorpusNotFoundError

NAME = "python-reference"

QUESTIONS = (
    "What are the three basic sequence types?",
    "Which module defines the interactive source code debugger?",
    "What is the default tab size of expandtabs?",
)


def read(engine: Engine) -> Corpus:
    """The saved corpus, or a new one where there is none that this model can use."""
    try:
        return engine.open(NAME)
    except (CorpusNotFoundError, CorpusError):
        documents = [Document(title=title, text=text) for title, text in topics.items()]
        out.out(f"reading {len(documents)} documents: this is done once and takes a few minutes on a CPU")
        with reading() as progress:
            return engine.ingest(documents, name=NAME, replace=True, progress=progress)


def main() -> None:
    """Read or open, then ask."""
    began = time.perf_counter()
    transformers_logging.disable_progress_bar()
    with Engine.from_pretrained() as engine:
        corpus = read(engine)
        out.out(
            f"{NAME}: {len(corpus.documents)} documents, {corpus.n_tokens:,} tokens, ready after "
            f"{time.perf_counter() - began:.1f} s; the model's window is {engine.window:,} tokens"
        )
        for question in QUESTIONS:
            out.print(f"\n{question}", style="bold")
            answer = show_answer(corpus.stream(question))
            show_sources(answer)
            show_timings(answer)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    out.out(f"\n{time.perf_counter() - began:.1f} s in all, at most {size(peak)} of memory")


if __name__ == "__main__":
    main()
