"""The quality lab behind `reattention bench`: tasks, methods and tables; nothing of it is used to answer a user's question.

`tasks` says what is asked, `methods` how it is answered, `run` brings both together and appends rows to a CSV file, and
`report` makes tables, plots and a page from the rows. Imports go one way: this package knows the core, never the reverse.
"""
