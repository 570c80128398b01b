"""The inner loops, compiled by numba: pure functions of arrays.

Throughout, f = l + B x are the *fields*, kept up to date as x moves. With them

    pruning a kept i costs     p_i = f_i + 1/2 B_ii
    restoring a pruned j costs q_j = 1/2 B_jj - f_j
    doing both costs           p_i + q_j - B_ij

so that a proposal takes O(1) and an accepted swap O(n).

An assignment is an *order* of the variables: group by group, and within a group the pruned
ones first. Counts never change, so a place in the order (a *slot*) is for ever a pruned or a
kept one, and a swap exchanges the variables in two slots.
"""

# numba compiles for 64-bit scalars, which numpy's stubs tell apart from int and float.
# pyright: reportArgumentType=false, reportReturnType=false

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from numba import njit

Vector = Float[np.ndarray, " n"]
Order = Int[np.ndarray, " n"]
RandomState = Shaped[np.ndarray, "1"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST_MIX = np.uint64(0xBF58476D1CE4E5B9)
_SECOND_MIX = np.uint64(0x94D049BB133111EB)
# Fields are computed afresh after so many updates, which keeps rounding errors small.
_REFRESH = 1024
_NEVER = 2**62


class Instance(NamedTuple):
    """A block problem as the kernels see it; nothing in it is ever written.

    Attributes:
        matrix: B, symmetric.
        linear: l.
        half: half the diagonal of B.
        slack: what rounding may feign in each field; a swap must gain more than that of both.
        peak: the largest entry of each row beside the diagonal.
        starts: first slot of each group, and n.
        counts: pruned variables of each group.
        kept_slots: slots of kept variables, in groups that have both pruned and kept ones.
        kept_groups: the groups of those slots.
    """

    matrix: Float[np.ndarray, "n n"]
    linear: Vector
    half: Vector
    slack: Vector
    peak: Vector
    starts: Int[np.ndarray, " groups_and_1"]
    counts: Int[np.ndarray, " groups"]
    kept_slots: Int[np.ndarray, " kept"]
    kept_groups: Int[np.ndarray, " kept"]


@njit(cache=True)
def symmetric(matrix: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """Average a matrix and its transpose, tile by tile.

    Args:
        matrix: a square matrix.

    Returns:
        The average, exactly symmetric; the matrix itself where it is so already.
    """
    n, tile = matrix.shape[0], 8
    differing = 0
    for top in range(0, n, tile):
        for left in range(0, top + 1, tile):
            for i in range(top, min(n, top + tile)):
                for j in range(left, min(i, left + tile)):
                    differing += matrix[i, j] != matrix[j, i]
        if differing > 0:
            break
    if differing == 0:
        return matrix
    average = np.empty_like(matrix)
    for top in range(0, n, tile):
        for left in range(0, top + 1, tile):
            for i in range(top, min(n, top + tile)):
                for j in range(left, min(i + 1, left + tile)):
                    mean = 0.5 * matrix[i, j] + 0.5 * matrix[j, i]
                    average[i, j] = mean
                    average[j, i] = mean
    return average


@njit(cache=True, fastmath=True)
def survey(matrix: Float[np.ndarray, "n n"]) -> tuple[Vector, Vector]:
    """Bound each row of B.

    Args:
        matrix: B.

    Returns:
        The largest entry of each row beside the diagonal, and the sum of |entries| of each row.
    """
    n = matrix.shape[0]
    peak, total = np.full(n, -np.inf), np.empty(n)
    for i in range(n):
        row = matrix[i]
        high, size = -1.7e308, 0.0
        for j in range(i):
            high = max(high, row[j])
        for j in range(i + 1, n):
            high = max(high, row[j])
        for j in range(n):
            size += abs(row[j])
        peak[i], total[i] = high, size
    return peak, total


@njit(cache=True)
def fields(inst: Instance, order: Order) -> Vector:
    """Compute f = l + B x.

    Args:
        inst: the problem.
        order: x.

    Returns:
        The fields.
    """
    f = inst.linear.copy()
    for g in range(inst.counts.size):
        for slot in range(inst.starts[g], inst.starts[g] + inst.counts[g]):
            row = inst.matrix[order[slot]]
            for t in range(f.size):
                f[t] += row[t]
    return f


@njit(cache=True)
def energy(inst: Instance, order: Order, f: Vector) -> float:
    """Evaluate l.x + 1/2 x'B x, which is the sum of (l + f)/2 over the pruned.

    Args:
        inst: the problem.
        order: x.
        f: its fields.

    Returns:
        The objective less its constant.
    """
    total = 0.0
    for g in range(inst.counts.size):
        for slot in range(inst.starts[g], inst.starts[g] + inst.counts[g]):
            total += inst.linear[order[slot]] + f[order[slot]]
    return 0.5 * total


@njit(cache=True)
def exchange(inst: Instance, order: Order, f: Vector, kept_slot: int, pruned_slot: int) -> None:
    """Swap the variables in a kept and a pruned slot, and update the fields in O(n).

    Args:
        inst: the problem.
        order: x; changed.
        f: the fields; changed.
        kept_slot: where the variable to prune is.
        pruned_slot: where the variable to restore is.
    """
    i, j = order[kept_slot], order[pruned_slot]
    order[kept_slot], order[pruned_slot] = j, i
    rise, fall = inst.matrix[i], inst.matrix[j]
    for t in range(f.size):
        f[t] += rise[t] - fall[t]


@njit(cache=True)
def best_swap(
    inst: Instance,
    cost: Vector,
    order: Order,
    f: Vector,
    until: Int[np.ndarray, " n"],
    now: int,
    cutoff: float,
) -> tuple[int, int, float, int]:
    """Find the swap that changes the objective most for the better.

    As B_ij <= peak_i and B_ij <= peak_j, only an i with p_i - peak_i + min q below the best
    so far can take part, and likewise only such a j; the pairs of those are evaluated.

    Args:
        inst: the problem.
        cost: half the diagonal of B, and what else a move of each variable is charged with.
        order: x.
        f: its fields.
        until: the iteration through which each variable may not move.
        now: the iteration.
        cutoff: the change that a swap must undercut.

    Returns:
        The kept slot, the pruned slot (both -1 where there is no such swap), the change, and
        how many swaps were evaluated.
    """
    n = order.size
    best, best_kept, best_pruned, seen = cutoff, -1, -1, 0
    rows, columns = np.empty(n, np.int64), np.empty(n, np.int64)
    p, q = np.empty(n), np.empty(n)
    for g in range(inst.counts.size):
        first, last = inst.starts[g], inst.starts[g + 1]
        middle = first + inst.counts[g]
        low_p, low_q, cheapest = np.inf, np.inf, -1
        for slot in range(first, middle):
            j = order[slot]
            q[slot] = cost[j] - f[j] if until[j] < now else np.inf
            low_q = min(low_q, q[slot])
        for slot in range(middle, last):
            i = order[slot]
            p[slot] = cost[i] + f[i] if until[i] < now else np.inf
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
    return best_kept, best_pruned, best, seen


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
    f, cost = fields(inst, order), inst.half + inst.slack
    until = np.zeros(order.size, np.int64)
    made, stale, seen = 0, 0, 0
    while True:
        kept, pruned, _, evaluated = best_swap(inst, cost, order, f, until, 1, 0.0)
        seen += evaluated
        if kept < 0 and stale == 0:
            return True, seen
        if kept >= 0:
            if made == limit:
                return False, seen
            exchange(inst, order, f, kept, pruned)
            made, stale = made + 1, stale + 1
        if kept < 0 or stale == _REFRESH:
            f, stale = fields(inst, order), 0


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
    f, cost = fields(inst, order), inst.half + inst.slack
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
            f, stale, idle, outdated = fields(inst, order), 0, 0, True
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
                if stale == _REFRESH:
                    f, stale = fields(inst, order), 0
                break


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


@njit(cache=True)
def draw(state: RandomState) -> np.uint64:
    """Draw 64 random bits (SplitMix64: Steele, Lea and Flood 2014).

    Args:
        state: one unsigned 64-bit integer; changed.

    Returns:
        The bits.
    """
    state[0] += _GOLDEN
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * _FIRST_MIX
    z = (z ^ (z >> np.uint64(27))) * _SECOND_MIX
    return z ^ (z >> np.uint64(31))


@njit(cache=True)
def draw_below(state: RandomState, bound: int) -> int:
    """Draw an integer from 0 to bound - 1.

    Args:
        state: the generator's state; changed.
        bound: at most 2^31.

    Returns:
        The integer.
    """
    return np.int64(((draw(state) >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32))


@njit(cache=True)
def anneal(
    inst: Instance,
    order: Order,
    betas: Float[np.ndarray, " b"],
    restarts: int,
    sweeps: int,
    state: RandomState,
) -> int:
    """Anneal by random swaps, from a random assignment at each restart.

    Args:
        inst: the problem.
        order: x; becomes the best assignment seen, itself included.
        betas: inverse temperatures in the unit of the problem, in the order they are used.
        restarts: how often to anneal.
        sweeps: n proposals each, at each temperature.
        state: the generator's state; changed.

    Returns:
        How many swaps were evaluated.
    """
    n, best = order.size, energy(inst, order, fields(inst, order))
    here = order.copy()
    for _ in range(restarts):
        for g in range(inst.counts.size):
            first, last = inst.starts[g], inst.starts[g + 1]
            for slot in range(last - 1, first, -1):
                other = first + draw_below(state, slot - first + 1)
                here[slot], here[other] = here[other], here[slot]
        f = fields(inst, here)
        value = energy(inst, here, f)
        for beta in betas:
            for _ in range(sweeps * n):
                turn = draw_below(state, inst.kept_slots.size)
                kept, g = inst.kept_slots[turn], inst.kept_groups[turn]
                pruned = inst.starts[g] + draw_below(state, inst.counts[g])
                i, j = here[kept], here[pruned]
                change = f[i] + inst.half[i] + inst.half[j] - f[j] - inst.matrix[i, j]
                if change > 0:
                    chance = np.float64(draw(state) >> np.uint64(11)) * 2.0**-53
                    if beta * change > 40 or chance >= np.exp(-beta * change):
                        continue
                exchange(inst, here, f, kept, pruned)
                value += change
                if value < best:
                    best = value
                    order[:] = here
    return restarts * betas.size * sweeps * n


@njit(cache=True)
def tabu(inst: Instance, order: Order, iterations: int, tenure: int, state: RandomState) -> tuple[bool, int]:
    """Make the best swap of variables that have not just moved, for better or worse.

    Args:
        inst: the problem.
        order: x; becomes the best assignment seen, itself included.
        iterations: swaps to make.
        tenure: iterations a variable that moved must rest, and at most as many again by chance.
        state: the generator's state; changed.

    Returns:
        Whether no swap improves the end, and how many swaps were evaluated.
    """
    f, here = fields(inst, order), order.copy()
    value = energy(inst, here, f)
    best, best_at, seen = value, 0, 0
    cost, until = inst.half + inst.slack, np.zeros(order.size, np.int64)
    for now in range(1, iterations + 1):
        # Aspiration: a swap to better than ever may be made whatever is tabu.
        kept, pruned, change, evaluated = best_swap(inst, cost, here, f, until, _NEVER, best - value)
        seen += evaluated
        if kept < 0:
            kept, pruned, change, evaluated = best_swap(inst, cost, here, f, until, now, np.inf)
            seen += evaluated
        if kept < 0:
            continue
        for variable in (here[kept], here[pruned]):
            until[variable] = now + tenure + draw_below(state, tenure + 1)
            change -= inst.slack[variable]
        exchange(inst, here, f, kept, pruned)
        value += change
        if value < best:
            best, best_at = value, now
            order[:] = here
        if now % _REFRESH == 0:
            f = fields(inst, here)
            value = energy(inst, here, f)
    return best_at < iterations, seen


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
    f = fields(inst, here)
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
            value += f[i] + inst.half[i] + inst.half[j] - f[j] - inst.matrix[i, j]
            exchange(inst, here, f, kept, pruned)
            if not wrapped:
                break
        if wrapped:
            return visited
        visited += 1
        if value < best + margin or visited % _REFRESH == 0:
            f = fields(inst, here)
            value = energy(inst, here, f)
            if value < best:
                best = value
                order[:] = here
