"""The k best keys of every query: exact top-k by un-rotated q·k."""
