"""The block problem as a mixed-integer linear program."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from secateur.solvers.exact.convexify import Quadratic, Tangent


class Rows(NamedTuple):
    """Some rows of the program, numbered from 0.

    Attributes:
        rows: the row of each entry.
        columns: its column.
        entries: the entries.
        lower: of each row.
        upper: of each row.
    """

    rows: Int[np.ndarray, " entries"]
    columns: Int[np.ndarray, " entries"]
    entries: Float[np.ndarray, " entries"]
    lower: Float[np.ndarray, " rows"]
    upper: Float[np.ndarray, " rows"]


@dataclass(frozen=True, eq=False)
class Program:
    """Minimise the last column subject to lower <= A z <= upper, the first columns binary.

    The columns z are x, then y_ij = x_i x_j for i < j, then t = l.x + 1/2 x'B x. All but t lie
    between 0 and 1.

    Attributes:
        starts: where each row of A starts, and where the last one ends.
        columns: of A's entries.
        entries: of A.
        lower: of each row.
        upper: of each row.
        first: i of each product.
        second: j of each product.
        unit: what t is counted in: the mean size of what B and l hold.
    """

    starts: Int[np.ndarray, " rows_and_1"]
    columns: Int[np.ndarray, " entries"]
    entries: Float[np.ndarray, " entries"]
    lower: Float[np.ndarray, " rows"]
    upper: Float[np.ndarray, " rows"]
    first: Int[np.ndarray, " products"]
    second: Int[np.ndarray, " products"]
    unit: float

    def extend(self, pruned: Bool[np.ndarray, " n"], objective: float) -> Float[np.ndarray, " columns"]:
        """Say what an assignment gives every column.

        Args:
            pruned: x.
            objective: l.x + 1/2 x'B x.

        Returns:
            z.
        """
        products = pruned[self.first] & pruned[self.second]
        return np.concatenate([pruned, products, [objective / self.unit]]).astype(np.float64)


def linearise(problem: Quadratic, tangents: Sequence[Tangent]) -> Program:
    """Pose the program.

    Args:
        problem: the problem.
        tangents: of convex relaxations; they bound t.

    Returns:
        The program.
    """
    n = problem.linear.size
    first, second = np.triu_indices(n, 1)
    products = n + np.arange(first.size)
    # Only ratios matter to a solver whose tolerances are absolute: let the mean entry be 1.
    unit = problem.size / (n * n + n) or 1.0
    coupling = problem.matrix[first, second]
    parts = [_counts(problem), _counts_of_products(problem, first, second, products)]
    for ends in (first, second):
        parts.append(_sparse([products, ends], [1.0, -1.0], -np.inf, 0.0, coupling < 0))
    parts.append(_sparse([products, first, second], [1.0, -1.0, -1.0], -1.0, np.inf, coupling > 0))
    x, t = np.arange(n), n + first.size
    parts.append(
        _dense(
            np.concatenate([x, products, [t]]),
            np.concatenate([problem.linear + 0.5 * problem.matrix.diagonal(), coupling, [-unit]]) / unit,
            0.0,
            0.0,
        )
    )
    for each in tangents:
        columns, entries = np.append(x, t), np.append(-each.slope / unit, 1.0)
        parts.append(_dense(columns, entries, each.offset / unit, np.inf))
    return _assemble(parts, first, second, unit)


def _sparse(
    columns: list[Int[np.ndarray, " products"]],
    entries: list[float],
    lower: float,
    upper: float,
    where: Bool[np.ndarray, " products"],
) -> Rows:
    """Make a row of the same entries for each product that needs one."""
    number = int(where.sum())
    return Rows(
        np.tile(np.arange(number), len(columns)),
        np.concatenate([column[where] for column in columns]),
        np.repeat(entries, number),
        np.full(number, lower),
        np.full(number, upper),
    )


def _dense(
    columns: Int[np.ndarray, " entries"], entries: Float[np.ndarray, " entries"], lower: float, upper: float
) -> Rows:
    """Make one row."""
    return Rows(np.zeros(columns.size, np.int64), columns, entries, np.array([lower]), np.array([upper]))


def _counts(problem: Quadratic) -> Rows:
    """Hold the sum of x over each group to its count."""
    counts, n = problem.counts.astype(np.float64), problem.groups.size
    return Rows(problem.groups, np.arange(n), np.ones(n), counts, counts)


def _counts_of_products(
    problem: Quadratic,
    first: Int[np.ndarray, " products"],
    second: Int[np.ndarray, " products"],
    products: Int[np.ndarray, " products"],
) -> Rows:
    """Multiply each group's count by each x_i: sum of y_ij over j = (k_g - [i in g]) x_i."""
    n, number = problem.groups.size, problem.counts.size
    variable, group = np.divmod(np.arange(n * number), number)
    times = problem.counts[group] - (problem.groups[variable] == group)
    rows = np.concatenate(
        [
            first * number + problem.groups[second],
            second * number + problem.groups[first],
            np.arange(n * number),
        ]
    )
    columns = np.concatenate([products, products, variable])
    entries = np.concatenate([np.ones(2 * products.size), -times.astype(np.float64)])
    zeros = np.zeros(n * number)
    return Rows(rows, columns, entries, zeros, zeros)


def _assemble(
    parts: Sequence[Rows],
    first: Int[np.ndarray, " products"],
    second: Int[np.ndarray, " products"],
    unit: float,
) -> Program:
    """Put rows below one another, row after row."""
    offsets = np.cumsum([0] + [part.lower.size for part in parts])
    rows = np.concatenate([part.rows + offset for part, offset in zip(parts, offsets, strict=False)])
    order = np.argsort(rows, kind="stable")
    return Program(
        starts=np.searchsorted(rows[order], np.arange(offsets[-1] + 1)),
        columns=np.concatenate([part.columns for part in parts])[order],
        entries=np.concatenate([part.entries for part in parts])[order],
        lower=np.concatenate([part.lower for part in parts]),
        upper=np.concatenate([part.upper for part in parts]),
        first=first,
        second=second,
        unit=unit,
    )
