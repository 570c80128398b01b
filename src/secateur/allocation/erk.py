"""Erdos-Renyi allocation: small layers keep more."""

from collections.abc import Mapping
from dataclasses import dataclass

from secateur.core.allocation import Allocation
from secateur.core.budget import Budget, Grouping
from secateur.core.registry import register


@register("allocation", "erk")
@dataclass(frozen=True)
class ERK(Allocation):
    """A layer's density is in proportion to (in + out) / (in out), cut off at 1.

    What the cut-off frees goes to the other layers, so that the overall density is met
    (Mocanu et al. 2018, arXiv:1707.04780; Evci et al. 2020, arXiv:1911.11134). A convolution counts as its
    matrix, with all numbers of a patch as inputs; the published variant for kernels, (in + out + height +
    width) / (in out height width), gives small kernels less.
    """

    def budget(self, shapes: Mapping[str, tuple[int, int]], density: float, grouping: Grouping) -> Budget:
        """Turn a density into exact counts."""
        sizes = {name: o * i for name, (o, i) in shapes.items()}
        raw = {name: (o + i) / (o * i) for name, (o, i) in shapes.items()}
        full: set[str] = set()
        while True:
            left = density * sum(sizes.values()) - sum(sizes[n] for n in full)
            scale = left / sum(raw[n] * sizes[n] for n in sizes if n not in full)
            over = {n for n in sizes if n not in full and scale * raw[n] > 1}
            if not over:
                break
            full |= over
        densities = {n: 1.0 if n in full else scale * raw[n] for n in sizes}
        return Budget.from_densities(grouping, shapes, densities)
