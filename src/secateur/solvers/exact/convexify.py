"""Convex quadratics that agree with the objective on every feasible assignment.

x_i^2 = x_i for binary x. So for every s

    l.x + 1/2 x'B x  =  (l + s/2).x + 1/2 x'(B - diag(s)) x

and where B - diag(s) is positive semi-definite along the moves that keep the counts, the right
side is convex over all fractional x with these counts: its least value there bounds the
objective below, the better the larger s is.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from secateur.core.problem import BlockProblem
from secateur.solvers.kernels.node import Tree, at_root, relax, repair, slope

# The barrier begins with this share of what it is worth, and each round cuts it so.
_FIRST, _CUT, _ROUNDS, _STEPS = 0.1, 0.1, 4, 50
_LEAST, _RIDGE = 1e-3, 1e-10  # relative to the largest weight, and to the diagonal
# A variable's size counts as at least this share of the largest.
_SPREAD = 1e-5
_TAME = 100.0
# Sums of n^2 terms carry errors well below this share of the sum of their sizes.
_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class Quadratic:
    """A block problem without its constant and incumbent, as float64 arrays.

    Attributes:
        matrix: B, symmetric.
        linear: l.
        groups: the group of each variable.
        counts: ones in each group.
    """

    matrix: Float[np.ndarray, "n n"]
    linear: Float[np.ndarray, " n"]
    groups: Int[np.ndarray, " n"]
    counts: Int[np.ndarray, " groups"]

    @property
    def size(self) -> float:
        """The sum of |l_i| and |B_ij|: the unit in which rounding errors are small."""
        return float(np.abs(self.linear).sum() + np.abs(self.matrix).sum())

    @property
    def margin(self) -> float:
        """Differences of the objective up to this are rounding."""
        return _ROUNDING * self.size

    def ordered(self, order: Int[np.ndarray, " n"]) -> "Quadratic":
        """Number the variables otherwise.

        Args:
            order: the old number of each new variable.

        Returns:
            The same choice.
        """
        matrix = np.ascontiguousarray(self.matrix[np.ix_(order, order)])
        return Quadratic(matrix, self.linear[order], self.groups[order], self.counts)


def quadratic(problem: BlockProblem) -> Quadratic:
    """Lay a problem out as arrays.

    Args:
        problem: the problem.

    Returns:
        The same choice, its B averaged with the transpose.
    """
    matrix = problem.matrix.detach().cpu().numpy()
    return Quadratic(
        0.5 * matrix + 0.5 * matrix.T,
        problem.linear.detach().double().cpu().numpy(),
        problem.groups.cpu().numpy().astype(np.int64),
        problem.counts.cpu().numpy().astype(np.int64),
    )


@dataclass(frozen=True, eq=False)
class Tangent:
    """The least value of one convex quadratic, and its tangent there.

    Attributes:
        bound: a lower bound on l.x + 1/2 x'B x.
        shift: s.
        weights: x (1 - x), averaged over this and earlier relaxations.
        slope: the tangent's slope.
        offset: the tangent at x = 0; offset + slope.x is below the objective at every feasible x.
    """

    bound: float
    shift: Float[np.ndarray, " n"]
    weights: Float[np.ndarray, " n"]
    slope: Float[np.ndarray, " n"]
    offset: float


def tangents(problem: Quadratic) -> Iterator[Tangent]:
    """Solve one convex relaxation after another, each with a shift made for the last one's point.

    The bound rises most where s grows with weights x (1 - x), x the minimiser; the weights'
    average over the rounds tends to those of the best s of all, that of the semidefinite
    relaxation. The bounds rise as a rule, but not always.

    Args:
        problem: the problem.

    Yields:
        Relaxations without end.
    """
    weights = np.full(problem.linear.size, 0.25)
    path = at_root(problem.linear, problem.counts, 1)
    for turn in range(2, 2**62):
        shift = diagonal_shift(problem.matrix, problem.groups, weights)
        tree = Tree(problem.matrix, shift[None], problem.groups, problem.margin)
        repair(tree, path, 0)
        bound = relax(tree, path, 0, np.inf)
        gradient, value = slope(tree, path, 0)
        x = path.point[0]
        weights = weights + (x * (1.0 - x) - weights) / turn
        yield Tangent(bound, shift, weights, gradient, value - float(gradient @ x))


def moves(groups: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n m"]:
    """Span the directions that keep the sum of every group.

    Args:
        groups: the group of each variable.

    Returns:
        An orthonormal basis, one column for each direction: n less the number of groups.
    """
    present, place = np.unique(groups, return_inverse=True)
    sums = np.zeros((groups.size, present.size))
    sums[np.arange(groups.size), place] = 1.0
    return np.linalg.qr(sums, mode="complete")[0][:, present.size :]


def diagonal_shift(
    matrix: Float[np.ndarray, "n n"], groups: Int[np.ndarray, " n"], weights: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Find the s worth most for which B - diag(s) is convex along the moves of the groups.

    It maximises weights.s by Newton's method with the barrier log det Z'(B - diag(s)) Z, Z the
    moves. (Billionnet, Elloumi and Plateau 2009, Discrete Applied Mathematics 157(6),
    doi:10.1016/j.dam.2007.12.007, take s from the semidefinite relaxation that this solves.)

    Args:
        matrix: B, symmetric.
        groups: the group of each variable.
        weights: how much each entry of s is worth, at least 0 and not all 0.

    Returns:
        s; the least eigenvalue of Z'(B - diag(s)) Z is 0 up to rounding.
    """
    free = np.flatnonzero(np.bincount(groups)[groups] > 1)  # the s of a group of one changes nothing
    shift, inner = np.zeros(groups.size), matrix[np.ix_(free, free)]
    if inner.any():
        shift[free] = _best(inner, moves(groups[free]), _attainable(weights[free], groups[free]))
    return shift


