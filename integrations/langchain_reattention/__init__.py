"""ReAttention as a LangChain chat model; knows only where it is."""

try:
    from langchain_reattention.chat_models import ChatReAttention
except ModuleNotFoundError as error:
    if not (error.name or "").startswith("langchain_core"):
        raise
    raise ImportError("LangChain is not installed: pip install 'reattention[langchain]'") from error

__all__ = ["ChatReAttention"]
