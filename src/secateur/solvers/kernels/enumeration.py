"""All feasible assignments, one swap apart."""

# numba compiles for 64-bit scalars, which numpy's stubs tell apart from int and float.
# pyright: reportArgumentType=false, reportReturnType=false

import numpy as np
from jaxtyping import Int
from numba import njit

from secateur.solvers.kernels.instance import (
    REFRESH,
    Instance,
    Order,
    energy,
    exchange,
    state_of,
    swap_change,
)


@njit(cache=True)
def revolve(chosen: Int[np.ndarray, " k_and_1"], k: int) -> tuple[int, int, bool]:
    """Step to the next k-subset of 0 .. m-1 in revolving-door order, which is cyclic.

    Successive subsets differ by one exchange (Nijenhuis and Wilf 1978; Knuth, The Art of
    Computer Programming 4A, 7.2.1.3). The first is {0 .. k-1}, and the last, one exchange
    away from it, {0 .. k-2, m-1}.

    Args:
        chosen: the subset in increasing order, then m; changed.
        k: 0 < k < m.

    Returns:
        What leaves, what enters, and whether the walk is back at the first subset.
    """
    lowest = chosen[0]
    if k % 2 == 1 and lowest + 1 < chosen[1]:
        chosen[0] = lowest + 1
        return lowest, lowest + 1, False
    if k % 2 == 0 and lowest > 0:
        chosen[0] = lowest - 1
        return lowest, lowest - 1, False
    downwards = k % 2 == 1
    for at in range(1, k):
        here, below = chosen[at], chosen[at - 1]
        if downwards and here > at:
            chosen[at], chosen[at - 1] = below, at - 1
            return here, at - 1, False
        if not downwards and here + 1 < chosen[at + 1]:
            chosen[at - 1], chosen[at] = here, here + 1
            return below, here + 1, False
        downwards = not downwards
    leaves = chosen[k - 1]
    chosen[k - 1] = k - 1
    return leaves, k - 1, True


@njit(cache=True)
def enumerate_all(inst: Instance, order: Order, margin: float) -> int:
    """Visit every feasible assignment by single swaps, the groups turning like an odometer.

    Args:
        inst: the problem.
        order: x; becomes the best assignment, or stays where none is better.
        margin: assignments whose running value comes this near to the best are evaluated afresh.

    Returns:
        How many assignments were visited.
    """
    groups = inst.counts.size
    # Group g's subset takes places offset[g] to offset[g] + counts[g], its end mark included.
    offset = np.cumsum(inst.counts + 1) - inst.counts - 1
    chosen = np.empty(inst.counts.sum() + groups, np.int64)
    for g in range(groups):
        for t in range(inst.counts[g]):
            chosen[offset[g] + t] = t
        chosen[offset[g] + inst.counts[g]] = inst.starts[g + 1] - inst.starts[g]
    here, place = order.copy(), np.arange(order.size)
    f = state_of(inst, here)
    value = energy(inst, here, f)
    best, visited = value, 1
    while True:
        wrapped = True
        for g in range(groups):
            first, k = inst.starts[g], inst.counts[g]
            if k == 0 or first + k == inst.starts[g + 1]:
                continue
            leaves, enters, wrapped = revolve(chosen[offset[g] : offset[g] + k + 1], k)
            # `place` follows each member of the group to its slot in the moving order.
            pruned, kept = place[first + leaves], place[first + enters]
            place[first + leaves], place[first + enters] = kept, pruned
            i, j = here[kept], here[pruned]
            value += swap_change(inst, f, i, j)
            exchange(inst, here, f, kept, pruned)
            if not wrapped:
                break
        if wrapped:
            return visited
        visited += 1
        if value < best + margin or visited % REFRESH == 0:
            f = state_of(inst, here)
            value = energy(inst, here, f)
            if value < best:
                best = value
                order[:] = here
