"""Attention over selected pages and a tail: gathered, rotated at window positions and attended to in one pass."""
