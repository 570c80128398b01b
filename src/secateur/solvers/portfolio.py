"""Several solvers for a given time."""

import itertools
import math
import time
from dataclasses import dataclass, field

from secateur.core.errors import SecateurError
from secateur.core.problem import BlockProblem
from secateur.core.registry import register
from secateur.core.seeds import derive_seed
from secateur.core.solution import Status
from secateur.core.solver import Found, Solver
from secateur.solvers.annealing import Annealing
from secateur.solvers.greedy import Greedy
from secateur.solvers.iterated import Iterated
from secateur.solvers.polish import Polish
from secateur.solvers.relaxation import Relaxation


def _several() -> tuple[Solver, ...]:
    """Give what the portfolio holds unless told otherwise."""
    return (
        Polish(Relaxation()),
        Polish(Greedy()),
        Polish(Annealing(restarts=1)),
        Iterated(rounds=1),
    )


@register("solver", "portfolio")
@dataclass(frozen=True)
class Portfolio(Solver):
    """Runs several solvers in turn, each from the best answer so far, until the time is up.

    No solver is begun that took longer the last time than what is left; one that has begun
    is not broken off: on problems of many thousand variables the first round takes longer than a
    second or two. Kernels are compiled before the clock starts. With the clock as judge, two
    runs may differ. A proof of optimality, or a bound that is met, ends it early. Work is summed.

    Attributes:
        seconds: the time, above 0.
        solvers: at least one; the first round has the seed given, later ones derived seeds.
    """

    seconds: float = 1.0
    solvers: tuple[Solver, ...] = field(default_factory=_several)

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            SecateurError: the time is not above 0, or something is no solver.
        """
        object.__setattr__(self, "solvers", tuple(self.solvers))
        if not 0 < self.seconds < math.inf:
            raise SecateurError(
                f"the solver 'portfolio' needs a number of seconds above 0, not {self.seconds}."
            )
        if not self.solvers or not all(isinstance(solver, Solver) for solver in self.solvers):
            raise SecateurError("the solver 'portfolio' needs a list of at least one solver.")

    def warm_up(self, size: int = 2) -> float:
        """Compile what it is made of, and call no part that may cost money or wait for a clock."""
        return sum(solver.warm_up(size) for solver in self.solvers)

    def search(self, problem: BlockProblem, seed: int) -> Found:
        """Run them until the time is up.

        Args:
            problem: the problem.
            seed: of the first round.

        Returns:
            The best answer.
        """
        for solver in self.solvers:
            solver.warm_up(problem.size)
        begin, took = time.perf_counter(), dict.fromkeys(range(len(self.solvers)), 0.0)
        best = Found(problem.incumbent, Status.FEASIBLE, 0)
        work, bounds = 0, []
        for turn in itertools.count():
            at = turn % len(self.solvers)
            left = self.seconds - (time.perf_counter() - begin)
            if turn > 0 and left <= min(took.values()):
                break
            if turn > 0 and took[at] > left:
                continue
            start, clock = problem.restarted(best.assignment), time.perf_counter()
            derived = derive_seed(seed, "portfolio", turn) if turn >= len(self.solvers) else seed
            solution = self.solvers[at].solve(start, derived, certify=False)
            took[at] = time.perf_counter() - clock
            work += solution.work
            bounds += [] if solution.bound is None else [solution.bound]
            status = best.status if solution.status is Status.INCUMBENT else solution.status
            best = Found(solution.assignment, status, work, max(bounds, default=None))
            met = best.bound is not None and solution.value - best.bound <= problem.rounding
            if status is Status.OPTIMAL or met:
                break
        return best
