"""What the integrations of all frameworks stand on; nothing else in the library imports it."""
