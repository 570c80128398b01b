"""The relative importance of a weight in its row and column, times the size of its input."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.core.budget import Grouping
from secateur.core.errors import SecateurError
from secateur.core.moments import Evidence
from secateur.core.registry import register
from secateur.core.score import Score
from secateur.core.signal import Signal


@register("score", "ria")
@dataclass(frozen=True)
class RIA(Score):
    """Relative importance and activations (Zhang et al. 2024, "Plug-and-Play", ICLR 2024).

        (|w_ij| / sum_j |w_ij| + |w_ij| / sum_i |w_ij|) ||x_j||_2^a

    The sums are over the weight's row and over its column; the norm is over all samples and positions. A
    row or column of zeros adds nothing. Ranked per output by default, as published.

    Attributes:
        power: a, finite and >= 0; 0 leaves the inputs out of account.

    Raises:
        SecateurError: the power is out of range.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.MOMENTS})
    ranking: Grouping = "output"
    power: float = 0.5

    def __post_init__(self) -> None:
        """Check the power."""
        if not 0 <= self.power < math.inf:
            raise SecateurError(f"the power of RIA must be at least 0 and finite, not {self.power}.")

    def raw(
        self, weight: Float[Tensor, "o i"], evidence: Evidence, generator: torch.Generator
    ) -> Float[Tensor, "o i"]:
        """Score a layer's weights."""
        assert evidence.moments is not None
        # Shares of a long row are small: half precision would round most of them alike.
        size = weight.abs().to(torch.promote_types(weight.dtype, torch.float32))
        least = torch.finfo(size.dtype).tiny
        # Outputs of other groups have other inputs.
        parts = size.unflatten(0, (evidence.moments.groups, -1))
        columns = (parts / parts.sum(1, keepdim=True).clamp(min=least)).flatten(0, 1)
        shares = size / size.sum(1, keepdim=True).clamp(min=least) + columns
        if evidence.moments.count == 0:  # an expert that no position came to
            return shares
        return shares * evidence.moments.beside(weight).to(size.dtype) ** self.power
