"""The KV cache: shared pages of a corpus, and the private tail that every question grows over them."""
