"""Dynamic sparse no training: a mask refined by the expected error of each output."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.moments import Moments
from secateur.core.registry import register
from secateur.pruners.layerwise import Layerwise, Site
from secateur.pruners.session import Session


def grow_and_prune(
    weight: Float[Tensor, "o i"],
    mask: Bool[Tensor, "o i"],
    moments: Moments,
    cycles: int = 50,
    threshold: float = 0.1,
) -> Bool[Tensor, "o i"]:
    """Restore and prune one weight of each row after the other, to bring its expected error to 0.

    With E_j and V_j the mean and variance of input j, the expected error of a row is
    D = sum of w_j E_j over its pruned weights. While |D| is at least the threshold, at most `cycles`
    times, with s the sign of D:

        restore the pruned j of the highest    s w_j E_j / V_j
        prune the kept j of the lowest         |w_j| ||x_j||_2   among those with   s w_j E_j < 0

    both by the D from before them (Zhang et al. 2024, arXiv:2310.08915, equations 3 and 4). A row in which
    no kept weight has the opposite sign, or that has none to restore, ends there. V is no smaller
    than the least normal number, so that a constant input is restored first.

    Args:
        weight: the trained weights.
        mask: what is kept at the start.
        moments: of the layer's inputs.
        cycles: exchanges in a row at most.
        threshold: in units of the layer's output.

    Returns:
        The mask, with the counts of each row as they were.
    """
    kind = torch.promote_types(weight.dtype, torch.float32)
    w, kept = weight.to(kind), mask.clone()
    pull = w * moments.mean.to(kind)  # what restoring a weight takes off the error
    surety = pull / moments.variance.to(kind).clamp(min=torch.finfo(kind).tiny)
    size = w.abs() * moments.norms.to(kind)
    rows = torch.arange(len(w), device=w.device)
    for _ in range(cycles):
        error = torch.where(kept[rows], 0.0, pull[rows]).sum(1)
        rows, error = _where(error.abs() >= threshold, rows, error)
        if rows.numel() == 0:
            break
        sign = error.sign()[:, None]
        grown = torch.where(kept[rows], -torch.inf, sign * surety[rows])
        gone = torch.where(kept[rows] & (sign * pull[rows] < 0), size[rows], torch.inf)
        best, restore = grown.max(1)
        least, prune = gone.min(1)
        rows, restore, prune = _where((best > -torch.inf) & (least < torch.inf), rows, restore, prune)
        kept[rows, restore], kept[rows, prune] = True, False
    return kept


def _where(chosen: Bool[Tensor, " r"], *vectors: Tensor) -> tuple[Tensor, ...]:
    """Take the same entries of several vectors."""
    return tuple(vector[chosen] for vector in vectors)


@register("pruner", "dsnot")
@dataclass(frozen=True)
class DSnoT(Layerwise):
    """Draws each layer's mask by `init`, then exchanges weights by their expected effect on the output.

    Dynamic sparse no training (Zhang et al. 2024, arXiv:2310.08915), with `grow_and_prune`. It looks at
    means, variances and norms of the layers' inputs alone, so that it costs next to nothing, and so that
    the error it lowers is that of the mean output. Kept weights stay as trained.

    Attributes:
        cycles: exchanges in a row at most, >= 1; 50 as published.
        threshold: the expected error at which a row is left alone, >= 0, in units of the layer's output;
            0.1 as published.

    Raises:
        SecateurError: a number out of range.
    """

    gram: ClassVar[bool] = False
    within_rows: ClassVar[bool] = True
    cycles: int = 50
    threshold: float = 0.1

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        if self.cycles < 1:
            raise SecateurError(f"DSnoT needs at least 1 cycle, not {self.cycles}.")
        if not 0 <= self.threshold < math.inf:
            raise SecateurError(f"the threshold of DSnoT must be at least 0, not {self.threshold}.")

    def prune_layer(
        self, session: Session, site: Site, draw: torch.Generator
    ) -> tuple[Bool[Tensor, "o i"], Float[Tensor, "o i"] | None]:
        """Refine one layer's mask.

        Args:
            session: not used.
            site: the layer.
            draw: not used.

        Returns:
            The mask, and no weights.
        """
        return grow_and_prune(site.weight, site.mask, site.moments, self.cycles, self.threshold), None
