"""A score that knows nothing: the floor that every other must clear."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.core.moments import Evidence
from secateur.core.registry import register
from secateur.core.score import Score


@register("score", "random")
@dataclass(frozen=True)
class Random(Score):
    """Uniform in [0, 1), drawn on the CPU so that it is the same on every device."""

    def raw(
        self, weight: Float[Tensor, "o i"], evidence: Evidence, generator: torch.Generator
    ) -> Float[Tensor, "o i"]:
        """Score a layer's weights."""
        return torch.rand(weight.shape, generator=generator, dtype=torch.float64).to(weight)
