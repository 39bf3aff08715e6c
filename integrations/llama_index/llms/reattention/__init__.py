"""ReAttention as a LlamaIndex language model; knows only where it is."""

try:
    from llama_index.llms.reattention.base import ReAttentionLLM
except ModuleNotFoundError as error:
    if not (error.name or "").startswith("llama_index.core"):
        raise
    raise ImportError("LlamaIndex is not installed: pip install 'reattention[llama-index]'") from error

__all__ = ["ReAttentionLLM"]
