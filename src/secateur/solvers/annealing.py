"""Simulated annealing over swaps."""

import math
from dataclasses import dataclass

import numpy as np

from secateur.core.errors import SecateurError
from secateur.core.problem import BlockProblem
from secateur.core.registry import register
from secateur.core.solution import Status
from secateur.core.solver import Found, Solver
from secateur.solvers.arrays import assignment, mean_size, prepare, random_state
from secateur.solvers.kernels.annealing import anneal


@register("solver", "annealing")
@dataclass(frozen=True)
class Annealing(Solver):
    """Proposes random swaps and accepts a rise r with probability exp(-beta r).

    (Kirkpatrick, Gelatt and Vecchi 1983.) beta, the inverse temperature, rises by a constant
    factor; its unit is the inverse of the mean |B_ij|. The defaults are the published
    settings for iCBS (Rosenberg et al. 2024, arXiv:2411.17796), where the moves were flips
    held to the count by a penalty; here they are swaps, and every assignment is feasible.
    Each restart begins at random; the best assignment seen, the incumbent included, is kept.
    Work counts proposals: O(1) each and O(n) if accepted, or by factors, above 4,096 variables,
    O(s) each; a best one so far costs O(n) more.

    Attributes:
        restarts: independent runs, at least 1.
        sweeps: n proposals each, at every temperature; at least 1.
        beta_first: first inverse temperature, above 0.
        beta_last: bound on the last one, at least beta_first.
        factor: ratio of successive inverse temperatures, at least 1.0001.
    """

    restarts: int = 10
    sweeps: int = 1
    beta_first: float = 0.001
    beta_last: float = 100.0
    factor: float = 1.1

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            SecateurError: a setting is out of its range.
        """
        if not (self.restarts >= 1 and self.sweeps >= 1):
            raise SecateurError(
                "the solver 'annealing' needs at least 1 restart and 1 sweep, "
                f"not {self.restarts} and {self.sweeps}."
            )
        if not 0 < self.beta_first <= self.beta_last < math.inf:
            raise SecateurError(
                "the solver 'annealing' needs inverse temperatures 0 < beta_first <= beta_last, "
                f"not {self.beta_first} and {self.beta_last}."
            )
        if not 1.0001 <= self.factor < math.inf:
            raise SecateurError(
                f"the solver 'annealing' needs a factor of at least 1.0001, not {self.factor}."
            )

    def search(self, problem: BlockProblem, seed: int) -> Found:
        """Anneal.

        Args:
            problem: the problem.
            seed: for the proposals.

        Returns:
            The best assignment seen.
        """
        instance, order = prepare(problem, dense=not problem.is_large)
        steps = math.floor(math.log(self.beta_last / self.beta_first) / math.log(self.factor) + 1e-9)
        betas = self.beta_first * self.factor ** np.arange(steps + 1) / mean_size(instance)
        seen = anneal(instance, order, betas, self.restarts, self.sweeps, random_state(seed))
        return Found(assignment(problem, instance, order), Status.FEASIBLE, seen)
