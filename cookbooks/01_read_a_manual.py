# %% [markdown]
# # 1. Read a manual, and ask it
#
# A part of Python's own language reference is read once. It is longer than what the bundled model can look at, and no
# question reads more of it than a few hundred tokens. Everything here runs without a network, on two CPU cores.
# The times shown were taken on two cores without a GPU.

# %%
import tempfile
import time
from pydoc_data.topics import topics

from transformers.utils import logging

from reattention_core import Document, Engine

logging.disable_progress_bar()
store = tempfile.mkdtemp()  # left out, corpora are saved in the user's cache folder
engine = Engine.from_pretrained(store=store)
print(f"{engine.name} was trained on {engine.window:,} tokens")

# %% [markdown]
# ## Read
#
# A document is a text with a title; files and folders work as well (`engine.ingest("docs/")`). Each one is read behind the
# same 32 tokens and alone, so the time grows with the length and not with its square.

# %%
NAMES = (
    *("assert", "break", "continue", "del", "for", "global", "lambda", "nonlocal", "pass", "power"),
    *("raise", "return", "shifting", "string-methods", "truth", "while"),
)
began = time.perf_counter()
manual = engine.ingest([Document(title=name, text=topics[name]) for name in NAMES], name="manual", progress=False)
seconds = time.perf_counter() - began
print(f"{manual}: {seconds:.0f} s, {manual.n_tokens / seconds:.0f} tokens a second, {manual.nbytes / 1e6:.0f} MB")

# %% [markdown]
# ## Ask
#
# An answer says which passages it was read from, with their place in the document, and what it took.

# %%
questions = (
    "What is the default tab size of expandtabs?",
    "Which statement is used for repeated execution as long as an expression is true?",
)
for question in questions:
    answer = manual.ask(question)
    best = answer.sources[0]
    print(f"{question}\n  {answer.text}")
    print(f"  from {best.title}, characters {best.start:,} to {best.end:,}, score {best.score:.2f}")
    print(f"  read {answer.usage.window_tokens:,} of {manual.n_tokens:,} tokens in {answer.usage.seconds:.1f} s\n")

# %% [markdown]
# ## Look at the evidence
#
# The last line of a cell shows a page: the passages in their documents, where in all the documents the evidence lies, and
# the time. `answer.show().save("report.html")` writes it to a file, `reattention ask manual "…" --html report.html` does the
# same from a shell. It has no script and loads nothing. (Where no frame can be shown, the page is a few lines of text.)

# %%
answer.show()

# %% [markdown]
# ## Passages without an answer
#
# `find` stops before the model writes. This is what a retriever gives, for a program that reads passages itself.

# %%
for source in manual.find("How do I leave a loop early?", k=3):
    print(f"{source.score:.2f}  {source.title}: {' '.join(source.quote.split())[:90]} …")

# %% [markdown]
# ## Save, and open again
#
# The corpus was saved under its name while it was read. Another process opens it without reading anything again; on a CPU it
# stays on disk, and a question brings the parts it needs into memory.

# %%
began = time.perf_counter()
again = engine.open("manual")
print(f"{again}: {time.perf_counter() - began:.2f} s")
print(again.ask(questions[0]).text)

# %% [markdown]
# ## What it does not do
#
# The model has 135 million parameters: it finds well and words badly, and it does not say when the documents hold no
# answer. The scores do: where nothing answers, the evidence is spread and no passage has much of it. That is a hint and no
# rule, so the passages are there to be looked at.

# %%
answer = manual.ask("Who was the first president of France?")
print(answer.text)
for source in answer.sources:
    print(f"  {source.score:.2f}  {source.title}: {' '.join(source.quote.split())[:80]} …")

# %%
engine.close()
