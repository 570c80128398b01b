"""The look through all swaps of an assignment for those that improve."""

# numba compiles for 64-bit scalars, which numpy's stubs tell apart from int and float.
# pyright: reportArgumentType=false, reportReturnType=false

import numpy as np
from jaxtyping import Int
from numba import njit

from secateur.solvers.kernels.instance import Instance, Order, Vector

# Terms of |U_i - U_j|^2 that are looked at before the whole sum is.
_HEAD = 32


@njit(cache=True, fastmath=True)
def distance(left: Vector, right: Vector) -> float:
    """Compute 1/2 |left - right|^2.

    Args:
        left: a vector.
        right: another, as long.

    Returns:
        Half the squared distance.
    """
    total = 0.0
    for t in range(left.size):
        step = left[t] - right[t]
        total += step * step
    return 0.5 * total


@njit(cache=True)
def improving_swaps(inst: Instance, order: Order, f: Vector, most: int) -> Int[np.ndarray, " found"]:
    """Find swaps that improve, at most one for each kept variable.

    By factors a swap changes the objective by f_i - f_j + 1/2 |U_i - U_j|^2: only an i below a j
    in f can take part, and the norms, or else the first terms of the sum, rule out most of
    those. O(n^2 s) at worst, and a small part of it near an optimum.

    Args:
        inst: the problem, dense or by factors.
        order: x; in each group the pruned by falling and the kept by rising f.
        f: the fields.
        most: swaps after which to stop looking.

    Returns:
        The variables of the swaps found, kept and pruned in turn.
    """
    dense = inst.matrix.shape[0] > 0
    found, size = np.empty(2 * most, np.int64), 0
    # By slot, so that the inner loop reads memory in order: most pairs need no more than this.
    norm = np.sqrt(2.0 * np.maximum(inst.half, 0.0))[order]
    level, slack = f[order], inst.slack[order]
    heads = inst.factors[:, :_HEAD].copy()
    heads = heads if dense else heads[order]
    for g in range(inst.counts.size):
        first, last = inst.starts[g], inst.starts[g + 1]
        middle = first + inst.counts[g]
        for slot in range(middle, last):
            i = order[slot]
            for other in range(first, middle):
                j = order[other]
                gap = level[other] - level[slot] - slack[slot] - slack[other]
                if dense:
                    improves = inst.half[i] + inst.half[j] - inst.matrix[i, j] < gap
                elif gap <= 0.0:
                    break
                else:
                    lengths = norm[slot] - norm[other]
                    improves = (
                        0.5 * lengths * lengths < gap
                        and distance(heads[slot], heads[other]) < gap
                        and distance(inst.factors[i], inst.factors[j]) < gap
                    )
                if improves:
                    found[size], found[size + 1] = i, j
                    size += 2
                    break
            if size == found.size:
                return found
    return found[:size]
