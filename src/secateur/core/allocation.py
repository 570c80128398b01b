"""The abstract allocation."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from secateur.core.budget import Budget, Grouping

# By layer: outputs and inputs; extents of kernels.
Shapes = Mapping[str, tuple[int, int]]
Kernels = Mapping[str, tuple[int, ...]]
NO_KERNELS: Kernels = MappingProxyType({})


class Allocation(ABC):
    """Spreads an overall density over the layers."""

    part_name: ClassVar[str] = "allocation"

    def budget(
        self, shapes: Shapes, density: float, grouping: Grouping, kernels: Kernels = NO_KERNELS
    ) -> Budget:
        """Turn a density into exact counts, and refuse one that this allocation cannot meet.

        Args:
            shapes: outputs and inputs of each layer, in the network's order.
            density: overall fraction kept, in (0, 1).
            grouping: what a group is.
            kernels: height and width (or as many extents as there are) of those layers that are
                convolutions; their inputs are channels times these.

        Returns:
            The budget.
        """
        return Budget.from_densities(grouping, shapes, self.densities(shapes, density, kernels))

    @abstractmethod
    def densities(self, shapes: Shapes, density: float, kernels: Kernels) -> dict[str, float]:
        """Say what fraction each layer keeps, for `budget`, whose arguments these are.

        Args:
            shapes: outputs and inputs of each layer, in the network's order.
            density: overall fraction kept, in (0, 1).
            kernels: extents of the kernels of convolutions.

        Returns:
            The densities by layer, each at most 1.
        """
