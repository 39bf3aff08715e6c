"""The README says what the tests show."""

import re

from tests.core.support_table import README, table, written


def test_the_table_of_families_is_what_attaching_gives() -> None:
    assert written() == table(), "run `make support`"


def test_commands_that_the_readme_names_exist() -> None:
    makefile = (README.parent / "Makefile").read_text()
    for target in set(re.findall(r"\bmake ([\w-]+)", README.read_text())):
        assert f"\n{target}:" in makefile, target
