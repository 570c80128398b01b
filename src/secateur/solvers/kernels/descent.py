"""Descents over swaps of a dense problem: best swap, first swap."""

# numba compiles for 64-bit scalars, which numpy's stubs tell apart from int and float.
# pyright: reportArgumentType=false, reportReturnType=false

import numpy as np
from numba import njit

from secateur.solvers.kernels.instance import (
    REFRESH,
    Instance,
    Order,
    Vector,
    exchange,
    state_of,
)


@njit(cache=True)
def best_swap(
    inst: Instance,
    cost: Vector,
    order: Order,
    f: Vector,
) -> tuple[int, int, int]:
    """Find the swap that changes the objective most for the better.

    As B_ij <= peak_i and B_ij <= peak_j, only an i with p_i - peak_i + min q below the best
    so far can take part, and likewise only such a j; the pairs of those are evaluated.

    Args:
        inst: the problem.
        cost: half the diagonal of B, and what else a move of each variable is charged with.
        order: x.
        f: its fields.

    Returns:
        The kept slot and the pruned slot (both -1 where no swap improves), and how many swaps
        were evaluated.
    """
    n = order.size
    best, best_kept, best_pruned, seen = 0.0, -1, -1, 0
    rows, columns = np.empty(n, np.int64), np.empty(n, np.int64)
    p, q = np.empty(n), np.empty(n)
    for g in range(inst.counts.size):
        first, last = inst.starts[g], inst.starts[g + 1]
        middle = first + inst.counts[g]
        low_p, low_q, cheapest = np.inf, np.inf, -1
        for slot in range(first, middle):
            j = order[slot]
            q[slot] = cost[j] - f[j]
            low_q = min(low_q, q[slot])
        for slot in range(middle, last):
            i = order[slot]
            p[slot] = cost[i] + f[i]
            if p[slot] < low_p:
                low_p, cheapest = p[slot], slot
        if low_p == np.inf or low_q == np.inf:
            continue
        height, width = 0, 0
        for slot in range(middle, last):
            if p[slot] - inst.peak[order[slot]] + low_q < best:
                rows[height] = slot
                if slot == cheapest:  # first, as it lowers the bar for the others
                    rows[height], rows[0] = rows[0], slot
                height += 1
        for turn in range(height):
            if turn < 2:  # before the first row, and again once that has lowered the bar
                width = 0
                for slot in range(first, middle):
                    if q[slot] - inst.peak[order[slot]] + low_p < best:
                        columns[width] = slot
                        width += 1
            kept = rows[turn]
            i = order[kept]
            if p[kept] - inst.peak[i] + low_q >= best:
                continue
            row = inst.matrix[i]
            seen += width
            for w in range(width):
                change = p[kept] + q[columns[w]] - row[order[columns[w]]]
                if change < best:
                    best, best_kept, best_pruned = change, kept, columns[w]
    return best_kept, best_pruned, seen


@njit(cache=True)
def descend(inst: Instance, order: Order, limit: int) -> tuple[bool, int]:
    """Make the best swap again and again until none improves.

    Args:
        inst: the problem.
        order: x; changed.
        limit: swaps to make at most.

    Returns:
        Whether no swap improves the end, and how many swaps were evaluated.
    """
    f, cost = state_of(inst, order), inst.half + inst.slack
    made, stale, seen = 0, 0, 0
    while True:
        kept, pruned, evaluated = best_swap(inst, cost, order, f)
        seen += evaluated
        if kept < 0 and stale == 0:
            return True, seen
        if kept >= 0:
            if made == limit:
                return False, seen
            exchange(inst, order, f, kept, pruned)
            made, stale = made + 1, stale + 1
        if kept < 0 or stale == REFRESH:
            f, stale = state_of(inst, order), 0


@njit(cache=True)
def descend_first(inst: Instance, order: Order, limit: int) -> tuple[bool, int]:
    """Go round the kept variables and make the first swap that improves, until none does.

    Args:
        inst: the problem.
        order: x; changed.
        limit: swaps to make at most.

    Returns:
        Whether no swap improves the end, and how many swaps were evaluated.
    """
    f, cost = state_of(inst, order), inst.half + inst.slack
    made, stale, seen, idle, turn = 0, 0, 0, 0, 0
    low = np.empty(inst.counts.size)
    outdated = True
    while True:
        if outdated:
            outdated = False
            for g in range(low.size):
                low[g] = np.inf
                for slot in range(inst.starts[g], inst.starts[g] + inst.counts[g]):
                    low[g] = min(low[g], cost[order[slot]] - f[order[slot]])
        if idle == inst.kept_slots.size:
            if stale == 0:
                return True, seen
            f, stale, idle, outdated = state_of(inst, order), 0, 0, True
            continue
        kept, g = inst.kept_slots[turn], inst.kept_groups[turn]
        turn, idle = (turn + 1) % inst.kept_slots.size, idle + 1
        i = order[kept]
        p = cost[i] + f[i]
        if p - inst.peak[i] + low[g] >= 0:
            continue
        row = inst.matrix[i]
        for slot in range(inst.starts[g], inst.starts[g] + inst.counts[g]):
            j = order[slot]
            seen += 1
            if p + cost[j] - f[j] - row[j] < 0:
                if made == limit:
                    return False, seen
                exchange(inst, order, f, kept, slot)
                made, stale, idle, outdated = made + 1, stale + 1, 0, True
                if stale == REFRESH:
                    f, stale = state_of(inst, order), 0
                break
