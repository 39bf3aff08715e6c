"""The k best keys of every query: exact top-k by un-rotated q·k."""

WORKSPACE = 1 << 30
"""Bytes of block maxima in memory at once; more queries than that holds are taken in turns."""
