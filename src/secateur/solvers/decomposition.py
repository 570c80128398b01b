"""Working sets: a solver of small problems made into one of large ones."""

import time
from dataclasses import dataclass, field

from secateur.core.errors import SecateurError
from secateur.core.problem import BlockProblem
from secateur.core.registry import lookup, register
from secateur.core.seeds import derive_seed
from secateur.core.solution import Status
from secateur.core.solver import Found, Solver, tiny
from secateur.solvers.arrays import as_tensor
from secateur.solvers.walk import Walk


@register("solver", "decomposition")
@dataclass(frozen=True)
class Decomposition(Solver):
    """Solves a large problem a working set at a time, block coordinate descent over x.

    Each round takes the variables whose swaps would cost least if none interacted, poses the
    choice among them with the others fixed, and moves there. When that improves nothing, all
    swaps are looked through for improving ones, which make the next working set; when there
    are none, x is swap-optimal. By factors (B = U U') the response U'x is carried from round
    to round: a round costs O(n s + m^2 s) and the small solver, and memory is that of U in
    float64 and m^2. With a sampler inside, and a working set as small as it takes, this is
    how a problem of any size goes to a quantum annealer.

    Attributes:
        solver: solves the small problems, starting from their incumbents; swap descent by default.
        size: m, variables in a working set, at least 2.
        rounds: working sets at most, at least 1.
    """

    solver: Solver = field(default_factory=lambda: lookup("solver", "swaps")())
    size: int = 2048
    rounds: int = 10_000

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            SecateurError: the solver is none, or a number is out of its range.
        """
        if not isinstance(self.solver, Solver):
            raise SecateurError("the solver 'decomposition' needs a solver of small problems.")
        if not (self.size >= 2 and self.rounds >= 1):
            raise SecateurError(
                "the solver 'decomposition' needs working sets of at least 2 variables and at least 1 round, "
                f"not {self.size} and {self.rounds}."
            )

    def warm_up(self, size: int = 2) -> float:
        """Compile what it is made of, and call no part that may cost money or wait for a clock."""
        begin = time.perf_counter()
        walk = Walk.through(tiny(4))
        walk.improving(2, walk.fields())
        return time.perf_counter() - begin + self.solver.warm_up(self.size)

    def search(self, problem: BlockProblem, seed: int) -> Found:
        """Improve one working set after another.

        Args:
            problem: the problem.
            seed: of the first round; those of later ones derive from it.

        Returns:
            A local optimum, unless the rounds ran out or the small solver left an improving swap.
        """
        walk, work, status, looked = Walk.through(problem), 0, Status.FEASIBLE, False
        for turn in range(self.rounds):
            if looked:
                walk.refresh()
            f = walk.fields()
            chosen = walk.improving(self.size, f) if looked else walk.cheapest(self.size, f)
            if looked and chosen.size == 0:
                status = Status.LOCAL_OPTIMUM
                break
            part = walk.pose(chosen, f)
            solution = self.solver.solve(part, derive_seed(seed, "decomposition", turn), certify=False)
            work += solution.work
            improved = solution.value < -part.rounding
            if looked and not improved:
                break
            if improved:
                walk.move(chosen, solution.assignment.numpy().astype(float))
            looked = not improved
        return Found(as_tensor(problem, walk.x > 0.5), status, work)
