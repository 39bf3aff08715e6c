# %% [markdown]
# # 5. How it selects what to read
#
# One sentence lies in pages of text, and a question asks for it. Which of the model's heads look at it, what subtracting an
# empty question does, and what three rules read.

# %%
import tempfile
from typing import ClassVar

import matplotlib.pyplot as plt
import torch
from transformers.utils import logging

from reattention_core import Consensus, Document, Engine, Selector
from reattention_core.cache.pages import PAGE
from reattention_core.select import mass
from reattention_core.select.base import Head
from reattention_core.select.closeness import closeness, rarity

logging.disable_progress_bar()
engine = Engine.from_pretrained(store=tempfile.mkdtemp())

# %% [markdown]
# ## The text
#
# A walk round an invented harbour, and in its middle the sentence that is asked for.

# %%
WALK = (
    "The path leaves the harbour by the old customs house and follows the sea wall to the east. Gulls sit on the posts, and "
    "at low water the ribs of a barge come out of the mud.",
    "Behind the rope works a lane climbs to the chapel. Its windows were made by a glazier from the islands, who took fish "
    "for payment and never came back for the rest.",
    "From the chapel one sees both bays. The eastern one is deep and was used by the navy; the western one is full of sand, "
    "and children look for shells in it.",
    "Beyond the allotments the path becomes a track between hedges. Blackberries are ripe in September, and nobody minds if "
    "walkers take a few.",
    "The mill at the ford grinds no longer. Its wheel turns when the river is high, and the miller's daughter sells bread "
    "from the window on Fridays.",
    "A bench was put up for a postman who walked this round for forty years. The view goes over the marsh to the lighthouse, "
    "which is lit by hand.",
)
NEEDLE = "The gate of the boat yard opens with the number 48213."
QUESTION = "Which number opens the gate of the boat yard?"
pieces = [f"{WALK[n % 6]}\n\n" for n in range(36)]
pieces.insert(20, f"{NEEDLE}\n\n")
corpus = engine.ingest(Document(text="".join(pieces), title="walk"), strategy="longheads", progress=False)
text = corpus.documents[0]
at = text.document.text.index(NEEDLE)
needle_page = 1 + int((text.spans[:, 0] >= at).nonzero()[0]) // PAGE
print(f"{corpus.n_tokens:,} tokens, {corpus.pages.n_pages} pages; the needle begins on page {needle_page}")

# %% [markdown]
# ## What every head looks at
#
# A rule of one's own sees what `consensus` sees. This one keeps it for us and leaves the choice to `consensus`.

# %%
kept = {}


class Looking(Selector):
    """`consensus`, observed."""

    name: ClassVar[str] = "looking"

    def reader(self, context):
        question = context.question
        probed = question.probe(question.ids, question.asking)
        kept["asked"] = probed.queries  # [heads, tokens, dimension] of every layer
        kept["layer"], kept["values"] = question.trusted().layer, [own[:, question.wording] for own in probed.values]
        kept["empty"] = question.probe(question.empty, slice(0, len(question.empty))).queries
        kept["heads"], kept["scaling"] = question.trusted().heads, context.scaling
        return Consensus().reader(context)


print(corpus.ask(QUESTION, strategy=Looking()).text)
pages, asked, empty = corpus.pages, kept["asked"], kept["empty"]

# %% [markdown]
# The question runs behind the 32 tokens that stand before every document, and behind nothing else. Its queries meet the
# keys of all pages, and a softmax over the corpus says where each head would look. The same is done for an empty question
# ("What is it?"): what a head looks at whatever is asked says nothing about this question.

# %%
every = [Head(layer, head, 1.0) for layer, queries in enumerate(asked) for head in range(len(queries))]
with_question = mass(pages, asked, kept["scaling"], every)  # [heads, pages]
without = mass(pages, empty, kept["scaling"], every)
gain = (with_question - without).clamp(min=0)

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 7), sharey=True)
for axes, what, title in (
    (left, with_question, "attention of the question"),
    (right, gain, "beyond the empty question"),
):
    axes.imshow(what.sqrt(), aspect="auto", cmap="magma", interpolation="nearest")
    axes.axvline(needle_page, color="white", linewidth=0.5, linestyle=":")
    axes.set(title=title, xlabel="page")
left.set_ylabel("head, by layer")
left.set_yticks(range(0, len(every), 5 * len(asked[0])), [f"layer {n}" for n in range(0, len(asked), 5)])
plt.tight_layout()
plt.show()

# %% [markdown]
# Most heads look at the same few pages whatever is asked. Few look for what the question asks, and those are found by an
# exam on invented texts, once for every model:

# %%
for head in kept["heads"][:12]:
    share = gain[every.index(Head(head.layer, head.head, 1.0))]
    rank = int((share > share[needle_page]).sum())
    print(
        f"layer {head.layer:2}, head {head.head}: trusted {head.trust:.2f}, needle's page has rank {rank} of {len(share)}"
    )

# %% [markdown]
# ## Page by page
#
# All heads alike, all heads beyond the empty question, and the trusted twelve, each as shares of the whole. The last is no
# attention: how close a page comes to the question's words, by the values of the layer that did best in the same exam, rare
# words counting most. `consensus` adds it to the logarithm of the heads' evidence.

# %%
trusted = [every.index(Head(head.layer, head.head, 1.0)) for head in kept["heads"][:12]]
weights = torch.tensor([head.trust for head in kept["heads"][:12]])
votes = weights @ (gain[trusted] / gain[trusted].sum(1, keepdim=True).clamp(min=1e-9))
same, close = (closeness(pages, kept["values"][layer], layer) for layer in (0, kept["layer"]))
near = rarity(same[:, 1:]) @ close
near[0] = -torch.inf  # the sink
rows = {
    "all heads": with_question.sum(0),
    "beyond the empty question": gain.sum(0),
    "twelve trusted heads": votes,
    f"closeness, layer {kept['layer']}": near.softmax(0),
}
figure, axes = plt.subplots(4, 1, figsize=(11, 6.5), sharex=True)
for one, (name, evidence) in zip(axes, rows.items(), strict=True):
    shares = evidence / evidence.sum()
    colors = ["tab:orange" if page == needle_page else "tab:blue" for page in range(len(shares))]
    one.bar(range(len(shares)), shares, color=colors)
    rank = int((shares > shares[needle_page]).sum())
    one.set_title(f"{name}: the needle's page (orange) has {float(shares[needle_page]):.0%}, rank {rank}", fontsize=10)
axes[-1].set_xlabel("page")
plt.tight_layout()
plt.show()

# %% [markdown]
# ## Three rules on the same needle
#
# `reattention` and `longheads` choose anew for every layer and chunk, as published; `consensus` chooses once, compares the
# best passages by how likely each makes the question, and reads few. Here the published rules look at the whole text, for
# it fits their windows, and what a window holds beyond the evidence hurts a small model more than a missing page does. How
# the rules part as the corpus grows is in `docs/quality.md`.

# %%
for strategy in ("consensus", "reattention", "longheads"):
    answer = corpus.ask(QUESTION, strategy=strategy, max_new_tokens=24)
    usage = answer.usage
    holds = [number for number, source in enumerate(answer.sources, 1) if "48213" in source.quote]
    print(f"{strategy:12} {' '.join(answer.text.split())[:60]!r}")
    print(
        f"{'':12} {usage.window_tokens:,} tokens looked at, {usage.seconds:.1f} s, needle in source {holds or 'none'}"
    )

# %%
engine.close()
