"""A node of a branch and bound tree: its relaxation, and the bound that follows, compiled by numba.

The variables are branched on in a fixed order, which is how they are numbered here: at depth d
the first d have values, and those from d on are *free*. Every depth has a shift s of its own
(`convexify.py`), made for just the variables that are free there. The *relaxation* of a node

    q(x) = c + (l + s/2).x + 1/2 x'(B - diag(s)) x    over  0 <= x <= 1, each group's sum as needed

is convex. So with g the gradient of q at any such x, and any price t for each group,

    q(x) + sum over i of  min over v in [0, 1] of  (g_i - t_i) (v - x_i)

is below the objective of every assignment that the node still allows.
"""

# numba compiles for 64-bit scalars, which numpy's stubs tell apart from int and float.
# pyright: reportArgumentType=false, reportReturnType=false

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numba import njit

Vector = Float[np.ndarray, " n"]

FRESH, FINISHED = -1, 2  # of a node: not looked at yet; both children made, or none needed
_LOOK = 5  # steps between two looks at the bound
_PATIENCE = 20  # steps for a point that has shown that the node stays open
_EFFORT = 10  # steps at most, for each variable
_THOROUGH = 1000  # the same where the minimum itself is wanted
_SLACK = 1e-6  # sums of ones and fractions are whole to well within this


class Tree(NamedTuple):
    """A problem as branch and bound sees it; nothing in it is ever written.

    Attributes:
        matrix: B, symmetric.
        shift: s of each depth; entries of variables that have values there are not used.
        groups: the group of each variable, numbered from 0.
        margin: differences of the objective up to this are rounding.
    """

    matrix: Float[np.ndarray, "n n"]
    shift: Float[np.ndarray, "n n"]
    groups: Int[np.ndarray, " n"]
    margin: float


class Path(NamedTuple):
    """The nodes from the root to where the search is, and what it has found; written in place.

    Attributes:
        constant: of each depth, the objective of the variables that have values.
        linear: of each depth, l of the free variables and what those with values add to it.
        need: of each depth and group, the ones still to be placed.
        point: of each depth, a fractional x.
        bound: of each depth, the node's lower bound.
        made: of each depth, the children made so far, or FRESH or FINISHED.
        values: the values given.
        best: the best assignment known.
        value: its objective; one entry.
        depth: the present depth, -1 when everything has been searched; one entry.
    """

    constant: Float[np.ndarray, " n_and_1"]
    linear: Float[np.ndarray, "n_and_1 n"]
    need: Float[np.ndarray, "n_and_1 groups"]
    point: Float[np.ndarray, "n_and_1 n"]
    bound: Float[np.ndarray, " n_and_1"]
    made: Int[np.ndarray, " n_and_1"]
    values: Vector
    best: Vector
    value: Float[np.ndarray, "1"]
    depth: Int[np.ndarray, "1"]


def at_root(linear: Vector, counts: Int[np.ndarray, " groups"], depths: int) -> Path:
    """Begin where nothing is known.

    Args:
        linear: l.
        counts: ones in each group.
        depths: rows to make room for; one is enough for the root's relaxation.

    Returns:
        The path of which the root is all; nothing is in its `best`.
    """
    n, groups = linear.size, counts.size
    path = Path(
        constant=np.zeros(depths),
        linear=np.zeros((depths, n)),
        need=np.zeros((depths, groups)),
        point=np.full((depths, n), 0.5),
        bound=np.full(depths, -np.inf),
        made=np.full(depths, FRESH),
        values=np.zeros(n),
        best=np.zeros(n),
        value=np.full(1, np.inf),
        depth=np.zeros(1, np.int64),
    )
    path.linear[0], path.need[0] = linear, counts
    return path


@njit(cache=True)
def repair(tree: Tree, path: Path, depth: int) -> bool:
    """Move a node's point to the sums that its groups need.

    Args:
        tree: the problem.
        path: the point is written.
        depth: that of the node.

    Returns:
        Whether there is such a point.
    """
    x = path.point[depth]
    lack = path.need[depth].copy()
    room, mass = np.zeros(lack.size), np.zeros(lack.size)
    for i in range(depth, x.size):
        g = tree.groups[i]
        lack[g] -= x[i]
        room[g] += 1.0 - x[i]
        mass[g] += x[i]
    for g in range(lack.size):
        if not -mass[g] - _SLACK <= lack[g] <= room[g] + _SLACK:
            return False
    for i in range(depth, x.size):
        g = tree.groups[i]
        if lack[g] > 0.0:
            x[i] += (1.0 - x[i]) * min(1.0, lack[g] / room[g])
        elif lack[g] < 0.0:
            x[i] += x[i] * max(-1.0, lack[g] / mass[g])
    return True


