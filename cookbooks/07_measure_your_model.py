# %% [markdown]
# # 7. Measure your own model
#
# Any Hugging Face model: is it attached, what does its cache take, how fast does it read and answer on your machine, and
# does it find what it is asked for. Change `MODEL` and run the notebook again.
# The times shown were taken on two cores without a GPU.

# %%
import tempfile
import time
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from reattention_bench.case import Size
from reattention_bench.plan import prepare
from reattention_bench.rows import Rows, read
from reattention_bench.run import run
from reattention_bench.summary import summarise, table
from reattention_core import Document, Engine
from reattention_core.errors import UnsupportedModelError

logging.disable_progress_bar()
MODEL = "smollm2-135m-instruct"  # or a hub id, a folder, a GGUF file

# %% [markdown]
# ## Is it attached?
#
# Attaching compares the model's logits with and without us, in one pass and through the cache. A model that has an engine
# has passed.

# %%
began = time.perf_counter()
engine = Engine.from_pretrained(MODEL, store=tempfile.mkdtemp())
attachment = engine.attachment
model = attachment.model
print(
    f"{engine.name}: {model.config.model_type}, {model.num_parameters() / 1e6:.0f} million parameters,",
    f"{model.dtype} on {model.device}",
)
print(
    f"attached in {time.perf_counter() - began:.1f} s; {len(attachment.shapes)} layers, trained window {engine.window:,} tokens"
)

# %% [markdown]
# One that has learned its positions by heart cannot be attached, because a page could not be moved. The error names what is
# in the way.

# %%
learned = GPT2Config(n_layer=2, n_head=2, n_embd=32, bos_token_id=0, eos_token_id=0)
try:
    Engine(GPT2LMHeadModel(learned).eval(), engine.tokenizer)
except UnsupportedModelError as error:
    print(error)

# %% [markdown]
# ## Which heads find what is asked?
#
# They are examined once, on invented texts, and kept in a file. Trust is the share of a head's attention that goes to the
# text that answers; a model whose best head has little is one that `consensus` will not work well with.

# %%
with engine.busy():
    heads = engine.trusted.heads
print(", ".join(f"layer {head.layer} head {head.head}: {head.trust:.2f}" for head in heads[:6]))

# %% [markdown]
# ## Speed and memory
#
# Reading, the first token and the further ones, over a text of any length that you set.

# %%
PARAGRAPH = (
    "The harbour office keeps a list of all boats. A boat that leaves is crossed out, and one that comes is added. "
)
documents = [Document(text=PARAGRAPH * 12, title=f"list {n}") for n in range(6)]
began = time.perf_counter()
corpus = engine.ingest(documents, progress=False)
seconds = time.perf_counter() - began
print(f"read {corpus.n_tokens:,} tokens at {corpus.n_tokens / seconds:,.0f} tokens a second")
print(
    f"cache: {corpus.nbytes / corpus.n_tokens / 1024:.1f} KiB a token,",
    f"{corpus.nbytes / corpus.n_tokens / 1000:.0f} GB for a million tokens",
)
usage = corpus.ask("What is done with a boat that leaves?", max_new_tokens=24, stop=()).usage
after = usage.seconds - usage.first_token_seconds
print(
    f"answer: {usage.recall_seconds:.2f} s to find what to read, first token after {usage.first_token_seconds:.2f} s, "
    f"then {after / max(usage.completion_tokens - 1, 1):.3f} s a token"
)

# %% [markdown]
# ## Does it find what it is asked for?
#
# The quality lab puts the same cases to the rules, to the stock model with everything in its window (`full`), and to the
# model with no documents at all (`closed`): what a method is worth lies between the two. On the command line:
# `reattention bench niah_single -n 1000 --draws 3 --haystack noise -m consensus -m reattention -m full -m closed --model …`

# %%
plan = prepare(
    ["niah_single"],
    ["consensus", "reattention", "full", "closed"],
    Size(lengths=(1000,), draws=3, haystack="noise"),
    model=MODEL,
)
rows = Rows(Path(tempfile.mkdtemp()) / "rows.csv")
run(plan, rows, engine, progress=False)
print(table(summarise(list(read(rows.path)))))

# %% [markdown]
# Three draws at one length show that it runs. For a figure to trust: more draws, lengths beyond the window (there `full`
# fails and costs its square), essays in place of noise, and `reattention bench --help`. Say what you measured with:

# %%
print(
    f"torch {torch.__version__}, {torch.get_num_threads()} threads,",
    torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU",
)
