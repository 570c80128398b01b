"""Masks by best swaps on the Gram matrices of the layers' inputs."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.limit import Limit
from secateur.core.registry import register
from secateur.pruners.gram import WIDTH, best_swaps
from secateur.pruners.layerwise import Layerwise, Site
from secateur.pruners.session import Session


@register("pruner", "gram-swaps")
@dataclass(frozen=True)
class GramSwaps(Layerwise):
    """Draws each layer's mask by `init`, then improves it by best swaps; kept weights stay as trained.

    Each row of a layer minimises the squared error of its output,

        (w - w0)' G (w - w0),    G = sum x x' over the layer's inputs, which the pruned layers before give,

    by swaps within the row (`best_swaps`); with one group a layer each row keeps the count that the mask
    of `init` gives it. Descent by best swaps on a quadratic error is textbook local search; for the
    layer-wise error of pruning, see the optimal brain surgeon (Hassibi and Stork 1993).

    Attributes:
        width: weights of each kind among which a swap is looked for first; None: all, always.
        swaps: swaps to make in a row at most; None: until none improves.

    Raises:
        SecateurError: a number out of range.
    """

    within_rows: ClassVar[bool] = True
    width: int | None = WIDTH
    swaps: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        for name in ("width", "swaps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SecateurError(f"{name} of swaps must be at least 1, not {value}.")

    def warm_up(self, limit: Limit | None = None) -> None:
        """Compile the kernel, for the precision that most models have."""
        best_swaps(torch.ones(1, 2), torch.tensor([[True, False]]), torch.eye(2))

    def prune_layer(
        self, session: Session, site: Site, draw: torch.Generator
    ) -> tuple[Bool[Tensor, "o i"], Float[Tensor, "o i"] | None]:
        """Improve one layer's mask.

        Args:
            session: says when time is out.
            site: the layer.
            draw: not used.

        Returns:
            The mask, and no weights.
        """
        gram = site.moments.gram
        assert gram is not None
        if site.moments.count == 0:  # an expert that no position came to: every mask gives the same
            return site.mask, None
        mask = best_swaps(
            site.weight,
            site.mask,
            gram,
            width=self.width,
            limit=self.swaps,
            out_of_time=session.out_of_time,
        )
        return mask, None
