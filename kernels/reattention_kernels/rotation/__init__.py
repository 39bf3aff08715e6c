"""Rotary embeddings of tokens at the positions of their window."""