@njit(cache=True)
def relax(tree: Tree, path: Path, depth: int, cutoff: float) -> float:
    """Bound a node by its relaxation, as far as is needed to decide about it.

    Each step moves mass between the two variables of a group whose gradients differ most. The
    steps end when the bound reaches the cutoff, or the value has shown that it never will.

    Args:
        tree: the problem.
        path: the point is written.
        depth: that of the node.
        cutoff: the bound that closes the node; inf to find the minimum.

    Returns:
        The lower bound.
    """
    x, s = path.point[depth], tree.shift[depth]
    gradient, value = slope(tree, path, depth)
    groups, free = path.need.shape[1], x.size - depth
    up, down, price = np.empty(groups, np.int64), np.empty(groups, np.int64), np.empty(groups)
    bound = -np.inf
    for step in range(free * (_EFFORT if cutoff < np.inf else _THOROUGH) + 1):
        g = steepest(tree.groups, gradient, x, depth, up, down, price)
        gain = gradient[down[g]] - gradient[up[g]] if g >= 0 else 0.0
        ended = gain * free <= 0.1 * tree.margin
        if ended or step % _LOOK == 0:
            bound = max(bound, value + dual(tree.groups, gradient, x, depth, price))
            hopeless = value < cutoff < np.inf and step >= _PATIENCE
            if ended or hopeless or bound >= cutoff:
                break
        i, j = up[g], down[g]
        rise, fall = tree.matrix[i], tree.matrix[j]
        bend = rise[i] - s[i] + fall[j] - s[j] - 2.0 * rise[j]
        length = min(1.0 - x[i], x[j])
        if gain < bend * length:
            length = gain / bend
        x[i] = 1.0 if length == 1.0 - x[i] else x[i] + length
        x[j] = 0.0 if length == x[j] else x[j] - length
        value += length * (0.5 * bend * length - gain)
        for k in range(depth, x.size):
            gradient[k] += length * (rise[k] - fall[k])
        gradient[i] -= length * s[i]
        gradient[j] += length * s[j]
    return bound


@njit(cache=True)
def slope(tree: Tree, path: Path, depth: int) -> tuple[Vector, float]:
    """Compute the relaxation's gradient and value.

    Args:
        tree: the problem.
        path: where the search is.
        depth: that of the node.

    Returns:
        The gradient, of which the free variables' part is meant, and the value.
    """
    x, s = path.point[depth], tree.shift[depth]
    gradient = path.linear[depth] + s * (0.5 - x)
    value = path.constant[depth]
    for j in range(depth, x.size):
        if x[j] != 0.0:
            for i in range(depth, x.size):
                gradient[i] += x[j] * tree.matrix[j, i]
    for i in range(depth, x.size):
        value += 0.5 * x[i] * (gradient[i] + path.linear[depth, i] + 0.5 * s[i])
    return gradient, value


@njit(cache=True)
def steepest(
    groups: Int[np.ndarray, " n"],
    gradient: Vector,
    x: Vector,
    depth: int,
    up: Int[np.ndarray, " groups"],
    down: Int[np.ndarray, " groups"],
    price: Float[np.ndarray, " groups"],
) -> int:
    """Find in each group what to raise and what to lower.

    Args:
        groups: the group of each variable.
        gradient: that of the relaxation.
        x: the point.
        depth: the first free variable.
        up: written: the variable below 1 with the least gradient, -1 where there is none.
        down: written: the variable above 0 with the greatest gradient, -1 where there is none.
        price: written: a gradient between the two, the best price at the minimum.

    Returns:
        The group whose two gradients differ most, -1 where no exchange lowers the value.
    """
    up[:] = -1
    down[:] = -1
    for i in range(depth, x.size):
        g = groups[i]
        if x[i] < 1.0 and (up[g] < 0 or gradient[i] < gradient[up[g]]):
            up[g] = i
        if x[i] > 0.0 and (down[g] < 0 or gradient[i] > gradient[down[g]]):
            down[g] = i
    best, most = -1, 0.0
    for g in range(up.size):
        i, j = up[g], down[g]
        if i >= 0 and j >= 0:
            price[g] = 0.5 * (gradient[i] + gradient[j])
            if gradient[j] - gradient[i] > most:
                best, most = g, gradient[j] - gradient[i]
        else:
            price[g] = gradient[max(i, j)] if max(i, j) >= 0 else 0.0
    return best


@njit(cache=True)
def dual(
    groups: Int[np.ndarray, " n"],
    gradient: Vector,
    x: Vector,
    depth: int,
    price: Float[np.ndarray, " groups"],
) -> float:
    """Bound what the linear model of the relaxation can still gain.

    Args:
        groups: the group of each variable.
        gradient: that of the relaxation.
        x: the point.
        depth: the first free variable.
        price: t of each group.

    Returns:
        The sum over i of min over v in [0, 1] of (g_i - t_i) (v - x_i), at most 0.
    """
    total = 0.0
    for i in range(depth, x.size):
        cost = gradient[i] - price[groups[i]]
        total += cost * (0.0 - x[i] if cost > 0.0 else 1.0 - x[i])
    return total
