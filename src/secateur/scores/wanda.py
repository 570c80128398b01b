"""The weight times the norm of its input."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.core.budget import Grouping
from secateur.core.registry import register
from secateur.core.score import Score
from secateur.core.signal import Signal
from secateur.core.tape import LayerTape


@register("score", "wanda")
@dataclass(frozen=True)
class Wanda(Score):
    """|w_ij| ||x_j||_2 over all samples and positions (Sun et al. 2024, arXiv:2306.11695).

    Ranked per output by default, as published.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.INPUTS})
    ranking: Grouping = "output"

    def raw(
        self, weight: Float[Tensor, "o i"], tape: LayerTape | None, generator: torch.Generator
    ) -> Float[Tensor, "o i"]:
        """Score a layer's weights."""
        assert tape is not None
        return weight.abs() * tape.inputs.flatten(1).norm(dim=1)
