"""Any sampler of D-Wave's Ocean, or written for dimod, as a solver."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from secateur.core.errors import SecateurError, nearest
from secateur.core.extras import need
from secateur.core.ocean import EXTRA, bqm_of, cqm_of, read_sampleset
from secateur.core.problem import BlockProblem
from secateur.core.qubo import check_penalty
from secateur.core.registry import register
from secateur.core.seeds import derive_seed
from secateur.solvers.samplers.sampling import SamplingSolver, contained, dimensionless

# Of these all reads under one seed are the same one, so that they are drawn one by one.
_ALIKE = ("openjij.",)
# Which extra brings a sampler that is asked for by name.
_EXTRAS = {"dimod": EXTRA, "dwave": EXTRA, "openjij": "openjij"}


@register("solver", "dimod")
@dataclass(frozen=True)
class DimodSolver(SamplingSolver):
    """Runs a dimod sampler, local or remote, and makes a solution of what it reads.

    A sampler that knows constraints (`sample_cqm`) gets the counts as they are; any other gets
    them as a penalty, and its reads are repaired. The objective is scaled so that the mean
    |Q_ij| is 1, and its constant left out, so that settings such as temperatures mean the same
    for every problem. The best reads are polished by swap descent.

    `reads` and the seed are passed to samplers that take them; the answer follows from the seed
    only where the sampler's does: a quantum computer's does not, and `TabuSampler` stops by the
    clock unless `num_restarts` is set.

    Attributes:
        sampler: an object with `sample` or `sample_cqm`, or where to find one that can be made
            without arguments, such as ``"dwave.samplers:SimulatedAnnealingSampler"``.
        reads: assignments to draw, at least 1.
        penalty: P >= 0 in units of the mean |Q_ij|; ``"auto"``: the root of the number of groups,
            see `secateur.core.qubo.automatic_penalty`.
        parameters: what else is passed to the sampler, such as ``{"num_sweeps": 1000}``.
    """

    sampler: Any = "dwave.samplers:SimulatedAnnealingSampler"
    reads: int = 20
    penalty: float | int | str = "auto"
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            SecateurError: a setting is out of its range, or the sampler is none.
        """
        super().__post_init__()
        if self.reads < 1:
            raise SecateurError(f"the solver 'dimod' needs at least 1 read, not {self.reads}.")
        check_penalty(self.penalty)
        if isinstance(self.sampler, str):
            if not all(self.sampler.partition(":")):
                raise SecateurError(
                    "the solver 'dimod' finds a sampler by 'module:Class', such as "
                    f"'dwave.samplers:TabuSampler', not '{self.sampler}'."
                )
        elif isinstance(self.sampler, type) or not (
            hasattr(self.sampler, "sample") or hasattr(self.sampler, "sample_cqm")
        ):
            raise SecateurError(
                "the solver 'dimod' needs a sampler object, with a method `sample` or `sample_cqm`, or its "
                f"name, not {self.sampler!r:.60}."
            )

    def sample(self, problem: BlockProblem, seed: int) -> Bool[Tensor, "m n"]:
        """Scale the problem, and have it sampled.

        Args:
            problem: the problem.
            seed: for the sampler.

        Returns:
            One read a row.

        Raises:
            SecateurError: the sampler does not take a parameter, or fails.
        """
        sampler = _find(self.sampler) if isinstance(self.sampler, str) else self.sampler
        constrained = hasattr(sampler, "sample_cqm")
        qubo = dimensionless(problem, None if constrained else self.penalty)
        model = cqm_of(qubo, problem.groups.cpu(), problem.counts.cpu()) if constrained else bqm_of(qubo)
        method = sampler.sample_cqm if constrained else sampler.sample
        name, taken = type(sampler).__name__, _parameters(sampler, method)
        for parameter in self.parameters:
            if parameter not in taken:
                raise SecateurError(
                    f"the sampler {name} takes no parameter '{parameter}': {nearest(parameter, taken)}"
                )
        alike = type(sampler).__module__.startswith(_ALIKE)
        reads = []
        for call in range(self.reads if alike else 1):
            own = derive_seed(seed, "sampler", call)
            offered = {"num_reads": 1 if alike else self.reads, "seed": own % 2**31}
            given = {key: value for key, value in offered.items() if key in taken}
            try:
                with contained(own):
                    sampleset = method(model, **{**given, **self.parameters})
            except Exception as error:  # what a sampler raises, a remote one above all, can be anything
                raise SecateurError(f"the sampler {name} failed: {error}") from error
            reads.append(read_sampleset(sampleset, problem.size))
        return torch.cat(reads)


@lru_cache(maxsize=8)
def _find(place: str) -> Any:
    """Make the sampler that a name stands for, once: a remote one opens a connection."""
    module, _, name = place.partition(":")
    found = getattr(need(module, _EXTRAS.get(module.partition(".")[0])), name, None)
    if found is None:
        raise SecateurError(f"there is no '{name}' in {module}: name a sampler that is there.")
    return found()


def _parameters(sampler: Any, method: Callable[..., Any]) -> set[str]:
    """List what a sampler takes: what it announces, and what its method names (OpenJij announces little)."""
    _, *named = inspect.signature(method).parameters.values()
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {p.name for p in named if p.kind not in variable} | set(sampler.parameters)
