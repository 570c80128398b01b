"""One budget for the whole network: layers compete for it."""

from collections.abc import Mapping
from dataclasses import dataclass

from secateur.core.allocation import NO_KERNELS, Allocation
from secateur.core.budget import Budget, Grouping
from secateur.core.errors import SecateurError
from secateur.core.registry import register


@register("allocation", "global")
@dataclass(frozen=True)
class Global(Allocation):
    """A single group over all layers."""

    def budget(
        self,
        shapes: Mapping[str, tuple[int, int]],
        density: float,
        grouping: Grouping,
        kernels: Mapping[str, tuple[int, ...]] = NO_KERNELS,
    ) -> Budget:
        """Turn a density into one count.

        Args:
            shapes: outputs and inputs of each layer.
            density: overall fraction kept.
            grouping: must be ``"global"``.
            kernels: of convolutions; they do not count here.

        Returns:
            The budget.

        Raises:
            SecateurError: the grouping is another.
        """
        if grouping != "global":
            raise SecateurError(
                f'the allocation "global" has one group for the whole network, but grouping is "{grouping}": '
                'set grouping = "global" or choose another allocation.'
            )
        return Budget.from_densities("global", shapes, dict.fromkeys(shapes, density))
