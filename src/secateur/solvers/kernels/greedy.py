"""Greedy construction on a dense problem."""

# numba compiles for 64-bit scalars, which numpy's stubs tell apart from int and float.
# pyright: reportArgumentType=false, reportReturnType=false

import numpy as np
from jaxtyping import Int, Shaped
from numba import njit

from secateur.solvers.kernels.instance import (
    Instance,
    Order,
    Vector,
)


@njit(cache=True)
def construct(
    inst: Instance, order: Order, linear: Vector, wanted: Int[np.ndarray, " groups"]
) -> tuple[Shaped[np.ndarray, " n"], int]:
    """Choose variables one at a time, each time the one that raises l.y + 1/2 y'B y least.

    Args:
        inst: the problem, for B and the groups.
        order: the variables group by group.
        linear: l.
        wanted: how many to choose in each group.

    Returns:
        Whether each variable is chosen, and how many choices were evaluated.
    """
    n = order.size
    f, left = linear.copy(), wanted.copy()
    chosen, group = np.zeros(n, np.bool_), np.empty(n, np.int64)
    candidates, size, seen = np.empty(n, np.int64), 0, 0
    for g in range(left.size):
        for slot in range(inst.starts[g], inst.starts[g + 1]):
            group[order[slot]] = g
            if left[g] > 0:
                candidates[size] = order[slot]
                size += 1
    while size > 0:
        seen += size
        best, at = np.inf, 0
        for t in range(size):
            rise = f[candidates[t]] + inst.half[candidates[t]]
            if rise < best:
                best, at = rise, t
        i = candidates[at]
        g = group[i]
        chosen[i] = True
        left[g] -= 1
        size -= 1
        candidates[at] = candidates[size]
        if left[g] == 0:
            remaining = 0
            for t in range(size):
                if group[candidates[t]] != g:
                    candidates[remaining] = candidates[t]
                    remaining += 1
            size = remaining
        row = inst.matrix[i]
        for t in range(n):
            f[t] += row[t]
    return chosen, seen
