"""The same density in every layer, or in every layer but the last."""

from dataclasses import dataclass

from secateur.core.allocation import Allocation, Kernels, Shapes
from secateur.core.errors import SecateurError
from secateur.core.registry import register


@register("allocation", "uniform")
@dataclass(frozen=True)
class Uniform(Allocation):
    """Every layer keeps the same fraction."""

    def densities(self, shapes: Shapes, density: float, kernels: Kernels) -> dict[str, float]:
        """Give every layer the overall density."""
        return dict.fromkeys(shapes, density)


@register("allocation", "spare-output")
@dataclass(frozen=True)
class SpareOutput(Allocation):
    """The last layer stays dense; the others share what is left equally.

    Raises:
        SecateurError: when asked for a budget: the last layer alone exceeds it, or is the only one.
    """

    def densities(self, shapes: Shapes, density: float, kernels: Kernels) -> dict[str, float]:
        """Give the last layer 1, and the others what is left."""
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
        return {name: 1.0 if name == last else left / rest for name in sizes}
