# %% [markdown]
# # 6. Write a selection rule, and measure it
#
# What a question reads is decided by a `Selector`: a class with one method, and wherever a strategy is named an instance of
# yours can stand. This notebook writes one in ten lines, looks at what it reads, and has the quality lab put it beside the
# built-in rules, with the same model, the same questions and the same limits.

# %%
import tempfile
from pathlib import Path
from typing import ClassVar

import torch
from transformers.utils import logging

from reattention_bench.case import Size
from reattention_bench.plan import prepare
from reattention_bench.rows import Rows, read
from reattention_bench.run import run
from reattention_bench.summary import summarise, table
from reattention_core import Engine, Selection, Selector, Settled
from reattention_core.select import mass

logging.disable_progress_bar()
engine = Engine.from_pretrained(store=tempfile.mkdtemp())

# %% [markdown]
# ## The rule
#
# `context.asked()` gives the cached keys and values of the corpus, and the question with ways to run it. This rule runs
# the question, takes its queries in the one head that is trusted most, and reads the pages to which that head gives most
# of its attention. It is `consensus` without its other heads, without subtracting an empty question, and without
# comparing passages. (`Settled` reads the same pages in all layers and for the whole answer; a rule that chooses for each
# layer or chunk writes a `Reader` of its own, with a method `select`.)


# %%
class OneHead(Selector):
    """The pages that one head attends to."""

    name: ClassVar[str] = "one-head"
    n_pages: int = 4

    def reader(self, context):
        pages, question = context.asked()
        queries = question.probe(question.ids, question.asking).queries  # [heads, tokens, dimension] a layer
        evidence = mass(pages, queries, context.scaling, question.trusted().heads[:1])[0]  # [pages], sums to 1
        best = evidence.topk(min(self.n_pages, pages.n_pages - 1)).indices.sort().values
        return Settled(Selection.of_pages(pages, torch.cat([best.new_zeros(1), best])), evidence)  # page 0 is the sink


# %% [markdown]
# Its parameters are checked as those of the built-in rules are, and its evidence becomes the sources of the answer.

# %%
texts = (
    "The warranty of the Kestrel kettle lasts five years. Scale and broken lids are excluded. ",
    "The warranty of the Merlin toaster lasts two years. Burnt bread is not covered. ",
    "The shop in Lowick is open from nine to six. On Saturdays it closes at two, and on Sundays it stays closed. ",
)
filler = "This note was written for the staff of the shop and is kept in the green folder behind the counter. " * 6
corpus = engine.ingest([text + filler for text in texts], progress=False)
answer = corpus.ask("How long does the warranty of the kettle last?", strategy=OneHead(n_pages=1))
print(answer.text)
for source in answer.sources:
    print(f"  {source.score:.2f}  {source.quote[:70]} …")

# %% [markdown]
# ## Measured
#
# Needles in filler text: one sentence with a number stands somewhere in about a thousand tokens, in the first task alone, in
# the second among others of its kind. On the command line this is
# `reattention bench niah_single niah_multikey -n 1000 --draws 3 --haystack noise -m my_rules.OneHead -m consensus -m reattention`
# with the rule in a file `my_rules.py`; in a notebook the rule lives in `__main__`.

# %%
plan = prepare(
    ["niah_single", "niah_multikey"],
    ["__main__.OneHead", "consensus", "reattention"],
    Size(lengths=(1000,), draws=3, haystack="noise"),
)
rows = Rows(Path(tempfile.mkdtemp()) / "rows.csv")
run(plan, rows, engine, progress=False)
print(table(summarise(list(read(rows.path)))))

# %% [markdown]
# Three draws tell little: the intervals beside the means say how little. `docs/quality.md` has the built-in rules on
# hundreds of questions over real text. Choose on `--split tune` and publish `--split report`, and no number was chosen by
# the cases that it is reported on.

# %%
engine.close()
