"""Between block problems and the arrays that the kernels work on."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Int

from secateur.core.problem import BlockProblem
from secateur.solvers.kernels import Instance, Order, RandomState, survey, symmetric

# Fields are sums of some thousand terms, updated as many times: this many roundings of the
# sum of the terms' sizes is more than their error, and less than any change that matters.
_ROUNDINGS = 64
_CACHE = "_kernel_instance"
_SHARED = (_CACHE, "matrix", "counts")


def prepare(problem: BlockProblem) -> tuple[Instance, Order]:
    """Lay a problem out for the kernels.

    Args:
        problem: the problem.

    Returns:
        The instance, and the incumbent as an order that the caller may change.
    """
    groups, pruned = problem.groups.cpu().numpy(), problem.incumbent.cpu().numpy()
    order = np.lexsort((~pruned, groups)).astype(np.int64)
    # Kept beside the problem's own cached properties: a solver made of several prepares once.
    instance = problem.__dict__.get(_CACHE)
    if instance is None:
        instance = problem.__dict__[_CACHE] = _instance(problem, groups)
    return instance, order


def _instance(problem: BlockProblem, groups: Int[np.ndarray, " n"]) -> Instance:
    """Lay out all of a problem but its incumbent."""
    # A product of matrices is symmetric up to rounding only, which can make a descent go round in circles.
    matrix = symmetric(np.ascontiguousarray(problem.matrix.detach().cpu().numpy()))
    linear = np.ascontiguousarray(problem.linear.detach().double().cpu().numpy())
    counts = problem.counts.cpu().numpy().astype(np.int64)
    sizes = np.bincount(groups, minlength=counts.size).astype(np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    group = np.repeat(np.arange(counts.size), sizes)
    kept_slots = np.flatnonzero(
        (np.arange(groups.size) >= (starts[:-1] + counts)[group]) & (counts[group] > 0)
    )
    peak, total = survey(matrix)
    return Instance(
        matrix=matrix,
        linear=linear,
        half=0.5 * matrix.diagonal(),
        slack=_ROUNDINGS * np.finfo(np.float64).eps * (np.abs(linear) + total),
        peak=peak,
        starts=starts,
        counts=counts,
        kept_slots=kept_slots.astype(np.int64),
        kept_groups=group[kept_slots].astype(np.int64),
    )


def restart(problem: BlockProblem, incumbent: Bool[torch.Tensor, " n"]) -> BlockProblem:
    """Pose the same problem from another incumbent with the same counts.

    Args:
        problem: the problem.
        incumbent: a feasible x.

    Returns:
        The problem; what was computed for the old one is not computed again.
    """
    again = replace(problem, incumbent=incumbent)
    again.__dict__.update({name: problem.__dict__[name] for name in _SHARED if name in problem.__dict__})
    return again


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


def mean_size(instance: Instance) -> float:
    """Compute the unit of inverse temperatures: the mean |B_ij|.

    Args:
        instance: the problem.

    Returns:
        The mean over all n^2 entries; where B is zero the mean |l_i|, and 1 where l is too.
    """
    mean = float(np.abs(instance.matrix).mean())
    return mean or float(np.abs(instance.linear).mean()) or 1.0


def random_state(seed: int) -> RandomState:
    """Make a kernel's generator.

    Args:
        seed: any integer.

    Returns:
        Its state.
    """
    return np.array([seed % 2**64], dtype=np.uint64)


def scale(instance: Instance) -> float:
    """Bound the objective's size: sum of |l_i| and |B_ij|.

    Args:
        instance: the problem.

    Returns:
        The bound.
    """
    return float(np.abs(instance.linear).sum() + np.abs(instance.matrix).sum())
