"""The page of measured quality says what the kept rows say."""

from tests.bench.quality_table import tables, written


def test_the_tables_are_those_of_the_rows() -> None:
    assert written() == tables(), "run `make quality-table`"
