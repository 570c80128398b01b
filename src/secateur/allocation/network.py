"""One budget for the whole network: layers compete for it."""

from dataclasses import dataclass

from secateur.core.allocation import NO_KERNELS, Allocation, Kernels, Shapes
from secateur.core.budget import Budget, Grouping
from secateur.core.errors import SecateurError
from secateur.core.registry import register


@register("allocation", "global")
@dataclass(frozen=True)
class Global(Allocation):
    """A single group over all layers: the grouping must be ``"global"``."""

    def budget(
        self, shapes: Shapes, density: float, grouping: Grouping, kernels: Kernels = NO_KERNELS
    ) -> Budget:
        """Turn a density into one count; refuse another grouping."""
        if grouping != "global":
            raise SecateurError(
                f'the allocation "global" has one group for the whole network, but grouping is "{grouping}": '
                'set grouping = "global" or choose another allocation.'
            )
        return super().budget(shapes, density, grouping, kernels)

    def densities(self, shapes: Shapes, density: float, kernels: Kernels) -> dict[str, float]:
        """Ask the overall density of every layer, as one group has no others."""
        return dict.fromkeys(shapes, density)
