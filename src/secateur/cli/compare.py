"""`secateur compare`: runs side by side."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from secateur.cli.tables import metric, seconds
from secateur.core.errors import SecateurError
from secateur.report import read_run, save_comparison


def run_compare(folders: Sequence[str], figure: str | None) -> int:
    """Print a table of runs, the lowest loss first within each density.

    Args:
        folders: run folders.
        figure: a picture to write as well.

    Returns:
        The status.

    Raises:
        SecateurError: no run was named, one cannot be read, or the figure is of no known kind.
    """
    if not folders:
        raise SecateurError(
            "name the runs to compare, such as `secateur compare runs/digits-1 runs/digits-2`."
        )
    if figure and Path(figure).suffix not in (".svg", ".png", ".pdf"):
        raise SecateurError(f"a figure is a .svg, .png or .pdf file, not {figure}.")
    from secateur.evaluation import cautions, compare

    read = {folder: read_run(folder) for folder in folders}
    plain = len({run.name for run in read.values()}) == len(read)
    runs = {run.name if plain else folder: run for folder, run in read.items()}
    rows = compare({name: run.report for name, run in runs.items()})
    names = sorted({n for row in rows for n in row.metrics}, key=lambda n: (n != "loss", n))
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("run")
    table.add_column("method")
    for name in ("density", *names, "dense loss", "time", "seed"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.name,
            row.method or "-",
            "-" if row.density is None else f"{row.density:.4g}",
            *(metric(name, row.metrics.get(name)) for name in names),
            metric("loss", row.dense.get("loss")),
            "-" if row.seconds is None else seconds(row.seconds),
            "-" if row.seed is None else str(row.seed),
        )
    console = Console()
    console.print(table)
    for words in cautions(rows):
        console.print(f"[yellow]note: {words}", highlight=False, soft_wrap=True)
    if figure:
        console.print(
            f"wrote {save_comparison([runs[row.name] for row in rows], figure)}",
            highlight=False,
            soft_wrap=True,
        )
    return 0
