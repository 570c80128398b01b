"""The block problem as arrays, and the state that a walk over assignments keeps up to date."""

# numba compiles for 64-bit scalars, which numpy's stubs tell apart from int and float.
# pyright: reportArgumentType=false, reportReturnType=false

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numba import njit

Vector = Float[np.ndarray, " n"]
Order = Int[np.ndarray, " n"]

# States are computed afresh after so many updates, which keeps rounding errors small.
REFRESH = 1024


class Instance(NamedTuple):
    """A block problem as the kernels see it; nothing in it is ever written.

    Attributes:
        matrix: B, symmetric; [0, 0] where it is given by factors.
        factors: U with B = U U'; [0, 0] where it is given dense.
        linear: l.
        half: half the diagonal of B.
        slack: what rounding may feign in each field; a swap must gain more than that of both.
        peak: at least the largest entry of each row beside the diagonal.
        starts: first slot of each group, and n.
        counts: pruned variables of each group.
        kept_slots: slots of kept variables, in groups that have both pruned and kept ones.
        kept_groups: the groups of those slots.
    """

    matrix: Float[np.ndarray, "n n"]
    factors: Float[np.ndarray, "n s"]
    linear: Vector
    half: Vector
    slack: Vector
    peak: Vector
    starts: Int[np.ndarray, " groups_and_1"]
    counts: Int[np.ndarray, " groups"]
    kept_slots: Int[np.ndarray, " kept"]
    kept_groups: Int[np.ndarray, " kept"]


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


@njit(cache=True, fastmath=True)
def dot(a: Vector, b: Vector) -> float:
    """Multiply two vectors.

    Args:
        a: one.
        b: the other, as long.

    Returns:
        a.b
    """
    total = 0.0
    for t in range(a.size):
        total += a[t] * b[t]
    return total


@njit(cache=True)
def state_of(inst: Instance, order: Order) -> Vector:
    """Compute what a walk keeps up to date: the fields f = l + B x, or the response z = U'x.

    Args:
        inst: the problem, dense or by factors.
        order: x.

    Returns:
        The state, [n] or [s].
    """
    dense = inst.matrix.shape[0] > 0
    rows = inst.matrix if dense else inst.factors
    state = inst.linear.copy() if dense else np.zeros(rows.shape[1])
    for g in range(inst.counts.size):
        for slot in range(inst.starts[g], inst.starts[g] + inst.counts[g]):
            row = rows[order[slot]]
            for t in range(state.size):
                state[t] += row[t]
    return state


@njit(cache=True)
def energy(inst: Instance, order: Order, state: Vector) -> float:
    """Evaluate l.x + 1/2 x'B x.

    Args:
        inst: the problem, dense or by factors.
        order: x.
        state: its fields or its response.

    Returns:
        The objective less its constant.
    """
    dense = inst.matrix.shape[0] > 0
    total = 0.0
    for g in range(inst.counts.size):
        for slot in range(inst.starts[g], inst.starts[g] + inst.counts[g]):
            total += inst.linear[order[slot]]
            if dense:
                total += state[order[slot]]
    return 0.5 * total if dense else total + 0.5 * dot(state, state)


@njit(cache=True)
def swap_change(inst: Instance, state: Vector, i: int, j: int) -> float:
    """Evaluate p_i + q_j - B_ij, in O(1) where B is dense and in O(s) where it has factors.

    Args:
        inst: the problem, dense or by factors.
        state: the fields or the response.
        i: a kept variable, to be pruned.
        j: a pruned one of its group, to be restored.

    Returns:
        The change of the objective.
    """
    if inst.matrix.shape[0] > 0:
        return state[i] + inst.half[i] + inst.half[j] - state[j] - inst.matrix[i, j]
    total, left, right = 0.0, inst.factors[i], inst.factors[j]
    for t in range(state.size):
        # (U_i - U_j).z + 1/2 |U_i - U_j|^2, in which the diagonal is contained.
        step = left[t] - right[t]
        total += step * (state[t] + 0.5 * step)
    return inst.linear[i] - inst.linear[j] + total


@njit(cache=True)
def exchange(inst: Instance, order: Order, state: Vector, kept_slot: int, pruned_slot: int) -> None:
    """Swap the variables in a kept and a pruned slot, and update fields or response.

    Args:
        inst: the problem, dense or by factors.
        order: x; changed.
        state: the fields, in O(n), or the response, in O(s); changed.
        kept_slot: where the variable to prune is.
        pruned_slot: where the variable to restore is.
    """
    i, j = order[kept_slot], order[pruned_slot]
    order[kept_slot], order[pruned_slot] = j, i
    rows = inst.matrix if inst.matrix.shape[0] > 0 else inst.factors
    rise, fall = rows[i], rows[j]
    for t in range(state.size):
        state[t] += rise[t] - fall[t]
