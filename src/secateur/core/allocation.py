"""The abstract allocation."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from secateur.core.budget import Budget, Grouping


class Allocation(ABC):
    """Spreads an overall density over the layers."""

    part_name: ClassVar[str] = "allocation"

    @abstractmethod
    def budget(self, shapes: Mapping[str, tuple[int, int]], density: float, grouping: Grouping) -> Budget:
        """Turn a density into exact counts.

        Args:
            shapes: outputs and inputs of each layer, in the network's order.
            density: overall fraction kept, in (0, 1).
            grouping: what a group is.

        Returns:
            The budget.
        """
