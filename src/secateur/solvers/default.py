"""The solver that pruning uses unless told otherwise."""

import math
from dataclasses import dataclass
from functools import cached_property

from secateur.core.errors import SecateurError
from secateur.core.problem import BlockProblem
from secateur.core.registry import register
from secateur.core.solver import Found, Solver
from secateur.solvers.batched import Batched
from secateur.solvers.best_of import BestOf
from secateur.solvers.greedy import Greedy
from secateur.solvers.iterated import Iterated
from secateur.solvers.polish import Polish
from secateur.solvers.portfolio import Portfolio
from secateur.solvers.relaxation import Relaxation
from secateur.solvers.tabu import TabuSearch

# Variables of a problem on a GPU: an estimate, from some 30,000 launches of 5 microseconds.
_BATCHED_ABOVE = 2048


@register("solver", "default")
@dataclass(frozen=True)
class Default(Solver):
    """Rounds the relaxation and descends; goes on only where its bound says that it may pay.

    Blocks of trained networks end there, within a fraction of a per cent of the lower bound.
    Where the bound leaves more, or there is none as B is indefinite, tabu search goes on from
    there and from a greedy construction, and the better end is kept. Work is summed. A problem on a
    GPU is solved there (`Batched`) if it has more than 2,048 variables, and on the CPU if it has
    fewer, where it takes less time than the launches of a batch of one.

    Attributes:
        gap: share of what can be gained (`Solution.gap`) below which to stop.
        iterations: of each tabu search; 0 = none: swap descent from both starts.
        seconds: time in which to go on by further tabu searches from shaken answers
            (`Portfolio`), above 0; None = none, so that the answer does not depend on the clock.
    """

    gap: float = 0.005
    iterations: int = 1500
    seconds: float | None = None

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            SecateurError: a setting is out of its range.
        """
        if not 0 <= self.gap <= 1:
            raise SecateurError(f"the solver 'default' needs a gap between 0 and 1, not {self.gap}.")
        if not self.iterations >= 0:
            raise SecateurError(f"the solver 'default' needs at least 0 iterations, not {self.iterations}.")
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise SecateurError(f"the solver 'default' needs seconds above 0, not {self.seconds}.")

    @cached_property
    def chain(self) -> Solver:
        """The solvers that it is made of."""
        relaxed, greedy = Polish(Relaxation()), Polish(Greedy())
        if self.iterations:
            tabu = TabuSearch(self.iterations)
            relaxed, greedy = Polish(relaxed, tabu, self.gap), Polish(greedy, tabu)
        # Last, from the best of those and the incumbent: at most a look whether a swap improves it.
        best = Polish(BestOf((relaxed, greedy), gap=self.gap))
        if self.seconds is None:
            return best
        return Polish(best, Portfolio(self.seconds, (Iterated(TabuSearch(300), rounds=1),)), self.gap)

    def warm_up(self, size: int = 2) -> float:
        """Compile what it is made of, and call no part that may cost money or wait for a clock."""
        return self.chain.warm_up(size)

    def search(self, problem: BlockProblem, seed: int) -> Found:
        """Run the chain, or on a GPU the batched solver.

        Args:
            problem: the problem.
            seed: for the tabu searches.

        Returns:
            The best assignment found: a local optimum.
        """
        on_gpu = problem.linear.device.type == "cuda" and problem.size > _BATCHED_ABOVE
        return (Batched() if on_gpu else self.chain).search(problem, seed)
