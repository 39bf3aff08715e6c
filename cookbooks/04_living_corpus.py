# %% [markdown]
# # 4. A corpus that changes
#
# Documents come, change and go. Each was read alone, and a page of the cache has no position before it is used, so an edit
# reads what is new and touches nothing else.

# %%
import tempfile
import time
from pathlib import Path

from transformers.utils import logging

from reattention_core import Changes, Document, Engine

logging.disable_progress_bar()
engine = Engine.from_pretrained(store=tempfile.mkdtemp())

# %% [markdown]
# A folder of notes of an invented shop.

# %%
NOTES = {
    "kettle": "The warranty of the Kestrel kettle lasts five years. Scale and broken lids are excluded. It holds 1.7 litres.",
    "toaster": "The warranty of the Merlin toaster lasts two years. Burnt bread is not covered. It has two slots.",
    "returns": "Goods may be returned within thirty days. The customer pays for the parcel; for broken goods the shop pays.",
    "opening": "The shop in Lowick is open from nine to six. On Saturdays it closes at two, and on Sundays it stays closed.",
    "people": "Ada Lindqvist runs the workshop. Bram Oduya answers the telephone. The founder, Mina Forsell, retired in 2019.",
}
FILLER = "This note was written for the staff of the shop and is kept in the green folder behind the counter. "
folder = Path(tempfile.mkdtemp())
for name, text in NOTES.items():
    (folder / f"{name}.md").write_text(f"# About {name}\n\n{text}\n\n{FILLER * 4}")

# %%
read = []


def counting(done: int, total: int) -> None:
    """Remember how many tokens an edit has read: `progress=` takes any function of tokens done and tokens in all."""
    read.append(done)


def told(what: str, changes: Changes | None = None) -> None:
    """One line on what was read again."""
    print(f"{what}: {max(read, default=0):,} of {shop.n_tokens:,} tokens were read")
    if changes is not None:
        print(f"  {len(changes.added)} added, {len(changes.reread)} changed, {len(changes.removed)} removed")
    read.clear()


shop = engine.ingest(folder, name="shop", progress=counting)
told("ingest")
QUESTION = "How long does the warranty of the kettle last?"
print(shop.ask(QUESTION).text)

# %% [markdown]
# ## Add
#
# What an edit did is what it returns.

# %%
changes = shop.add(
    Document(text="The Harrier fan is quiet. Its warranty lasts one year. " + FILLER * 4, id="fan"), progress=counting
)
told("add", changes)

# %% [markdown]
# ## Refresh
#
# One file changes, one is new, one is gone. `refresh` compares and reads two; `drop=True` lets go of what is no longer there,
# which takes the fan with it, since it is not a file of the folder.

# %%
kettle = folder / "kettle.md"
kettle.write_text(kettle.read_text().replace("five years", "seven years"))
(folder / "parking.md").write_text(f"# Parking\n\nCustomers park behind the mill. {FILLER * 4}")
(folder / "opening.md").unlink()
changes = shop.refresh(folder, drop=True, progress=counting)
told("refresh", changes)
print(shop.ask(QUESTION).text)

# %% [markdown]
# ## A question keeps the documents it began with
#
# An edit puts a new edition in place of the old one. What is being answered goes on over the old one.

# %%
stream = shop.stream(QUESTION)
first = next(stream)
gone = next(one.document.id for one in shop.documents if "kettle" in str(one.document.source))
shop.remove(gone)
print("answered from what is already gone:", first + "".join(stream))
print("a new question reads:", sorted({source.title for source in shop.ask(QUESTION).sources}))

# %% [markdown]
# ## Join
#
# Two corpora become one, and nothing is read again.

# %%
minutes = engine.ingest(
    [
        Document(
            text="The board met in March and chose a new van. The colour of the new van is blue. " + FILLER * 4,
            title="Minutes of the board",
        )
    ],
    name="minutes",
    progress=False,
)
began = time.perf_counter()
both = engine.join("shop", "minutes", name="both")
print(f"{both} in {time.perf_counter() - began:.2f} s")
answer = both.ask("What is the colour of the new van?")
print(answer.text, "—", answer.sources[0].title)

# %% [markdown]
# ## What holds on disk
#
# Every edit of a named corpus is published as a whole, or not at all. Another process that opens it sees the last whole
# edition.

# %%
print(engine.open("shop"))
engine.close()
