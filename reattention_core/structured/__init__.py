"""Answers that follow a form: JSON of a schema, tool calls; read `structure` first."""
