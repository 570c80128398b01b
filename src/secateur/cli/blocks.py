"""What the commands about block problems print."""

from collections.abc import Sequence

from rich.table import Table

from secateur.core.problem import BlockProblem


def facts(rows: Sequence[tuple[str, str]]) -> Table:
    """Set names and values side by side.

    Args:
        rows: names and values.

    Returns:
        The table.
    """
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    return table


def problem_rows(problem: BlockProblem) -> list[tuple[str, str]]:
    """Describe a problem.

    Args:
        problem: the problem.

    Returns:
        Names and values.
    """
    held = problem.groups.unique()
    counts = problem.counts[held].unique().tolist()
    each = f"{counts[0]:,} in each" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,} in each"
    pruned = f"{int(problem.counts.sum()):,}" + (f", {each}" if len(held) > 1 else "")
    form = "dense" if problem.factors is None else f"{problem.factors.shape[1]:,} factors"
    return [
        ("variables", f"{problem.size:,}"),
        ("quadratic part", form),
        ("groups", f"{len(held):,}"),
        ("pruned", pruned),
        ("incumbent", number(_rounded(problem, problem.value(problem.incumbent)))),
    ]


def _rounded(problem: BlockProblem, value: float) -> float:
    """Take what rounding feigns for nothing."""
    return 0.0 if abs(value) <= problem.rounding else value


def number(value: float | None) -> str:
    """Write a value of an objective.

    Args:
        value: it; None where it is not known.

    Returns:
        Such as ``"-0.01234567"``, or ``"-"``.
    """
    return "-" if value is None else f"{value:.7g}"
