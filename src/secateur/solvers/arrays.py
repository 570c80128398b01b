"""Between block problems and the arrays that the kernels work on."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from secateur.core.problem import ROUNDINGS, BlockProblem
from secateur.solvers.kernels.instance import Instance, Order, survey
from secateur.solvers.kernels.random import RandomState


def prepare(problem: BlockProblem, *, dense: bool = True) -> tuple[Instance, Order]:
    """Lay a problem out for the kernels.

    Args:
        problem: the problem.
        dense: with B, formed where it is given by factors; False: by its factors, in which
            diag(v) has moved into l.

    Returns:
        The instance, and the incumbent as an order that the caller may change.
    """
    groups, pruned = problem.groups.cpu().numpy(), problem.incumbent.cpu().numpy()
    order = np.lexsort((~pruned, groups)).astype(np.int64)
    name, make = ("dense instance", _with_matrix) if dense else ("factored instance", _with_factors)
    return problem.remembered(name, lambda: make(problem, groups)), order


def _with_matrix(problem: BlockProblem, groups: Int[np.ndarray, " n"]) -> Instance:
    """Lay out all of a problem but its incumbent, with B."""
    matrix = np.ascontiguousarray(problem.matrix.cpu().numpy())
    linear = np.ascontiguousarray(problem.linear.double().cpu().numpy())
    peak, total = survey(matrix)
    none = np.zeros((0, 0))
    return _instance(problem, groups, matrix, none, linear, 0.5 * matrix.diagonal(), peak, total)


def _with_factors(problem: BlockProblem, groups: Int[np.ndarray, " n"]) -> Instance:
    """Lay out all of a problem but its incumbent, by factors."""
    assert problem.factors is not None
    factors = np.ascontiguousarray(problem.factors.double().cpu().numpy())
    linear = problem.linear.double().cpu().numpy()
    if problem.diagonal is not None:
        linear = linear + 0.5 * problem.diagonal.double().cpu().numpy()
    half = 0.5 * np.einsum("ns,ns->n", factors, factors)
    norm = np.sqrt(2 * half)
    # By the inequality of Cauchy and Schwarz: B_ij <= |U_i| |U_j|.
    peak, total = norm * norm.max(), norm * norm.sum()
    return _instance(
        problem, groups, np.zeros((0, 0)), factors, np.ascontiguousarray(linear), half, peak, total
    )


def _instance(
    problem: BlockProblem,
    groups: Int[np.ndarray, " n"],
    matrix: Float[np.ndarray, "a b"],
    factors: Float[np.ndarray, "c d"],
    linear: Float[np.ndarray, " n"],
    half: Float[np.ndarray, " n"],
    peak: Float[np.ndarray, " n"],
    total: Float[np.ndarray, " n"],
) -> Instance:
    """Add the groups to B and l."""
    counts = problem.counts.cpu().numpy().astype(np.int64)
    sizes = np.bincount(groups, minlength=counts.size).astype(np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    group = np.repeat(np.arange(counts.size), sizes)
    kept_slots = np.flatnonzero(
        (np.arange(groups.size) >= (starts[:-1] + counts)[group]) & (counts[group] > 0)
    )
    return Instance(
        matrix=matrix,
        factors=factors,
        linear=linear,
        half=np.ascontiguousarray(half),
        slack=ROUNDINGS * np.finfo(np.float64).eps * (np.abs(linear) + total),
        peak=peak,
        starts=starts,
        counts=counts,
        kept_slots=kept_slots.astype(np.int64),
        kept_groups=group[kept_slots].astype(np.int64),
    )


def assignment(problem: BlockProblem, instance: Instance, order: Order) -> Bool[torch.Tensor, " n"]:
    """Turn an order back into x.

    Args:
        problem: the problem, for the device.
        instance: the same problem, prepared.
        order: x.

    Returns:
        x as a tensor; True = pruned.
    """
    pruned = np.zeros(order.size, dtype=np.bool_)
    for start, count in zip(instance.starts[:-1], instance.counts, strict=True):
        pruned[order[start : start + count]] = True
    return as_tensor(problem, pruned)


def as_tensor(problem: BlockProblem, pruned: Bool[np.ndarray, " n"]) -> Bool[torch.Tensor, " n"]:
    """Turn an array into a tensor where the problem is.

    Args:
        problem: the problem, for the device.
        pruned: x.

    Returns:
        x as a tensor; True = pruned.
    """
    return torch.from_numpy(pruned).to(problem.incumbent.device)


def largest(
    values: Float[np.ndarray, " n"], groups: Int[np.ndarray, " n"], counts: Int[np.ndarray, " groups"]
) -> Bool[np.ndarray, " n"]:
    """Choose the largest entries in each group.

    Args:
        values: a number for each variable.
        groups: the group of each variable.
        counts: how many to choose in each.

    Returns:
        What is chosen, ties by position.
    """
    order = np.lexsort((-values, groups))
    sizes = np.bincount(groups, minlength=counts.size)
    place = np.arange(order.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    chosen = np.zeros(order.size, dtype=np.bool_)
    chosen[order] = place < counts[groups[order]]
    return chosen


def mean_size(instance: Instance) -> float:
    """Compute the unit of inverse temperatures: the mean |B_ij|.

    Args:
        instance: the problem.

    Returns:
        The mean over all n^2 entries (by factors, of 1,024 rows spread over all); where B is
        zero the mean |l_i|, and 1 where l is too.
    """
    mean = float(np.abs(instance.matrix).mean()) if instance.matrix.size else _mean_product(instance.factors)
    return mean or float(np.abs(instance.linear).mean()) or 1.0


def _mean_product(factors: Float[np.ndarray, "n s"]) -> float:
    """Compute the mean |U_i.U_j| over a spread of rows."""
    some = factors[np.linspace(0, factors.shape[0] - 1, min(1024, factors.shape[0])).astype(np.int64)]
    return float(np.abs(some @ some.T).mean()) if some.size else 0.0


def random_state(seed: int) -> RandomState:
    """Make a kernel's generator.

    Args:
        seed: any integer.

    Returns:
        Its state.
    """
    return np.array([seed % 2**64], dtype=np.uint64)
