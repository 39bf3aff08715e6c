"""The frameworks' own chains over a long stuffed prompt: our model in them, and nothing else of ours."""

import random
from collections.abc import Iterator

import pytest
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_core.documents import Document as Page
from langchain_core.prompts import ChatPromptTemplate
from langchain_text_splitters import RecursiveCharacterTextSplitter
from llama_index.core import Document, SummaryIndex
from llama_index.core.node_parser import SentenceSplitter

from langchain_reattention import ChatReAttention
from llama_index.llms.reattention import ReAttentionLLM
from reattention_core import Engine

pytestmark = [
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince211"),
]

PROMPT = ChatPromptTemplate.from_messages(
    [("system", "Answer the question from the context.\n\n<context>\n{context}\n</context>"), ("user", "{question}")]
)


def text_of(names: list[str]) -> str:
    draw = random.Random(0)
    verbs = ["repaired the roof of", "painted", "sold", "wrote a letter about", "measured", "forgot the key of"]
    places = ["the mill", "the harbour office", "the school", "the chapel", "the bakery", "the old bridge"]
    return "\n\n".join(
        f"In the year {1800 + i} {name} {draw.choice(verbs)} {draw.choice(places)}. Nobody in the village was surprised."
        for i, name in enumerate(names)
    )


def llama_index(engine: Engine, text: str, **settings: int) -> SummaryIndex:
    nodes = SentenceSplitter(chunk_size=256, chunk_overlap=0).get_nodes_from_documents([Document(text=text)])
    return SummaryIndex(nodes).as_query_engine(llm=ReAttentionLLM(engine=engine, **settings), response_mode="compact")


def langchain(engine: Engine, text: str, question: str, **settings: int) -> str:
    splitter = RecursiveCharacterTextSplitter(chunk_size=1000, chunk_overlap=0)
    pages = splitter.split_documents([Page(page_content=text)])
    assert len(pages) > 3
    chain = create_stuff_documents_chain(ChatReAttention(engine=engine, **settings), PROMPT)
    return str(chain.invoke({"context": pages, "question": question}))


@pytest.mark.shows("stock chains over a long stuffed prompt")
@pytest.mark.parametrize("framework", ["llama_index", "langchain"])
def test_a_stuffed_prompt_is_one_call_over_a_few_passages_and_the_text_is_read_once(
    framework: str, engine: Engine
) -> None:
    text = text_of([f"Person {i}" for i in range(40)])
    asking = llama_index(engine, text, max_tokens=4)

    def ask(question: str) -> str:
        return (
            str(asking.query(question))
            if framework == "llama_index"
            else langchain(engine, text, question, max_tokens=4)
        )

    before = engine.stats()
    assert ask("What did Person 7 do?")
    first = engine.stats()
    assert first.requests["answered"] == 1
    n = len(engine.tokens.encode(text).ids)
    assert first.tokens_read - before.tokens_read > n > 2 * engine.window
    assert ask("What did Person 30 do?")
    second = engine.stats()
    assert second.tokens_read - first.tokens_read < engine.window
    assert second.tokens_cached - first.tokens_cached > 0.9 * n


@pytest.fixture(scope="module")
def bundled() -> Iterator[Engine]:
    """The bundled model as if it had been trained on 1,024 tokens, so that a short text is beyond its window."""
    with Engine.from_pretrained() as engine:
        engine.attachment.window = 1024
        yield engine


@pytest.mark.shows("stock chains over a long stuffed prompt")
@pytest.mark.parametrize("framework", ["llama_index", "langchain"])
def test_the_bundled_model_finds_the_needle(framework: str, bundled: Engine) -> None:
    names = [
        f"{first} {last}" for last in ("Holm", "Berg", "Lind") for first in ("Ada", "Bo", "Carl", "Dora", "Eva", "Finn")
    ]
    half = text_of(names * 3)
    text = f"{half}\n\nThe special magic number for the lighthouse is 48213. Remember it.\n\n{half}"
    assert len(bundled.tokens.encode(text).ids) > 2 * bundled.window
    question = "What is the special magic number for the lighthouse?"
    if framework == "llama_index":
        response = llama_index(bundled, text, max_tokens=24).query(question)
        assert "48213" in str(response)
    else:
        assert "48213" in langchain(bundled, text, question, max_tokens=24)
