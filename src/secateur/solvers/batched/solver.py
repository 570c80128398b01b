"""The solver that works on many problems and restarts at once, for accelerators."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.problem import BlockProblem
from secateur.core.registry import register
from secateur.core.seeds import derive_seed, generator
from secateur.core.solution import Solution, Status
from secateur.core.solver import Found, Solver, judged
from secateur.solvers.batched.annealing import anneal
from secateur.solvers.batched.descent import descend
from secateur.solvers.batched.parts import padded, pieces_of
from secateur.solvers.batched.relaxation import dual_bound, relax
from secateur.solvers.batched.stack import FORMED_UP_TO, Stack
from secateur.solvers.decomposition import Decomposition

# Standard deviation of what is added to the relaxation before further roundings.
_NOISE = 0.1
# Inverse temperatures of annealing, first and last, in the unit of the inverse rms of B_ij.
_BETAS = (0.1, 30.0)
# Bytes for problems solved at once on a CPU; on a GPU, half of what is free.
_CPU_MEMORY = 2**30


@register("solver", "batched")
@dataclass(frozen=True)
class Batched(Solver):
    """Relaxes, rounds and descends, for many problems and several starts of each at once.

    Of each problem the convex relaxation is minimised (`relax`), which gives a lower bound where
    B is known to be positive semi-definite (`dual_bound`); the k_g largest x of each group are
    pruned. From there, from the incumbent, and from roundings of the relaxation with noise
    added, swaps are made until none improves (`descend`). Then, if asked for, the ends are
    annealed, and descended from again. The best is kept. `solve` takes one problem, whose
    restarts fill the device, `solve_many` any number.

    With ``iterations=0, restarts=1, exact=True`` this is the solver 'swaps'. No sum that
    decides is taken in a varying order, on a GPU neither; between devices sums round
    differently, so that near-ties may fall otherwise. Work counts swaps evaluated. Memory: see
    `Stack` and `descend`.

    Attributes:
        iterations: of the relaxation, at least 0; 0 = no bound, and the incumbent in its place.
        restarts: starts of each problem, at least 1: the rounding, the incumbent, then noisy
            roundings. Without iterations the rounding is the incumbent.
        sweeps: of annealing, n proposals each, one at each temperature; at least 0.
        exact: whether each swap is the best there is, as in 'swaps'; otherwise it is the best
            of the most promising ones, which ends as low in half the time.
        dtype: ``"float32"`` or ``"float64"``, in which B is held. In float32, a B given in
            float64 or formed from factors is rounded: values are computed in float64 all the
            same, but neither a bound nor a local optimum is claimed.
        device: where to work; None = where the problem is. Not Apple's GPUs, which lack float64.
        at_once: problems solved at once, at least 1; None = as many as memory has room for.
    """

    iterations: int = 60
    restarts: int = 4
    sweeps: int = 0
    exact: bool = False
    dtype: Literal["float32", "float64"] = "float64"
    device: str | None = None
    at_once: int | None = None

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            SecateurError: a setting is out of its range.
        """
        if not (self.iterations >= 0 and self.restarts >= 1 and self.sweeps >= 0):
            raise SecateurError(
                "the solver 'batched' needs iterations and sweeps of at least 0 and at least 1 restart, "
                f"not {self.iterations}, {self.sweeps} and {self.restarts}."
            )
        if self.dtype not in ("float32", "float64"):
            raise SecateurError(f"the solver 'batched' works in 'float32' or 'float64', not '{self.dtype}'.")
        if self.at_once is not None and not self.at_once >= 1:
            raise SecateurError(f"the solver 'batched' needs at_once of at least 1, not {self.at_once}.")

    def search(self, problem: BlockProblem, seed: int) -> Found:
        """Solve one problem, its restarts side by side.

        Args:
            problem: the problem.
            seed: for noise and proposals.

        Returns:
            The best end, and a bound where B is known to be positive semi-definite.
        """
        if problem.is_large and _place([problem], self.device).type == "cpu":
            return Decomposition(self).search(problem, seed)  # a scan of all pairs takes minutes there
        return self._search_many([problem], [seed], certify=False)[0]

    def solve_many(
        self, problems: Sequence[BlockProblem], seed: int = 0, *, certify: bool = True
    ) -> list[Solution]:
        """Solve many problems, each never worse than its incumbent.

        Values are computed in float64, all together, and so agree with `BlockProblem.value` up to rounding.
        The first gets the seed given, as `solve` would give it; those of the others derive from it.

        Args:
            problems: any number, of any sizes and forms; of like size for speed.
            seed: for noise and proposals.
            certify: whether to find out, where it is not known, if a dense B is positive
                semi-definite, and so has a bound: n^3/3 operations in float64 each.

        Returns:
            A solution of each, in order.
        """
        seeds = [seed, *(derive_seed(seed, "batched", index) for index in range(1, len(problems)))]
        solutions: list[Solution] = []
        while len(solutions) < len(problems):
            some = slice(len(solutions), len(solutions) + self._room(problems[len(solutions) :]))
            found = self._search_many(problems[some], seeds[some], certify)
            solutions += _checked(problems[some], found, self.part_name, _place(problems, self.device))
        return solutions

    def _search_many(
        self, problems: Sequence[BlockProblem], seeds: Sequence[int], certify: bool
    ) -> list[Found]:
        """Solve problems that fit into memory together."""
        stack = Stack.of(problems, getattr(torch, self.dtype), _place(problems, self.device))
        bounds = torch.full_like(stack.constant, -torch.inf)
        relaxed = stack.incumbents.double()
        if self.iterations:
            relaxed = relax(stack, self.iterations).double()
            bounds = dual_bound(stack, relaxed, certify)
        ends = descend(stack, self._starts(stack, relaxed, seeds), self.exact)
        if self.sweeps:
            # From the last temperature backwards, so that a single sweep is at the last.
            betas = _BETAS[1] * (_BETAS[0] / _BETAS[1]) ** torch.linspace(0, 1, self.sweeps).double().flip(0)
            walked, proposals = anneal(stack, ends.assignments, self._keys(stack, seeds), betas)
            ends = ends.beside(descend(stack, walked, self.exact), proposals)
        best = ends.values.argmin(1)
        one = torch.arange(best.numel(), device=best.device)
        sure = (ends.local[one, best] & stack.faithful).tolist()
        table = zip(
            problems, ends.assignments[one, best], sure, ends.work.tolist(), bounds.tolist(), strict=True
        )
        return [
            Found(
                assignment=x[: problem.size].to(problem.incumbent.device),
                status=Status.LOCAL_OPTIMUM if local else Status.FEASIBLE,
                work=work,
                bound=bound if math.isfinite(bound) else None,
            )
            for problem, x, local, work, bound in table
        ]

    def _starts(
        self, stack: Stack, relaxed: Float[Tensor, "b n"], seeds: Sequence[int]
    ) -> Bool[Tensor, "b r n"]:
        """Round the relaxation, and add the incumbents and noisy roundings."""
        starts = [stack.groups.largest(relaxed), *([stack.incumbents] if self.iterations else [])]
        more = self.restarts - len(starts)
        if more > 0:
            draws = [generator(seed, "batched") for seed in seeds]
            sizes = stack.sizes.tolist()
            noise = padded(
                [torch.randn(n, more, generator=draw).double() for n, draw in zip(sizes, draws, strict=True)],
                stack.shape[1],
                0.0,
            ).to(relaxed.device)
            starts += [stack.groups.largest(relaxed + _NOISE * each) for each in noise.unbind(2)]
        return torch.stack(starts[: self.restarts], 1)

    def _keys(self, stack: Stack, seeds: Sequence[int]) -> Int[Tensor, "b r"]:
        """Draw a key for each chain."""
        draws = [generator(seed, "batched chains") for seed in seeds]
        keys = [torch.randint(2**62, (self.restarts,), generator=draw) for draw in draws]
        return torch.stack(keys).to(stack.linear.device)

    def _room(self, problems: Sequence[BlockProblem]) -> int:
        """Count how many of the problems can be solved at once."""
        if self.at_once is not None:
            return self.at_once
        device = _place(problems, self.device)
        free = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else _CPU_MEMORY
        n = max(problem.size for problem in problems)
        formed = n <= FORMED_UP_TO or any(problem.dense is not None for problem in problems)
        width = n if formed else max(p.factors.shape[1] for p in problems if p.factors is not None)
        vectors = width * getattr(torch, self.dtype).itemsize + 200 * self.restarts
        return max(1, free // max(1, n * vectors))


def _place(problems: Sequence[BlockProblem], device: str | None) -> torch.device:
    """Say where to work: decisions need float64, which Apple's GPUs do not have."""
    place = problems[0].linear.device if device is None else torch.device(device)
    return torch.device("cpu") if place.type == "mps" else place


def _checked(
    problems: Sequence[BlockProblem], found: Sequence[Found], name: str, device: torch.device
) -> list[Solution]:
    """Do for many problems what `Solver.solve` does for one: values in float64, never worse."""
    solutions = []
    size = max(problem.size for problem in problems)
    for part in pieces_of(len(problems), size * size):
        # Factors stay factors here: x'U U'x costs n s operations.
        stack = Stack.of(problems[part], torch.float64, device, formed_up_to=0)
        x = padded([each.assignment.to(device) for each in found[part]], stack.shape[1], 0.0)
        one = torch.arange(x.shape[0], device=device)
        if not torch.equal(stack.groups.total(x.double()), stack.groups.counts.double()):
            raise SecateurError(f"the solver '{name}' returned an assignment that breaks a count.")
        after, before = stack.values(one, x).tolist(), stack.values(one, stack.incumbents).tolist()
        columns = (after, before, stack.rounding.tolist(), stack.groups.swappable().tolist())
        for problem, end, value, first, rounding, free in zip(
            problems[part], found[part], *columns, strict=True
        ):
            known = end if free else Found(problem.incumbent, Status.OPTIMAL, 0, first)
            solutions.append(judged(known, problem.incumbent, value, first, rounding, name))
    return solutions
