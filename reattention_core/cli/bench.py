"""The command that measures answers; knows only its options, all else is in `reattention_bench`.

Nothing that imports torch is imported before the command runs: help must come at once.
"""
# ruff: noqa: D301  # a \b in a docstring keeps the lines of an example apart in the help

from pathlib import Path
from typing import Annotated, Literal

import typer

from reattention_core.cli import options
from reattention_core.cli.console import notes, out, printable
from reattention_core.cli.exits import ending_cleanly


@ending_cleanly()
def bench(
    tasks: Annotated[
        list[str] | None, typer.Argument(metavar="[TASK]...", help="What to ask; `--list` names all.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method", "-m", help="How to answer, as name or name:parameter=value,…; repeat it.  [default: all]"
        ),
    ] = None,
    length: Annotated[list[int] | None, typer.Option("--length", "-n", help="Tokens of documents; repeat it.")] = None,
    depth: Annotated[
        list[float] | None,
        typer.Option(help="Where the needle lies, 0 to 1; repeat it.  [default: spread over the draws]"),
    ] = None,
    draws: Annotated[
        int | None, typer.Option(min=1, help="Cases a length; of a corpus, how many questions.  [default: 10, all]")
    ] = None,
    split: Annotated[
        Literal["tune", "report", "both"],
        typer.Option(help="Half of the seeds and questions: choose on one, publish the other."),
    ] = "report",
    data: Annotated[Path, typer.Option(file_okay=False, help="Folder of corpora and texts.")] = Path("data"),
    haystack: Annotated[str | None, typer.Option(help="essays, noise, needles or the path of a text.")] = None,
    folder: Annotated[Path, typer.Option("--out", file_okay=False, help="Folder of rows and report.")] = Path("bench"),
    mode: Annotated[options.Mode, typer.Option(help="How documents are read.")] = "independent",
    titles: Annotated[bool, typer.Option(help="Whether documents of a corpus keep their titles.")] = True,
    setting: Annotated[
        list[str] | None, typer.Option(help="A field of the engine's Config as name=value; repeat it.")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Measure rows again that failed.")] = False,
    commit: Annotated[str, typer.Option(help="The commit that is measured, where git cannot tell.")] = "",
    report: Annotated[bool, typer.Option(help="Whether to write tables, plots and the page at the end.")] = True,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small set for a CPU, without data: about two minutes.")
    ] = False,
    names: Annotated[bool, typer.Option("--list", help="Name all tasks and methods, and leave.")] = False,
    model: Annotated[str | None, typer.Option(help="Hub id, folder or GGUF file.  [default: the bundled one]")] = None,
    device: options.DeviceOption = None,
    dtype: options.DTypeOption = "auto",
) -> None:
    """Measure answers: tasks by methods, one row a case, then a table, plots and a page.

    A run that was stopped goes on where it was; without a task the report is made anew from all CSV files of the folder.

    \b
    Example:  reattention bench --quick
              reattention bench niah_single -n 16000 -n 64000 -m consensus -m consensus:max_passages=1 -m full
              reattention bench xquad_en --data data --draws 100 -m consensus -m bm25:k=3 -m oracle
    """
    from reattention_bench.case import SPLITS, Size
    from reattention_bench.methods import METHODS
    from reattention_bench.methods.over_corpus import RULES
    from reattention_bench.plan import QUICK, prepare
    from reattention_bench.report import write_report
    from reattention_bench.rows import Rows
    from reattention_bench.run import run
    from reattention_bench.tasks import TASKS
    from reattention_core.models.loading import BUNDLED

    if names:
        for kind, known in (("tasks", TASKS), ("methods", METHODS)):
            out.out(f"{kind}:")
            if known is METHODS:
                out.out(f"  {', '.join(RULES)}: pages chosen by attention; parameters are the rule's fields")
            for name, found in known.items():
                out.out(f"  {name}: {found.summary}")
        return
    chosen = list(tasks or ())
    ways, lengths = list(method or ()), tuple(length or ())
    if quick:
        chosen, ways = chosen or list(QUICK["tasks"]), ways or list(QUICK["methods"])
        lengths, draws, haystack = lengths or QUICK["lengths"], draws or QUICK["draws"], haystack or QUICK["haystack"]
    if report:
        from reattention_bench.extras import need

        need("matplotlib", "matplotlib", "bench")
    if chosen:
        splits = SPLITS if split == "both" else (split,)
        size = Size(lengths, tuple(depth or ()), draws, splits, data, haystack, titles)
        plan = prepare(chosen, ways, size, model or BUNDLED, device, dtype, mode, setting or (), commit)
        rows = Rows(folder / "rows.csv", retry)
        if rows.kept:
            commits = sorted({row["commit"] or "no commit" for row in rows.kept})
            notes.print(
                f"{folder / 'rows.csv'} holds {len(rows.kept):,} rows (measured at {', '.join(commits)}), "
                "which are kept; another --out measures anew",
                style="dim",
            )
        run(plan, rows)
    if report:
        out.out(printable(write_report(folder)))
        notes.print(f"report: {folder / 'report.html'}", style="dim")
