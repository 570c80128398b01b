"""The continuous relaxation: a lower bound, and a start for the descents."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from secateur.core.errors import SecateurError
from secateur.core.problem import BlockProblem
from secateur.core.registry import register
from secateur.core.solution import Status
from secateur.core.solver import Found, Solver
from secateur.solvers.arrays import as_tensor, largest, prepare
from secateur.solvers.kernels.relaxation import lowest_sum, move_pairs, relax
from secateur.solvers.walk import Walk, product

# Large problems: so few violating pairs are finished, with fractional variables up to so many, as
# one small problem; the duality gap is computed every so many rounds.
_FEW, _MANY, _LOOK = 1024, 4096, 4


@dataclass(frozen=True, eq=False)
class Relaxed:
    """A minimum of the relaxation, to a tolerance.

    Attributes:
        point: x, each between 0 and 1, with the counts of the problem as sums.
        bound: a lower bound on the objective over binary x; None where the relaxation is not
            known to be convex.
        value: the relaxed objective at x.
        low: the value less the duality gap.
        before: the objective at the incumbent that the tolerance was measured from.
        steps: pairs moved.
    """

    point: Float[np.ndarray, " n"]
    bound: float | None
    value: float
    low: float
    before: float
    steps: int

    def is_within(self, tolerance: float, before: float) -> bool:
        """Say whether the duality gap is small enough.

        Args:
            tolerance: a share of what can be gained.
            before: over what.

        Returns:
            Whether it is.
        """
        return self.value - self.low <= tolerance * (before - self.low)


@register("solver", "relaxation")
@dataclass(frozen=True)
class Relaxation(Solver):
    """Minimises the objective over 0 <= x <= 1 with the same counts, and rounds.

    Of binary variables any diagonal D may be moved from the linear to the quadratic term,

        l - D/2,  B + diag(D)

    and with B + diag(D) positive semi-definite the relaxation is convex
    (`BlockProblem.convexifier`). It is descended pair by pair: a fraction moves from the j with
    the greatest gradient to the i with the least of the same group, O(n) a step (the sequential
    minimal optimisation of Platt 1998, here over a capped simplex for each group). By factors and
    above 4,096 variables, rounds of many pairs are moved in turn, each in O(s) by the response
    U'x, until few violate the optimality conditions, which are finished as one small problem.

    At any point x with gradient f, convexity gives the lower bound

        q(x) + min_s f.(s - x),   s over the relaxation's feasible set

    (the duality gap of Frank and Wolfe 1956), less what rounding may feign. In each group the
    largest x are rounded up, ties by position. Work counts pairs moved.

    Attributes:
        tolerance: duality gap to reach, as a share of what can be gained over the incumbent;
            at least 0.
        steps: moves for each variable at most, at least 1.
    """

    tolerance: float = 1e-3
    steps: int = 100

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            SecateurError: a setting is out of its range.
        """
        if not self.tolerance >= 0 or not self.steps >= 1:
            raise SecateurError(
                "the solver 'relaxation' needs a tolerance of at least 0 and at least 1 step a variable, "
                f"not {self.tolerance} and {self.steps}."
            )

    def search(self, problem: BlockProblem, seed: int) -> Found:
        """Relax and round.

        Args:
            problem: the problem.
            seed: not used.

        Returns:
            The rounded point, which may be worse than the incumbent, and the bound.
        """
        relaxed = self.relaxed(problem)
        rounded = largest(relaxed.point, problem.groups.cpu().numpy(), problem.counts.cpu().numpy())
        return Found(as_tensor(problem, rounded), Status.FEASIBLE, relaxed.steps, relaxed.bound)

    def lower_bound(self, problem: BlockProblem) -> float | None:
        """Bound the objective from below.

        Args:
            problem: the problem.

        Returns:
            A proven bound, None where the relaxation is not known to be convex.
        """
        return None if problem.convexifier is None else self.relaxed(problem).bound

    def relaxed(self, problem: BlockProblem) -> Relaxed:
        """Minimise the relaxation, once for a problem and those restarted from it.

        Args:
            problem: the problem.

        Returns:
            The point and the bound; where the incumbent has become better than the one that the
            tolerance was measured from, they are made more exact.
        """
        before, known = problem.value(problem.incumbent), problem.memory.get(str(self))
        if known is None or (before < known.before and not known.is_within(self.tolerance, before)):
            x = known.point.copy() if known else problem.incumbent.cpu().numpy().astype(np.float64)
            known = (self._large if problem.is_large else self._dense)(problem, x, before)
            problem.memory[str(self)] = known
        return known

    def _dense(self, problem: BlockProblem, x: Float[np.ndarray, " n"], before: float) -> Relaxed:
        """Descend with B at hand."""
        instance, order = prepare(problem)
        convexifier = problem.convexifier
        shift = np.zeros(problem.size) if convexifier is None else convexifier.cpu().numpy()
        linear, most = instance.linear - 0.5 * shift, self.steps * problem.size
        begin = before - problem.constant
        _, value, low, steps = relax(
            instance.matrix, linear, shift, instance.starts, order, x, begin, self.tolerance, most
        )
        bound = None if convexifier is None else problem.constant + low - problem.rounding / 2
        return Relaxed(x, bound, problem.constant + value, problem.constant + low, before, steps)

    def _large(self, problem: BlockProblem, x: Float[np.ndarray, " n"], before: float) -> Relaxed:
        """Descend by factors, many pairs a round."""
        walk = Walk.through(problem)
        walk.x = x
        walk.refresh()
        instance, random = walk.instance, np.random.default_rng(0)
        totals, begin = instance.counts.astype(np.float64), before - problem.constant
        bound, moved, turn, last = -np.inf, 0, 0, False
        while True:
            f = walk.fields()
            if turn % _LOOK == 0 or last:
                value = 0.5 * float((instance.linear + f) @ walk.x)
                low = value + lowest_sum(f, instance.starts, walk.members, totals) - float(f @ walk.x)
                bound = max(bound, low)
                if last:
                    break
                last = value - bound <= self.tolerance * (begin - bound)
            turn += 1
            rising, falling = violating_pairs(walk, f)
            last = last or rising.size == 0 or moved >= self.steps * problem.size
            if last:  # once more without the rounding errors of all the moves
                walk.refresh()
            elif rising.size <= _FEW:
                moved += self._finish(walk, f, rising, falling)
                turn += -turn % _LOOK
            else:
                # In a random order: neighbours in f would undo one another's moves.
                mixed = random.permutation(rising.size)
                move_pairs(
                    instance.factors, instance.linear, walk.x, walk.state, rising[mixed], falling[mixed]
                )
                moved += rising.size
        low = problem.constant + bound
        return Relaxed(walk.x, low - problem.rounding / 2, problem.constant + value, low, before, moved)

    def _finish(
        self,
        walk: Walk,
        f: Float[np.ndarray, " n"],
        rising: Int[np.ndarray, " m"],
        falling: Int[np.ndarray, " m"],
    ) -> int:
        """Relax those that violate the conditions and those at fractions, the others held."""
        violating = np.concatenate([rising, falling])
        fractions = np.setdiff1d(np.flatnonzero((walk.x > 0) & (walk.x < 1)), violating)
        chosen = np.unique(np.concatenate([violating, fractions[: _MANY - violating.size]]))
        chosen = chosen[np.argsort(walk.groups[chosen], kind="stable")]
        matrix, x = walk.couplings(chosen), walk.x[chosen]
        sizes = np.unique(walk.groups[chosen], return_counts=True)[1]
        starts, members = np.concatenate([[0], np.cumsum(sizes)]), np.arange(chosen.size)
        linear, most = f[chosen] - product(matrix, x), 20 * chosen.size
        *_, steps = relax(
            matrix, linear, np.zeros(chosen.size), starts, members, x, np.nan, self.tolerance, most
        )
        walk.move(chosen, x)
        return max(1, steps)


def violating_pairs(
    walk: Walk, f: Float[np.ndarray, " n"]
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """Pair, in each group, the least f of those that can grow with the greatest of those that can shrink.

    Args:
        walk: the point.
        f: the fields.

    Returns:
        For each pair with f_i < f_j, by rank: i and j.
    """
    sides = []
    for able, key in ((walk.x < 1, f), (walk.x > 0, -f)):
        side = np.flatnonzero(able)
        side = side[np.lexsort((key[side], walk.groups[side]))]
        sizes = np.bincount(walk.groups[side], minlength=walk.instance.counts.size)
        sides.append((side, sizes, np.cumsum(sizes) - sizes))
    (up, up_sizes, up_starts), (down, down_sizes, down_starts) = sides
    ranks = np.minimum(up_sizes, down_sizes)
    group = np.repeat(np.arange(ranks.size), ranks)
    place = np.arange(group.size) - np.repeat(np.cumsum(ranks) - ranks, ranks)
    rising, falling = up[up_starts[group] + place], down[down_starts[group] + place]
    violating = f[rising] < f[falling]
    return rising[violating], falling[violating]
