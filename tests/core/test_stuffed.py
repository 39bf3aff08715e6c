"""Prompts as frameworks stuff them, taken apart: which part is asked, which part are the documents, what stays as it came."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.prompts import ChatPromptTemplate
from llama_index.core.prompts import default_prompts as prompts
from llama_index.core.prompts.chat_prompts import CHAT_TEXT_QA_PROMPT, CHAT_TREE_SUMMARIZE_PROMPT

from reattention_core.stuffed import take_apart

DOCUMENTS = "\n\n".join(
    f"Device {i} was made in spring. Its warranty lasts {i} years.\nIs that long? Nobody asked." for i in range(200)
)
QUESTION = "How long does device 7 last?"


def messages(chat: Any) -> list[dict[str, str]]:
    """LlamaIndex's messages as the engine takes them."""
    return [{"role": str(one.role.value), "content": str(one.content)} for one in chat]


def llama_index() -> list[Any]:
    values = {"context_str": DOCUMENTS, "query_str": QUESTION}
    return [
        messages(CHAT_TEXT_QA_PROMPT.format_messages(**values)),
        messages(CHAT_TREE_SUMMARIZE_PROMPT.format_messages(**values)),
        prompts.DEFAULT_TEXT_QA_PROMPT.format(**values),
        prompts.DEFAULT_TREE_SUMMARIZE_PROMPT.format(**values),
    ]


def langchain(*turns: tuple[str, str]) -> list[dict[str, str]]:
    made = ChatPromptTemplate.from_messages(list(turns)).format_messages(context=DOCUMENTS, input=QUESTION)
    roles = {"human": "user", "system": "system", "ai": "assistant"}
    return [{"role": roles[one.type], "content": str(one.content)} for one in made]


LANGCHAIN = [
    (("system", "What is known of devices:\n\n{context}"), ("human", "{input}")),
    (("system", "Answer from the context.\n\n<context>\n{context}\n</context>\n\nBe brief."), ("human", "{input}")),
    (("human", "Answer from the context only:\n\n<context>\n{context}\n</context>\n\nQuestion: {input}"),),
    (("human", "Use the context to answer.\nQuestion: {input}\nContext: {context}\nAnswer:"),),
    (("human", "{context}\n\n{input}"),),
    (("system", "Be brief."), ("human", "Hello"), ("ai", "Hi"), ("human", "Context:\n\n{context}\n\n---\n{input}")),
]


@pytest.mark.parametrize("prompt", [*llama_index(), *[langchain(*turns) for turns in LANGCHAIN]])
def test_the_frameworks_own_prompts(prompt: Any) -> None:
    found = take_apart(prompt)
    assert found is not None
    assert found.question == QUESTION
    # The first and the last short paragraph may be taken for instructions: they stay, and nothing of the rest does.
    inner = DOCUMENTS.split("\n\n")[1:-1]
    assert "\n\n".join(inner) in found.documents
    rest = found.with_documents("…")
    whole = rest if isinstance(rest, str) else "\n".join(one["content"] for one in rest)
    assert not any(part in whole for part in inner)
    assert QUESTION in whole
    assert len(whole) < 1500


@pytest.mark.parametrize("prompt", [*llama_index()[:2], langchain(*LANGCHAIN[1]), langchain(*LANGCHAIN[2])])
def test_lines_that_separate_stay_where_they_are(prompt: list[dict[str, str]]) -> None:
    found = take_apart(prompt)
    assert found is not None and found.documents == DOCUMENTS
    mark = "---------------------" if "-----" in found.content else "context>"
    rest = found.with_documents("…")
    assert isinstance(rest, list)
    assert rest[found.place or 0]["content"].count(mark) == 2
    assert {**rest[found.place or 0], "content": ""} == {**prompt[found.place or 0], "content": ""}


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "The quick brown fox jumps over the lazy dog. " * 500,
        "It was a long night.\n\n" * 300 + "And then",
        [],
        [{"role": "assistant", "content": "text " * 900}],
        [{"role": "user", "content": None}, {"role": "user", "content": ""}],
        [{"role": "user", "content": "one paragraph that is everything " * 400}],
        [{"role": "user", "content": "text\n\n" * 900 + "a question longer than a question may be " * 200}],
    ],
    ids=lambda prompt: repr(prompt)[:40],
)
def test_where_nothing_is_asked_of_anything(prompt: Any) -> None:
    assert take_apart(prompt) is None


def test_a_line_that_separates_inside_of_the_documents_loses_nothing() -> None:
    """What follows it is kept in the prompt, so that the model sees it in any case."""
    prompt = f"Read this.\n\n{DOCUMENTS}\n---\nThe appendix.\n\n{QUESTION}"
    found = take_apart(prompt)
    assert found is not None
    assert found.question == QUESTION
    assert found.with_documents("…") == f"Read this.\n\n…\n---\nThe appendix.\n\n{QUESTION}"


PARTS = st.lists(
    st.one_of(
        st.sampled_from(
            ["\n\n", "\n", "---\n", "<context>\n", "Question: ", "Answer:", "Who?", "x" * 1200, "漢字 ", "a: "]
        ),
        st.text(max_size=12),
    ),
    max_size=40,
).map("".join)


@settings(deadline=None, max_examples=300)
@given(
    contents=st.lists(PARTS, min_size=1, max_size=3), roles=st.lists(st.sampled_from(["user", "system"]), min_size=3)
)
def test_whatever_is_taken_apart_can_be_put_together_again(contents: list[str], roles: list[str]) -> None:
    chat = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    for prompt in (contents[0], chat):
        found = take_apart(prompt)
        if found is not None:
            assert found.with_documents(found.documents) == prompt
            assert found.question.strip() == found.question != ""
            assert found.documents.strip() and 0 <= found.start < found.end <= len(found.content)
