"""What a solver found, and what is known about it."""

from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from secateur.core.answers import read_answers
from secateur.core.ocean import read_sampleset
from secateur.core.problem import BlockProblem
from secateur.core.registry import lookup


class Status(StrEnum):
    """What is known about a solution."""

    OPTIMAL = "optimal"
    LOCAL_OPTIMUM = "local optimum"  # no single swap improves it
    FEASIBLE = "feasible"
    INCUMBENT = "incumbent"  # nothing better was found


@dataclass(frozen=True, eq=False)
class Solution:
    """What a solver found.

    Attributes:
        assignment: x; True = pruned.
        value: the objective at x, recomputed in float64.
        status: what is known about it.
        work: evaluated moves (swaps or flips) or assignments, as the solver says.
        solver: the name of what found it.
        bound: a proven lower bound on the objective, None where there is none.
        before: the objective at the incumbent.
    """

    assignment: Bool[Tensor, " n"]
    value: float
    status: Status
    work: int
    solver: str
    bound: float | None = None
    before: float | None = None

    @property
    def gap(self) -> float | None:
        """The share of what can have been gained that was not: (value - bound) / (before - bound).

        0 is a proven optimum, 1 the incumbent; the unit of the objective and its constant play no
        part. None where there is no bound.
        """
        if self.bound is None or self.before is None:
            return None
        possible = self.before - self.bound
        return max(0.0, self.value - self.bound) / possible if possible > 0 else 0.0

    @classmethod
    def from_sampleset(cls, problem: BlockProblem, sampleset: Any, polish: Any = None) -> "Solution":
        """Make a solution of what any sampler of Ocean, or of dimod, has read.

        Every read is repaired until it keeps the counts, and scored in float64; the best few are
        polished.

        Args:
            problem: the problem that was sent out, by `to_bqm`, `to_cqm`, `to_qubo` or a file.
            sampleset: a `dimod.SampleSet` over its variables, labelled 0 ... n-1 or x0 ...
                x(n-1) in any order; spins are understood.
            polish: a `Solver` that descends from its incumbent; None = swap descent.

        Returns:
            The best solution, never worse than the incumbent.
        """
        reads = read_sampleset(sampleset, problem.size)
        name = (getattr(sampleset, "info", None) or {}).get("solver", "sampleset")
        return _best_of(problem, reads, polish, str(name))

    @classmethod
    def from_file(cls, problem: BlockProblem, path: str | Path, polish: Any = None) -> "Solution":
        """Make a solution of an answer file that another solver wrote.

        Args:
            problem: the problem.
            path: JSON, .npy, .npz, rows of 0 and 1, CSV, or the .sol of HiGHS, SCIP, Gurobi or
                CPLEX (`secateur.core.answers.read_answers`); it may hold several assignments.
            polish: a `Solver` that descends from its incumbent; None = swap descent.

        Returns:
            The best solution, repaired, scored and polished; never worse than the incumbent.
        """
        return _best_of(problem, read_answers(path, problem.size), polish, Path(path).name)


def _best_of(problem: BlockProblem, reads: Tensor, polish: Any, name: str) -> Solution:
    """Repair, score and polish reads."""
    return replace(lookup("answers", "reads")(reads, polish).solve(problem), solver=name)
