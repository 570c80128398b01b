"""The abstract allocation."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from secateur.core.budget import Budget, Grouping

NO_KERNELS: Mapping[str, tuple[int, ...]] = MappingProxyType({})


class Allocation(ABC):
    """Spreads an overall density over the layers."""

    part_name: ClassVar[str] = "allocation"

    @abstractmethod
    def budget(
        self,
        shapes: Mapping[str, tuple[int, int]],
        density: float,
        grouping: Grouping,
        kernels: Mapping[str, tuple[int, ...]] = NO_KERNELS,
    ) -> Budget:
        """Turn a density into exact counts.

        Args:
            shapes: outputs and inputs of each layer, in the network's order.
            density: overall fraction kept, in (0, 1).
            grouping: what a group is.
            kernels: height and width (or as many extents as there are) of those layers that are
                convolutions; their inputs are channels times these.

        Returns:
            The budget.
        """