def _attainable(weights: Float[np.ndarray, " n"], groups: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Limit weights to variances of members of a group of constant sum: else no s is best."""
    # Deviations of these sizes must be able to add up to zero, as the sides of a polygon do.
    sides = np.sqrt(np.maximum(weights, _LEAST * weights.max()))
    order = np.lexsort((-sides, groups))
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    longest, second = order[starts], order[starts + 1]
    rest = np.add.reduceat(sides[order], starts) - sides[longest] - sides[second]
    sides[longest] = np.minimum(sides[longest], sides[second] + 0.9 * rest)
    return sides**2


def _best(
    matrix: Float[np.ndarray, "n n"], basis: Float[np.ndarray, "n m"], weights: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Find the shift for groups of two and more."""
    shift, projected = _dominated(matrix), basis.T @ matrix @ basis
    barrier = _FIRST * float(weights @ (matrix.diagonal() - shift)) / basis.shape[1]
    for turn in range(_ROUNDS):
        shift = _centre(projected, basis, weights, shift, barrier * _CUT**turn)
    shift = shift + np.linalg.eigvalsh(projected - (basis.T * shift) @ basis)[0]
    # The barrier keeps off the best by some thousandths: where B is singular, s = 0 may be better.
    even = np.full(weights.size, np.linalg.eigvalsh(projected)[0])
    # Entries of other sizes than B's would spoil sums with their rounding.
    tame = np.abs(shift).sum() <= _TAME * np.abs(matrix).sum()
    return shift if tame and weights @ shift > weights @ even else even


def _dominated(matrix: Float[np.ndarray, "n n"]) -> Float[np.ndarray, " n"]:
    """Make B - diag(s) diagonally dominant once scaled: an s well inside, of the right sizes."""
    size = np.sqrt(np.abs(matrix).max(1))
    size = np.maximum(size, _SPREAD * size.max())
    beside = np.abs(matrix)
    np.fill_diagonal(beside, 0.0)
    return np.minimum(matrix.diagonal(), 0.0) - 1.1 * size * (beside @ (1.0 / size)) - 0.1 * size**2


def _centre(
    projected: Float[np.ndarray, "m m"],
    basis: Float[np.ndarray, "n m"],
    weights: Float[np.ndarray, " n"],
    shift: Float[np.ndarray, " n"],
    barrier: float,
) -> Float[np.ndarray, " n"]:
    """Maximise weights.s + barrier log det(Z'(B - diag(s)) Z) by damped Newton steps."""
    for _ in range(_STEPS):
        try:
            root = np.linalg.cholesky(projected - (basis.T * shift) @ basis)
            half = np.linalg.solve(root, basis.T)
            inverse = half.T @ half
            ascent = weights / barrier - inverse.diagonal()
            curvature = inverse**2
            # Singular where s changes nothing, in which direction the ascent is 0 up to rounding.
            np.fill_diagonal(curvature, (1.0 + _RIDGE) * curvature.diagonal())
            step = np.linalg.solve(curvature, ascent)
        except np.linalg.LinAlgError:  # no room left between the wall and rounding
            break
        decrement = np.sqrt(max(0.0, float(ascent @ step)))
        if decrement < 0.1:
            return shift + step
        # As far as the barrier lets it, but no further than the full step.
        wall = np.linalg.eigvalsh((half * step) @ half.T)[-1]
        shift = shift + step * min(1.0, max(1.0 / (1.0 + decrement), 0.8 / max(wall, 0.8)))
    return shift
