# %% [markdown]
# # 3. A LangChain agent over a corpus
#
# A chat model with documents in it, an agent in front of which the documents lie, an agent with a calculator, an object out
# of the documents, and answers as they are drawn. The bundled model is small, and where it fails this notebook shows it
# failing: change one line, and a model that was trained to call tools runs the same code.

# %%
import tempfile

from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call
from langchain_core.tools import tool
from pydantic import BaseModel
from transformers.utils import logging

from langchain_reattention import ChatReAttention, corpus_tool
from langchain_reattention.middleware import CorpusMiddleware
from reattention_core import Document, Engine

logging.disable_progress_bar()
engine = Engine.from_pretrained(store=tempfile.mkdtemp())  # or: "a/model-with-tools"

# %% [markdown]
# Notes of an invented shop, read once and saved under a name.

# %%
NOTES = {
    "kettle": "The warranty of the Kestrel kettle lasts five years. Scale and broken lids are excluded. It holds 1.7 litres.",
    "toaster": "The warranty of the Merlin toaster lasts two years. Burnt bread is not covered. It has two slots.",
    "returns": "Goods may be returned within thirty days. The customer pays for the parcel; for broken goods the shop pays.",
    "opening": "The shop in Lowick is open from nine to six. On Saturdays it closes at two, and on Sundays it stays closed.",
    "people": "Ada Lindqvist runs the workshop. Bram Oduya answers the telephone. The founder, Mina Forsell, retired in 2019.",
}
FILLER = "This note was written for the staff of the shop and is kept in the green folder behind the counter. " * 4
documents = [Document(text=f"{text}\n\n{FILLER}", title=f"About {name}") for name, text in NOTES.items()]
engine.ingest(documents, name="shop", progress=False)
QUESTION = "How long does the warranty of the kettle last?"

# %% [markdown]
# ## A chat model that knows the documents

# %%
shop = ChatReAttention(engine=engine, corpus="shop", max_tokens=48)
message = shop.invoke(QUESTION)
print(message.content)
for source in message.response_metadata["sources"]:
    print(f"  {source['score']:.2f}  {source['title']}: {source['quote'][:60]} …")

# %% [markdown]
# ## As it is drawn

# %%
for chunk in shop.stream("Who pays for the parcel?"):
    print(chunk.content, end="|")

# %% [markdown]
# ## An object
#
# Every token is held to the schema, so an object comes out of any model; what stands in it is as good as the model.


# %%
class Warranty(BaseModel):
    """What the notes say of a warranty."""

    product: str
    years: int


shop.with_structured_output(Warranty).invoke(QUESTION)

# %% [markdown]
# ## An agent with the documents in front
#
# Every question is looked up, and the model sees what was found: no decision is asked of it. The passages are in the state.

# %%
chat = ChatReAttention(engine=engine, max_tokens=48, stop=["</tool_response>"])
agent = create_agent(chat, middleware=[CorpusMiddleware("shop", k=1, engine=engine)])
state = agent.invoke({"messages": [{"role": "user", "content": QUESTION}]})
print(state["messages"][-1].content)
print("looked up:", [passage.metadata["title"] for passage in state["passages"]])

# %% [markdown]
# ## An agent with tools
#
# The corpus as a tool and a calculator: the model decides which to call. This is how an agent is written for a model that
# was trained to call tools. The bundled one was not, and answers out of nothing:


# %%
@tool
def multiply(a: float, b: float) -> float:
    """Multiply two numbers."""
    return a * b


def told(state):
    for message in state["messages"]:
        calls = [f"calls {call['name']}({call['args']})" for call in getattr(message, "tool_calls", [])]
        print(f"{message.type:>6}: {message.content or ', '.join(calls)}")


find = corpus_tool("shop", "Looks up what the shop's notes say.", k=1, engine=engine)
agent = create_agent(chat, [find, multiply])
told(agent.invoke({"messages": [{"role": "user", "content": "What is 17 times 24?"}]}))

# %% [markdown]
# A small model can be helped by asking less of it. Here its first step must be a call of the calculator; it fills in the
# numbers, and answers freely once it has the result.


# %%
@wrap_model_call
def calculates_first(request, handler):
    """The model's step after a question is a call; after the result it is free."""
    if request.messages[-1].type == "human":
        request = request.override(tool_choice="multiply")
    return handler(request)


agent = create_agent(chat, [multiply], middleware=[calculates_first])
told(agent.invoke({"messages": [{"role": "user", "content": "What is 17 times 24?"}]}))

# %% [markdown]
# ## An agent, streamed
#
# Steps as they are done, and the tokens of the last one as they are drawn.

# %%
for kind, part in agent.stream({"messages": [("user", "What is 3 times 7?")]}, stream_mode=["updates", "messages"]):
    if kind == "messages":
        print(part[0].content, end="|")
    else:
        print(f"\n[{', '.join(part)} done]")

# %%
engine.close()
