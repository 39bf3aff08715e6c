"""docs/performance.md says what the rows say."""

from tests.bench.performance_table import PAGE, TABLE, TABLES, page


def test_the_tables_are_those_of_the_rows() -> None:
    text = PAGE.read_text()
    assert {found[1] for found in TABLE.findall(text)} == set(TABLES)
    assert page(text) == text, "run `make performance-table`"
