"""The best of several solvers, or of several seeds."""

import itertools
from dataclasses import dataclass, replace

from secateur.core.errors import SecateurError
from secateur.core.problem import BlockProblem
from secateur.core.registry import register
from secateur.core.seeds import derive_seed
from secateur.core.solution import Solution, Status
from secateur.core.solver import Found, Solver


@register("solver", "best-of")
@dataclass(frozen=True)
class BestOf(Solver):
    """Runs several solvers, each with several seeds, and keeps the best answer.

    The first run of each has the seed given. A proof of optimality ends it early. Work is
    summed, and the highest of the lower bounds kept.

    Attributes:
        solvers: at least one; a tie goes to the first.
        runs: seeds for each, at least 1.
        gap: it ends early where the bound leaves at most this share of what can be gained
            (`Solution.gap`).
    """

    solvers: tuple[Solver, ...]
    runs: int = 1
    gap: float = 0.0

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            SecateurError: there is no solver, or no run.
        """
        object.__setattr__(self, "solvers", tuple(self.solvers))
        if not self.solvers or not all(isinstance(solver, Solver) for solver in self.solvers):
            raise SecateurError("the solver 'best-of' needs a list of at least one solver.")
        if not self.runs >= 1:
            raise SecateurError(f"the solver 'best-of' needs at least 1 run, not {self.runs}.")
        if not 0 <= self.gap <= 1:
            raise SecateurError(f"the solver 'best-of' needs a gap between 0 and 1, not {self.gap}.")

    def warm_up(self, size: int = 2) -> float:
        """Compile what it is made of, and call no part that may cost money or wait for a clock."""
        return sum(solver.warm_up(size) for solver in self.solvers)

    def search(self, problem: BlockProblem, seed: int) -> Found:
        """Run them all.

        Args:
            problem: the problem.
            seed: of the first runs; those of later ones derive from it.

        Returns:
            The best answer.
        """
        seeds = [seed, *(derive_seed(seed, "best-of", run) for run in range(1, self.runs))]
        best: Solution | None = None
        work, bound = 0, None
        for each, solver in itertools.product(seeds, self.solvers):
            solution = solver.solve(problem, each, certify=False)
            work += solution.work
            bound = max((b for b in (bound, solution.bound) if b is not None), default=None)
            if best is None or solution.value < best.value or solution.status is Status.OPTIMAL:
                best = solution
            gap = replace(best, bound=bound).gap
            if best.status is Status.OPTIMAL or (gap is not None and gap <= self.gap):
                break
        assert best is not None
        return Found(best.assignment, best.status, work, bound)
