"""The keys that most queries and heads chose."""
