"""Hugging Face causal LMs: loading one, and attaching to it without modelling code."""
