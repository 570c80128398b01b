"""A row of weights, its Gram matrix, and the state that a walk over its masks keeps up to date."""

# numba compiles for 64-bit scalars, which numpy's stubs tell apart from int and float.
# pyright: reportArgumentType=false, reportReturnType=false

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numba import njit

from secateur.solvers.kernels.instance import Vector

Matrix = Float[np.ndarray, "i i"]
Flags = Bool[np.ndarray, " i"]


class Row(NamedTuple):
    """A row of weights, and what its Gram matrix makes of it; nothing in it changes during a descent.

    Attributes:
        w: the reference weights.
        own: G_jj w_j^2; the diagonal of a large G is slow to read.
        size: s, the root of that.
        peak: the largest |G_jk| of each row of G beside the diagonal.
        bar: less than 0 by what rounding may feign; a swap must change d'G d by less.
    """

    w: Vector
    own: Vector
    size: Vector
    peak: Vector
    bar: float


@njit(cache=True, nogil=True, fastmath=True)
def add(r: Vector, row: Vector, factor: float) -> None:
    """Add a multiple of a row of G to r.

    Args:
        r: changed.
        row: what is added.
        factor: how often.
    """
    for k in range(r.size):
        r[k] += factor * row[k]


@njit(cache=True, nogil=True)
def respond(gram: Matrix, w: Vector, kept: Flags, r: Vector) -> None:
    """Write r = G d, where d is w for pruned weights and 0 for kept ones.

    Args:
        gram: G.
        w: the row's weights.
        kept: the row's mask.
        r: where to.
    """
    r[:] = 0.0
    for j in range(w.size):
        if not kept[j]:
            add(r, gram[j], w[j])


@njit(cache=True, nogil=True)
def lone_change(row: Row, kept: Flags, r: Vector, j: int) -> float:
    """Give the change of d'G d when one weight is flipped.

    Args:
        row: the row.
        kept: its mask.
        r: G d.
        j: the weight.

    Returns:
        G_jj w_j^2 + 2 w_j r_j where it is pruned thereby, and the same with a minus where it is restored.
    """
    slope = 2.0 * row.w[j] * r[j]
    return row.own[j] + (slope if kept[j] else -slope)


@njit(cache=True, nogil=True)
def exchange_in_row(gram: Matrix, w: Vector, kept: Flags, r: Vector, prune: int, restore: int) -> None:
    """Make a swap.

    Args:
        gram: G.
        w: the row's weights.
        kept: the row's mask; changed.
        r: G d; changed.
        prune: what is pruned.
        restore: what is restored.
    """
    add(r, gram[prune], w[prune])
    add(r, gram[restore], -w[restore])
    kept[prune], kept[restore] = False, True
