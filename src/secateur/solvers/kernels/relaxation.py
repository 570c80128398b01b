"""Exchanges of fractions: the continuous relaxation, and moves of many pairs by factors.

The relaxation lets 0 <= x <= 1 with the same sum in each group. Moving t from j to i of the same
group changes the objective by t (f_i - f_j) + 1/2 t^2 e_ij with e_ij = B_ii + B_jj - 2 B_ij, which
is least at t = (f_j - f_i)/e_ij, cut off where a variable reaches a bound.
"""

# numba compiles for 64-bit scalars, which numpy's stubs tell apart from int and float.
# pyright: reportArgumentType=false, reportReturnType=false

import numpy as np
from jaxtyping import Float, Int
from numba import njit

from secateur.solvers.kernels.instance import Vector

_TINY = 1e-300


@njit(cache=True)
def lowest_sum(
    f: Vector,
    starts: Int[np.ndarray, " groups_and_1"],
    members: Int[np.ndarray, " n"],
    totals: Float[np.ndarray, " groups"],
) -> float:
    """Minimise f.s over 0 <= s <= 1 with a fixed sum in each group.

    Args:
        f: the costs.
        starts: where each group begins in `members`, and n.
        members: the variables group by group.
        totals: the sum in each group, whole or not.

    Returns:
        The minimum: in each group the least costs, the last one in part.
    """
    total = 0.0
    for g in range(totals.size):
        first, last = starts[g], starts[g + 1]
        if totals[g] <= 0.0 or first == last:
            continue
        costs = np.sort(f[members[first:last]])
        whole = min(int(totals[g]), costs.size)
        total += costs[:whole].sum()
        if whole < costs.size:
            total += (totals[g] - whole) * costs[whole]
    return total


@njit(cache=True, fastmath=True)
def add_difference(f: Vector, rise: Vector, fall: Vector, amount: float) -> None:
    """Add amount (rise - fall) to f.

    Args:
        f: changed.
        rise: a row of B.
        fall: another.
        amount: t.
    """
    for t in range(f.size):
        f[t] += amount * (rise[t] - fall[t])


@njit(cache=True)
def gradient(matrix: Float[np.ndarray, "n n"], linear: Vector, shift: Vector, x: Vector) -> Vector:
    """Compute l + (B + diag(s)) x.

    Args:
        matrix: B, symmetric.
        linear: l.
        shift: s.
        x: a point.

    Returns:
        The gradient.
    """
    f = linear + shift * x
    for i in range(x.size):
        if x[i] != 0.0:
            row = matrix[i]
            for t in range(x.size):
                f[t] += x[i] * row[t]
    return f


@njit(cache=True)
def relax(
    matrix: Float[np.ndarray, "n n"],
    linear: Vector,
    shift: Vector,
    starts: Int[np.ndarray, " groups_and_1"],
    members: Int[np.ndarray, " n"],
    x: Vector,
    begin: float,
    tolerance: float,
    limit: int,
) -> tuple[Vector, float, float, int]:
    """Minimise l.x + 1/2 x'(B + diag(s))x over the relaxation, by the most promising pair at a time.

    The pair is the most violating one: the least f_i of those that can grow and the greatest f_j
    of those that can shrink, in the group where they differ most. Every n steps the
    duality gap f.x - min_s f.s is compared with what can have been gained since the start.

    Args:
        matrix: B, symmetric.
        linear: l.
        shift: s.
        starts: where each group begins in `members`, and n.
        members: the variables group by group.
        x: a point of the relaxation; changed.
        begin: what to measure gains from; nan = the value at x as given.
        tolerance: gap to reach, as a fraction of `begin` less the lower bound.
        limit: steps at most.

    Returns:
        The gradient at x; its value; the value less the gap: a lower bound where B + diag(s) is
        positive semi-definite; and the steps made.
    """
    n, groups = linear.size, starts.size - 1
    group, totals, own = np.empty(n, np.int64), np.zeros(groups), np.empty(n)
    for g in range(groups):
        for slot in range(starts[g], starts[g + 1]):
            group[members[slot]] = g
            totals[g] += x[members[slot]]
    for i in range(n):
        own[i] = matrix[i, i] + shift[i]
    f = gradient(matrix, linear, shift, x)
    low, high = np.empty(groups), np.empty(groups)
    lowest, highest = np.empty(groups, np.int64), np.empty(groups, np.int64)
    value, bound, steps, fresh = 0.0, -np.inf, 0, True
    while True:
        if steps % n == 0 or steps >= limit:
            value = 0.5 * ((linear + f) * x).sum()
            bound = value + lowest_sum(f, starts, members, totals) - (f * x).sum()
            if np.isnan(begin):
                begin = value
            if value - bound <= tolerance * (begin - bound) or steps >= limit:
                if fresh:
                    return f, value, bound, steps
                # Once more without the rounding errors of all the updates.
                f, fresh = gradient(matrix, linear, shift, x), True
                continue
        i, j, worst = -1, -1, 0.0
        low[:], high[:] = np.inf, -np.inf
        for t in range(n):
            g = group[t]
            if x[t] < 1.0 and f[t] < low[g]:
                low[g], lowest[g] = f[t], t
            if x[t] > 0.0 and f[t] > high[g]:
                high[g], highest[g] = f[t], t
        for g in range(groups):
            if high[g] - low[g] > worst:
                worst, i, j = high[g] - low[g], lowest[g], highest[g]
        if i < 0:  # no pair can move: x is a minimum
            limit = steps
            continue
        curve = own[i] + own[j] - 2.0 * matrix[i, j]
        most = min(1.0 - x[i], x[j])
        amount = most if worst >= most * curve else worst / max(curve, _TINY)
        # At a bound exactly, so that the variable is not taken for a fractional one.
        full, empty = amount == 1.0 - x[i], amount == x[j]
        x[i] = 1.0 if full else x[i] + amount
        x[j] = 0.0 if empty else x[j] - amount
        add_difference(f, matrix[i], matrix[j], amount)
        f[i] += amount * shift[i]
        f[j] -= amount * shift[j]
        steps, fresh = steps + 1, False


@njit(cache=True, fastmath=True)
def move_pairs(
    factors: Float[np.ndarray, "n s"],
    linear: Vector,
    x: Vector,
    response: Float[np.ndarray, " s"],
    rising: Int[np.ndarray, " pairs"],
    falling: Int[np.ndarray, " pairs"],
) -> None:
    """Move the best amount within each of a list of pairs, one after another, O(s) each.

    Args:
        factors: U, with B = U U'.
        linear: l.
        x: a point of the relaxation; changed.
        response: U'x; changed.
        rising: i of each pair.
        falling: j of each pair, of the same group; the amount may turn out negative.
    """
    for turn in range(rising.size):
        i, j = rising[turn], falling[turn]
        left, right = factors[i], factors[j]
        slope, curve = linear[i] - linear[j], 0.0
        for t in range(response.size):
            step = left[t] - right[t]
            slope += step * response[t]
            curve += step * step
        # As an increase of `up` and a decrease of `down`, whichever way it goes.
        up, down = (i, j) if slope < 0.0 else (j, i)
        most, force = min(1.0 - x[up], x[down]), abs(slope)
        amount = most if force >= most * curve else force / max(curve, _TINY)
        if i == j or amount <= 0.0:
            continue
        full, empty = amount == 1.0 - x[up], amount == x[down]
        x[up] = 1.0 if full else x[up] + amount
        x[down] = 0.0 if empty else x[down] - amount
        signed = amount if up == i else -amount
        for t in range(response.size):
            response[t] += signed * (left[t] - right[t])
