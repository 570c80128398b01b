"""The magnitude of a weight."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.core.moments import Evidence
from secateur.core.registry import register
from secateur.core.score import Score


@register("score", "magnitude")
@dataclass(frozen=True)
class Magnitude(Score):
    """|w| (Janowsky 1989; Han et al. 2015, arXiv:1506.02626)."""

    def raw(
        self, weight: Float[Tensor, "o i"], evidence: Evidence, generator: torch.Generator
    ) -> Float[Tensor, "o i"]:
        """Score a layer's weights."""
        return weight.abs()
