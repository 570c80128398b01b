"""Simulated bifurcation, by the package of that name."""

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.extras import need
from secateur.core.problem import BlockProblem
from secateur.core.qubo import check_penalty
from secateur.core.registry import register
from secateur.core.seeds import derive_seed
from secateur.solvers.samplers.sampling import SamplingSolver, contained, dimensionless


@register("solver", "simulated-bifurcation")
@dataclass(frozen=True)
class SimulatedBifurcation(SamplingSolver):
    """Integrates a classical network of oscillators whose bifurcation settles into low energies.

    (Goto, Tatsumura and Dixon 2019, doi:10.1126/sciadv.aav2372; ballistic and discrete forms:
    Goto et al. 2021, doi:10.1126/sciadv.abe7953; heated: Kanao and Goto 2022,
    doi:10.1038/s42005-022-00929-9.) The package simulated-bifurcation does it in torch, on the
    CPU, all reads at once. It knows no counts: they are a penalty, and its reads are repaired;
    the best are polished by swap descent.

    Attributes:
        reads: oscillator networks ("agents"), at least 1.
        steps: of the integration, at least 1.
        mode: ``"ballistic"`` or ``"discrete"``.
        heated: with the thermal term.
        penalty: P >= 0 in units of the mean |Q_ij|; ``"auto"``: the root of the number of groups,
            see `secateur.core.qubo.automatic_penalty`.
    """

    reads: int = 32
    steps: int = 1000
    mode: Literal["ballistic", "discrete"] = "ballistic"
    heated: bool = False
    penalty: float | int | str = "auto"

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            SecateurError: a setting is out of its range.
        """
        super().__post_init__()
        if not (self.reads >= 1 and self.steps >= 1):
            raise SecateurError(
                "the solver 'simulated-bifurcation' needs at least 1 read and 1 step, "
                f"not {self.reads} and {self.steps}."
            )
        if self.mode not in ("ballistic", "discrete"):
            raise SecateurError(
                "the solver 'simulated-bifurcation' has the modes 'ballistic' and 'discrete', "
                f"not '{self.mode}'."
            )
        check_penalty(self.penalty)

    def sample(self, problem: BlockProblem, seed: int) -> Bool[Tensor, "m n"]:
        """Let the oscillators bifurcate.

        Args:
            problem: the problem.
            seed: for their first positions.

        Returns:
            One read a row.
        """
        package = need("simulated_bifurcation", "bifurcation")
        form = dimensionless(problem, self.penalty).matrix
        with contained(derive_seed(seed, "sampler")), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of agents that are still moving after the last step
            found, _ = package.minimize(
                form.triu(1), form.diagonal().clone(),
                domain="binary", dtype=torch.float32,  # version 2.0 fails in float64
                agents=self.reads, max_steps=self.steps, early_stopping=False,
                mode=self.mode, heated=self.heated, best_only=False, verbose=False,
            )  # fmt: skip
        return found > 0.5
