"""The best of several solvers, or of several seeds."""

from dataclasses import dataclass

from secateur.core.errors import SecateurError
from secateur.core.problem import BlockProblem
from secateur.core.registry import register
from secateur.core.seeds import derive_seed
from secateur.core.solution import Status
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
    """

    solvers: tuple[Solver, ...]
    runs: int = 1

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

    def search(self, problem: BlockProblem, seed: int) -> Found:
        """Run them all.

        Args:
            problem: the problem.
            seed: of the first runs; those of later ones derive from it.

        Returns:
            The best answer.
        """
        seeds = [seed, *(derive_seed(seed, "best-of", run) for run in range(1, self.runs))]
        best, work, bounds = None, 0, []
        for each in seeds:
            for solver in self.solvers:
                solution = solver.solve(problem, each)
                work += solution.work
                bounds += [] if solution.bound is None else [solution.bound]
                if best is None or solution.value < best.value or solution.status is Status.OPTIMAL:
                    best = solution
                if best.status is Status.OPTIMAL:
                    return Found(best.assignment, best.status, work, max(bounds, default=None))
        assert best is not None
        return Found(best.assignment, best.status, work, max(bounds, default=None))
