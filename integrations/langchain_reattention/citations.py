"""The sources of an answer as LangChain's citations, in `message.content_blocks`; knows no engine.

The framework asks the provider of a message, here us, for its standard blocks. A citation belongs to the whole answer: the
model does not say which sentence rests on which passage.
"""

from langchain_core.messages import AIMessage
from langchain_core.messages import content as blocks


def content_blocks(message: AIMessage) -> list[blocks.ContentBlock]:
    """The text of an answer from a corpus, with a citation for every passage that was read.

    Raises:
        NotImplementedError: it has no sources; the framework then makes the blocks itself.
    """
    sources = message.response_metadata.get("sources")
    if not sources:
        raise NotImplementedError
    citations: list[blocks.Annotation] = [
        blocks.create_citation(
            title=source["title"],
            url=source["source"],
            cited_text=source["quote"],
            **{name: source[name] for name in ("document_id", "start", "end", "score")},
        )
        for source in sources
    ]
    return [blocks.create_text_block(str(message.text), annotations=citations)]
