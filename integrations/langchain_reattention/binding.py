"""What is bound to a LangChain model, tools and forms of answers, as the engine's words; knows no engine."""

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.output_parsers import BaseOutputParser, JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

from reattention_core.errors import InvalidConfigError

Tools = Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool]

METHODS = ("json_schema", "function_calling", "json_mode")


def bound_tools(tools: Tools, tool_choice: dict[str, Any] | str | bool | None) -> dict[str, Any]:
    """Arguments of a call that may use these tools.

    Args:
        tools: whatever LangChain can make a tool of.
        tool_choice: "auto", "none", "any" (or "required", or True), a tool's name, or a dict that holds the name.

    Raises:
        InvalidConfigError: the choice is not allowed.
    """
    converted = [convert_to_openai_tool(tool) for tool in tools]
    names = [str(tool["function"]["name"]) for tool in converted]
    if isinstance(tool_choice, Mapping):
        tool_choice = tool_choice.get("function", tool_choice).get("name")
    words = {"any": "required", True: "required", False: None}
    if tool_choice not in names:
        tool_choice = words.get(tool_choice, tool_choice)
    allowed = (None, "auto", "none", "required", *names)
    if tool_choice not in allowed:
        raise InvalidConfigError(
            f"tool_choice {tool_choice!r} is none of 'auto', 'any', 'none' and the tools: {', '.join(names)}"
        )
    return {"tools": converted, **({"tool_choice": tool_choice} if tool_choice is not None else {})}


def schema_of(response_format: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The schema in a `response_format`; any object for "json_object", None for text.

    Raises:
        InvalidConfigError: it has another form.
    """
    kind = response_format.get("type") if isinstance(response_format, Mapping) else response_format
    if response_format is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    try:
        return dict(response_format["json_schema"]["schema"])
    except (KeyError, TypeError, ValueError):
        raise InvalidConfigError(
            f"response_format is {response_format!r}; it is {{'type': 'json_schema', 'json_schema': {{'schema': …}}}}, "
            "{'type': 'json_object'} or {'type': 'text'}"
        ) from None


def structured(
    bind: Callable[..., Runnable[LanguageModelInput, Any]],
    bind_tools: Callable[..., Runnable[LanguageModelInput, Any]],
    schema: dict[str, Any] | type,
    method: str,
    include_raw: bool,
) -> Runnable[LanguageModelInput, Any]:
    """A model that answers with objects of a schema.

    Args:
        bind: the model's.
        bind_tools: the model's.
        schema: a pydantic class, a TypedDict, a JSON schema or a function's schema.
        method: one of METHODS.
        include_raw: give a dict of "raw", "parsed" and "parsing_error" in place of the object.

    Raises:
        InvalidConfigError: the method is unknown.
    """
    if method not in METHODS:
        raise InvalidConfigError(f"method {method!r} is unknown (there are: {', '.join(METHODS)})")
    model_class: Any = schema if isinstance(schema, type) and is_basemodel_subclass(schema) else None
    asked = {"kwargs": {"method": method}, "schema": schema}
    parser: BaseOutputParser[Any]
    if method == "function_calling":
        name = convert_to_openai_tool(schema)["function"]["name"]
        model = bind_tools([schema], tool_choice=name, ls_structured_output_format=asked)
        parser = JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
        if model_class is not None:
            parser = PydanticToolsParser(tools=[model_class], first_tool_only=True)
    else:
        # In JSON mode, too, the schema is known; there is no reason to allow anything else.
        form = {"type": "json_schema", "json_schema": {"schema": convert_to_json_schema(schema)}}
        model = bind(response_format=form, ls_structured_output_format=asked)
        parser = JsonOutputParser() if model_class is None else PydanticOutputParser(pydantic_object=model_class)
    if not include_raw:
        return model | parser
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | parsed.with_fallbacks([failed], exception_key="parsing_error")
