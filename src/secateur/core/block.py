"""The block: the weights that one step may exchange."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Block:
    """Flat positions (row by row) in one layer or several.

    The variables of the block's problem are numbered through the layers in this order.

    Attributes:
        indices: for each layer, the positions of its weights that are in the block.
    """

    indices: dict[str, Tensor]

    @property
    def size(self) -> int:
        """How many weights there are."""
        return sum(index.numel() for index in self.indices.values())

    def gather(self, values: Mapping[str, Tensor]) -> Tensor:
        """Read the block's entries out of one matrix a layer.

        Args:
            values: a matrix [out, in] for each layer of the block.

        Returns:
            The entries, a vector [n].
        """
        return torch.cat([values[name].reshape(-1)[index] for name, index in self.indices.items()])

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Cut a vector over the block's variables into one piece a layer.

        Args:
            vector: a tensor whose first dimension is n.

        Returns:
            The pieces by layer.
        """
        sizes = [index.numel() for index in self.indices.values()]
        return dict(zip(self.indices, torch.split(vector, sizes), strict=True))
