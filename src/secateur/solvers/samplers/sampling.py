"""Solvers that sample: from any zeros and ones to a solution."""

import random
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.problem import LARGE, BlockProblem
from secateur.core.qubo import Penalty, Qubo
from secateur.core.solution import Status
from secateur.core.solver import Found, Solver
from secateur.solvers.samplers.repair import objective, repair
from secateur.solvers.swaps import Swaps


@dataclass(frozen=True)
class SamplingSolver(Solver):
    """Draws assignments that need not keep the counts, and makes the best of them.

    A subclass implements `sample`. Every read is repaired and scored in float64; the best few
    different ones are polished by swap descent. Work counts the reads, and the moves that the
    polishing evaluated.

    Attributes:
        polished: reads that are polished, the best first; 0 = none.
    """

    polished: int = field(default=5, kw_only=True)

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            SecateurError: a negative number of reads is to be polished.
        """
        if self.polished < 0:
            raise SecateurError(
                f"the solver '{self.part_name}' polishes 0 reads or more, not {self.polished}."
            )

    @abstractmethod
    def sample(self, problem: BlockProblem, seed: int) -> Bool[Tensor, "m n"]:
        """Draw assignments.

        Args:
            problem: a problem in which at least one swap is possible.
            seed: for random choices.

        Returns:
            Any x, feasible or not, one a row, at least one.
        """

    def warm_up(self, size: int = 2) -> float:
        """Have what polishes compiled; whoever samples is not asked, as that may cost money.

        Args:
            size: of the problems to come.

        Returns:
            Seconds that it took.
        """
        return self.descent().warm_up(size)

    def descent(self) -> Solver:
        """Give what polishes.

        Returns:
            Swap descent.
        """
        return Swaps()

    def search(self, problem: BlockProblem, seed: int) -> Found:
        """Sample, repair, score, polish.

        Args:
            problem: the problem.
            seed: for the sampler.

        Returns:
            The best assignment found.

        Raises:
            SecateurError: there are no reads.
        """
        reads = self.sample(problem, seed).to(problem.incumbent.device)
        if len(reads) == 0:
            raise SecateurError(f"the solver '{self.part_name}' has no reads: ask for at least one.")
        mended = repair(problem, reads.unique(dim=0)).unique(dim=0)
        first = mended[objective(problem, mended).argsort(stable=True)[: max(1, self.polished)]]
        descent = self.descent()
        ends = [descent.search(problem.restarted(x), seed) for x in first[: self.polished]]
        # An end comes before a start of the same value: more is known about it.
        found = [*ends, Found(first[0], Status.FEASIBLE, 0)]
        best = min(found, key=lambda each: problem.value(each.assignment))
        return replace(best, work=len(reads) + sum(end.work for end in ends))


def dimensionless(problem: BlockProblem, penalty: Penalty = "auto") -> Qubo:
    """Write a problem in the unit of its own mean |Q_ij|, and without its constant.

    So settings of a sampler, such as temperatures, mean the same for every problem.

    Args:
        problem: the problem.
        penalty: P in that unit; ``"auto"`` and None as in `BlockProblem.to_qubo`.

    Returns:
        The form.

    Raises:
        SecateurError: the problem is given by factors so as never to form its matrix.
    """
    if problem.is_large:
        raise SecateurError(
            f"samplers need the matrix of a problem, and {problem.size} variables are many for that: take a "
            f"block of at most {LARGE}, or give B dense."
        )
    free = problem.to_qubo(None)
    free = Qubo(free.matrix / free.mean_size, 0.0)
    return free.with_counts(problem.groups.cpu(), problem.counts.cpu(), penalty)


@contextmanager
def contained(seed: int) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch, and put them back afterwards.

    Other people's samplers draw from them, some although they were given a seed.

    Args:
        seed: any integer.

    Yields:
        Nothing.
    """
    before, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.default_generator.manual_seed(seed % 2**63)
            yield
    finally:
        random.setstate(before)
        np.random.set_state(arrays)
