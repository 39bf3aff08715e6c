"""The table of docs/frameworks.md is what the tests say."""

from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from tests.frameworks.table import FEATURES, shown, table, written
from tests.frameworks.test_langchain_standard import NOT_APPLICABLE, SCRIPTED


def test_the_table_is_up_to_date() -> None:
    assert written() == table(), "write it anew: python -m tests.frameworks.table"


def test_every_feature_has_a_test_and_every_mark_a_feature() -> None:
    marked = [one.feature for one in shown()]
    assert set(marked) == set(FEATURES)
    assert len(set(FEATURES)) == len(FEATURES)


def test_the_standard_tests_that_are_named_exist() -> None:
    for name in (*SCRIPTED, *NOT_APPLICABLE):
        assert hasattr(ChatModelIntegrationTests, name) or hasattr(ChatModelUnitTests, name), name
