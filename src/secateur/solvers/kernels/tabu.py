"""Tabu search over swaps of a dense problem."""

# numba compiles for 64-bit scalars, which numpy's stubs tell apart from int and float.
# pyright: reportArgumentType=false, reportReturnType=false

import numpy as np
from jaxtyping import Int
from numba import njit

from secateur.solvers.kernels.instance import (
    REFRESH,
    Instance,
    Order,
    Vector,
    energy,
    exchange,
    state_of,
)
from secateur.solvers.kernels.random import RandomState, draw_below


@njit(cache=True)
def shortlist(price: Vector, first: int, last: int, chosen: Int[np.ndarray, " width"]) -> int:
    """List the slots with the least prices.

    Args:
        price: a price for each slot.
        first: the first slot.
        last: the one after the last.
        chosen: takes the slots, as many as it holds, the cheapest first; ties by position.

    Returns:
        How many there are.
    """
    size = 0
    for slot in range(first, last):
        if size == chosen.size and price[slot] >= price[chosen[size - 1]]:
            continue
        # Into its place among those so far, of which the dearest falls off a full list.
        at = size if size < chosen.size else size - 1
        size = at + 1
        while at > 0 and price[slot] < price[chosen[at - 1]]:
            chosen[at] = chosen[at - 1]
            at -= 1
        chosen[at] = slot
    return size


@njit(cache=True)
def tabu(inst: Instance, order: Order, iterations: int, tenure: int, width: int, random: RandomState) -> int:
    """Make the best swap of variables that have not just moved, for better or worse.

    Only the pairs of a shortlist are compared: in each group those that would cost least to
    prune, and to restore, if they did not interact.

    Args:
        inst: the problem.
        order: x; becomes the best assignment seen, itself included.
        iterations: swaps to make.
        tenure: iterations a variable that moved must rest, and at most as many again by chance.
        width: variables of either kind on the shortlist of a group.
        random: the generator's state; changed.

    Returns:
        How many swaps were evaluated.
    """
    f, here = state_of(inst, order), order.copy()
    value = energy(inst, here, f)
    best, seen = value, 0
    cost, until = inst.half + inst.slack, np.zeros(order.size, np.int64)
    price, rows, columns = np.empty(order.size), np.empty(width, np.int64), np.empty(width, np.int64)
    for now in range(1, iterations + 1):
        change, kept, pruned = np.inf, -1, -1
        for g in range(inst.counts.size):
            first, last = inst.starts[g], inst.starts[g + 1]
            middle = first + inst.counts[g]
            if first == middle or middle == last:
                continue
            for slot in range(first, middle):
                price[slot] = cost[here[slot]] - f[here[slot]]
            for slot in range(middle, last):
                price[slot] = cost[here[slot]] + f[here[slot]]
            height, breadth = shortlist(price, middle, last, rows), shortlist(price, first, middle, columns)
            seen += height * breadth
            for row in rows[:height]:
                i = here[row]
                for column in columns[:breadth]:
                    j = here[column]
                    rise = price[row] + price[column] - inst.matrix[i, j]
                    # Aspiration: a swap to better than ever may be made whatever is tabu.
                    rested = until[i] < now and until[j] < now
                    if rise < change and (rested or value + rise < best):
                        change, kept, pruned = rise, row, column
        if kept < 0:
            continue
        for variable in (here[kept], here[pruned]):
            until[variable] = now + tenure + draw_below(random, tenure + 1)
            change -= inst.slack[variable]
        exchange(inst, here, f, kept, pruned)
        value += change
        if value < best:
            best = value
            order[:] = here
        if now % REFRESH == 0:
            f = state_of(inst, here)
            value = energy(inst, here, f)
    return seen
