"""Runs the cookbooks: each numbered script becomes the notebook beside it, with its outputs; knows nothing of their content."""

import argparse
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

from reattention_core.cli.console import out

HERE = Path(__file__).parent
PYTHON = {"display_name": "Python 3", "language": "python", "name": "python3"}


def notebook(script: Path) -> nbformat.NotebookNode:
    """The notebook of a script, not executed; the same script gives the same notebook, byte for byte."""
    made = jupytext.read(script, fmt="py:percent")
    for number, cell in enumerate(made.cells, 1):
        cell.id = f"cell-{number}"
        cell.metadata = {}
    made.metadata = {"kernelspec": PYTHON, "language_info": {"name": "python"}}
    return made


def main() -> None:
    """Execute all, or those whose names begin as was asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["0"], help="how their names begin, such as 03; all by default")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the notebooks; this one by default")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    for script in sorted(path for path in HERE.glob("0*.py") if path.name.startswith(tuple(asked.names))):
        made, began = notebook(script), time.perf_counter()
        with tempfile.TemporaryDirectory() as sockets:
            # No port is opened: the kernel is spoken to over files.
            over = Config(ConnectionFileMixin={"transport": "ipc", "ip": f"{sockets}/kernel"})
            where = {"metadata": {"path": str(HERE)}}
            NotebookClient(
                made, config=over, timeout=1200, record_timing=False, coalesce_streams=True, resources=where
            ).execute()
        made.metadata = {"kernelspec": PYTHON, "language_info": {"name": "python"}}  # not this machine's
        nbformat.write(made, asked.out / f"{script.stem}.ipynb")
        out.out(f"{script.stem}: {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
