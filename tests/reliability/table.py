"""The table of faults in docs/reliability.md: `python -m tests.reliability.table` runs them all and writes it anew."""

import sys
import tempfile
from pathlib import Path

from tests.reliability import damage, fault, fuzz, identity, running, saving, sharing

DOCS = Path(__file__).parents[2] / "docs" / "reliability.md"
HEAD = "| fault | what is tried, and what must come of it | times | lost |\n| --- | --- | ---: | --- |\n"
FAULTS = [found for module in (saving, sharing, damage, fuzz, identity, running) for found in fault.of(module)]


def rows_of_docs() -> list[str]:
    """Rows of the table as it stands."""
    return _split(DOCS.read_text())[1].splitlines() if DOCS.exists() else []


def _split(text: str) -> tuple[str, str, str]:
    before, behind = text.split(HEAD)
    rows, newline, rest = behind.partition("\n\n")
    return before + HEAD, rows, newline + rest


def main() -> None:
    """Run every fault and write its row."""
    rows = []
    for found in FAULTS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(found.row(found.run(Path(folder))))
            sys.stdout.write(f"{rows[-1]}\n")
    before, _, behind = _split(DOCS.read_text())
    DOCS.write_text(before + "\n".join(rows) + behind)


if __name__ == "__main__":
    main()
