"""One-shot pruning, layer after layer, by scores that see the inputs of the pruned network."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from secateur.core.registry import register
from secateur.pruners.layerwise import Layerwise, Site
from secateur.pruners.session import Session


@register("pruner", "sequential")
@dataclass(frozen=True)
class SequentialOneShot(Layerwise):
    """Keeps, in each layer, the best by a score of the inputs of the pruned network.

    With the score `Wanda` and a group for each output, this is Wanda as published (Sun et al. 2024,
    arXiv:2306.11695); `OneShot` scores all layers by the inputs of the trained network.
    """

    gram: ClassVar[bool] = False

    def prune_layer(
        self, session: Session, site: Site, draw: torch.Generator
    ) -> tuple[Bool[Tensor, "o i"], Float[Tensor, "o i"] | None]:
        """Keep the mask that the layer starts from.

        Args:
            session: not used.
            site: the layer.
            draw: not used.

        Returns:
            The mask; the weights stay as trained.
        """
        return site.mask, None
