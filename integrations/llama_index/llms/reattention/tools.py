"""LlamaIndex's tools as the engine's, and the engine's calls as LlamaIndex's; knows no engine."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatResponse, ToolCallBlock
from llama_index.core.llms.llm import ToolSelection

if TYPE_CHECKING:
    from llama_index.core.tools.types import BaseTool


def prepared(tools: Sequence["BaseTool"], parallel: bool, required: bool, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a call that may use tools.

    Args:
        tools: that may be called.
        parallel: whether there may be several calls.
        required: whether there must be one.
        given: further arguments of the call; `tool_choice` among them may name a tool, or be "any", "auto" or "none".
    """
    rest = dict(given)
    choice = rest.pop("tool_choice", None)
    if isinstance(choice, Mapping):
        choice = choice.get("function", choice).get("name")
    # Some programs of the framework pass None beside `required`.
    choice = {None: "required" if required else "auto", "any": "required"}.get(choice, choice)
    if not tools:
        return rest
    listed = [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools]
    return {"tools": listed, "tool_choice": choice, "parallel_tool_calls": parallel, **rest}


def selections(response: ChatResponse, error_on_no_tool_call: bool) -> list[ToolSelection]:
    """The calls in a response.

    Raises:
        ValueError: there is none, and that is an error.
    """
    calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
    if error_on_no_tool_call and not calls:
        raise ValueError(f"expected a call of a tool, but the model said {response.message.content!r}")
    return [
        ToolSelection(
            tool_id=call.tool_call_id or "", tool_name=call.tool_name, tool_kwargs=_arguments(call.tool_kwargs)
        )
        for call in calls
    ]


def _arguments(given: dict[str, Any] | str) -> dict[str, Any]:
    return dict(json.loads(given)) if isinstance(given, str) else given
