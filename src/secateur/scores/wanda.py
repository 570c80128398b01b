"""The weight times the norm of its input."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.core.budget import Grouping
from secateur.core.moments import Evidence
from secateur.core.registry import register
from secateur.core.score import Score
from secateur.core.signal import Signal


@register("score", "wanda")
@dataclass(frozen=True)
class Wanda(Score):
    """|w_ij| ||x_j||_2 over all samples and positions (Sun et al. 2024, arXiv:2306.11695).

    Ranked per output by default, as published.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.MOMENTS})
    ranking: Grouping = "output"

    def raw(
        self, weight: Float[Tensor, "o i"], evidence: Evidence, generator: torch.Generator
    ) -> Float[Tensor, "o i"]:
        """Score a layer's weights."""
        assert evidence.moments is not None
        if evidence.moments.count == 0:  # an expert that no position came to
            return weight.abs()
        return weight.abs() * evidence.moments.beside(weight)
