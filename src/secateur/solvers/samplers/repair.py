"""From any zeros and ones to feasible ones."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from secateur.core.problem import BlockProblem

# A round mends this part of what is missing, and one variable at least.
_SHARE = 16


def repair(problem: BlockProblem, assignments: Bool[Tensor, "m n"]) -> Bool[Tensor, "m n"]:
    """Flip variables until every group has its count, each time those that raise the objective least.

    With fields f = l + B x, pruning i costs f_i + 1/2 B_ii and restoring j costs 1/2 B_jj - f_j.
    A group that is at most 16 off is mended one variable at a time, with exact costs; one that is
    further off, by a sixteenth of the rest at a time, so that there are O(log n) rounds of one
    product with B each. Groups are mended side by side. Ties go to lower positions.

    Args:
        problem: the problem.
        assignments: any x, one a row.

    Returns:
        Feasible assignments; those that were are unchanged.
    """
    mended = assignments.clone()
    groups, own, multiply = problem.groups, _own(problem), _multiplication(problem)
    rows = torch.arange(len(mended), device=mended.device)
    while True:
        surplus = _totals(mended[rows], groups, problem.counts.numel()) - problem.counts
        off = surplus.ne(0).any(1)
        rows, surplus = rows[off], surplus[off]
        if rows.numel() == 0:
            return mended
        x = mended[rows]
        fields = problem.linear.double() + multiply(x.double())
        cost = 0.5 * own + torch.where(x, -fields, fields)
        # Ones go where there are too many, and come where there are too few.
        allowed = torch.where(x, surplus[:, groups] > 0, surplus[:, groups] < 0)
        quota = (surplus.abs() + _SHARE - 1) // _SHARE
        first = _ranks(torch.where(allowed, cost, torch.inf), groups) < quota[:, groups]
        mended[rows] = x ^ (allowed & first)


def objective(problem: BlockProblem, assignments: Bool[Tensor, "m n"]) -> Float[Tensor, " m"]:
    """Evaluate many assignments at once, in float64.

    Args:
        problem: the problem.
        assignments: any x, one a row.

    Returns:
        c + l.x + 1/2 x'B x of each, in the unit of the loss.
    """
    x = assignments.double()
    return problem.constant + x @ problem.linear.double() + 0.5 * (x * _multiplication(problem)(x)).sum(1)


def _totals(x: Bool[Tensor, "m n"], groups: Int[Tensor, " n"], number: int) -> Int[Tensor, "m g"]:
    """Count the ones of each group, row by row."""
    totals = torch.zeros(len(x), number, dtype=torch.int64, device=x.device)
    return totals.index_add_(1, groups, x.long())


def _ranks(cost: Float[Tensor, "m n"], groups: Int[Tensor, " n"]) -> Int[Tensor, "m n"]:
    """Rank each variable within its group by cost, row by row, ties by position."""
    order = cost.argsort(dim=1, stable=True)
    order = order.gather(1, groups[order].argsort(dim=1, stable=True))
    sizes = groups.bincount()
    starts = (sizes.cumsum(0) - sizes)[groups.sort()[0]]
    places = torch.arange(groups.numel(), device=groups.device) - starts
    return torch.empty_like(order).scatter_(1, order, places.expand_as(order))


def _multiplication(problem: BlockProblem) -> Callable[[Tensor], Tensor]:
    """Give what multiplies rows by B, through its factors where it is given so."""
    if problem.dense is not None:
        matrix = problem.matrix
        return lambda x: x @ matrix
    assert problem.factors is not None
    factors = problem.remembered("factors in float64", problem.factors.double)
    diagonal = 0.0 if problem.diagonal is None else problem.diagonal.double()
    return lambda x: (x @ factors) @ factors.T + x * diagonal


def _own(problem: BlockProblem) -> Float[Tensor, " n"]:
    """Give the diagonal of B."""
    if problem.dense is not None:
        return problem.dense.diagonal().double()
    assert problem.factors is not None
    own = torch.linalg.vector_norm(problem.factors, dim=1, dtype=torch.float64).square()
    return own if problem.diagonal is None else own + problem.diagonal.double()
