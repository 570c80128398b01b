"""The same density in every layer, or in every layer but the last."""

from collections.abc import Mapping
from dataclasses import dataclass

from secateur.core.allocation import NO_KERNELS, Allocation
from secateur.core.budget import Budget, Grouping
from secateur.core.errors import SecateurError
from secateur.core.registry import register


@register("allocation", "uniform")
@dataclass(frozen=True)
class Uniform(Allocation):
    """Every layer keeps the same fraction."""

    def budget(
        self,
        shapes: Mapping[str, tuple[int, int]],
        density: float,
        grouping: Grouping,
        kernels: Mapping[str, tuple[int, ...]] = NO_KERNELS,
    ) -> Budget:
        """Turn a density into exact counts."""
        return Budget.from_densities(grouping, shapes, dict.fromkeys(shapes, density))


@register("allocation", "spare-output")
@dataclass(frozen=True)
class SpareOutput(Allocation):
    """The last layer stays dense; the others share what is left equally."""

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
            density: overall fraction kept.
            grouping: what a group is.
            kernels: of convolutions; they do not count here.

        Returns:
            The budget.

        Raises:
            SecateurError: the last layer alone exceeds the density, or is the only one.
        """
        sizes = {name: o * i for name, (o, i) in shapes.items()}
        last = next(reversed(sizes))
        rest = sum(sizes.values()) - sizes[last]
        left = density * sum(sizes.values()) - sizes[last]
        if rest == 0 or left <= 0:
            raise SecateurError(
                f"density {density:.4g} cannot spare the output layer '{last}', which alone holds "
                f"{sizes[last] / sum(sizes.values()):.3g} of the weights: raise the density or use "
                'allocation = "uniform".'
            )
        return Budget.from_densities(grouping, shapes, {n: 1.0 if n == last else left / rest for n in sizes})
