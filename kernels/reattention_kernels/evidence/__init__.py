"""How much softmax mass every page gets from a question."""
