"""The first-order change of the loss when a weight is pruned."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.core.moments import Evidence
from secateur.core.registry import register
from secateur.core.score import Score
from secateur.core.signal import Signal


@register("score", "gradient")
@dataclass(frozen=True)
class Gradient(Score):
    """|w g| with g the gradient of the mean loss (Mozer and Smolensky 1988; Lee et al. 2019).

    g is taken at the current weights, so that in the middle of a run the score of a pruned
    weight is the first-order change of the loss when it is restored.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.GRADIENT})

    def raw(
        self, weight: Float[Tensor, "o i"], evidence: Evidence, generator: torch.Generator
    ) -> Float[Tensor, "o i"]:
        """Score a layer's weights."""
        assert evidence.gradient is not None
        return (weight * evidence.gradient).abs()
