"""New keys and values into their pages, with their 8-bit index."""
