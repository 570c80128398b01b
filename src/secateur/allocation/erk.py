"""Erdos-Renyi-kernel allocation: small layers keep more."""

import math
from dataclasses import dataclass

from secateur.core.allocation import Allocation, Kernels, Shapes
from secateur.core.registry import register


@register("allocation", "erk")
@dataclass(frozen=True)
class ERK(Allocation):
    """A layer's density is in proportion to (in + out) / (in out), cut off at 1.

    Of a convolution it is (in + out + height + width) / (in out height width), out being all its channels and
    in those that one of them sees. What the cut-off frees goes to the other layers, so that the overall
    density is met (Mocanu et al. 2018, arXiv:1707.04780; with kernels Evci et al. 2020, arXiv:1911.11134).
    """

    def densities(self, shapes: Shapes, density: float, kernels: Kernels) -> dict[str, float]:
        """Scale all layers alike, but for those that are full."""
        sizes = {name: o * i for name, (o, i) in shapes.items()}
        raw: dict[str, float] = {}
        for name, (outs, ins) in shapes.items():
            kernel = kernels.get(name, ())
            raw[name] = (outs + ins // math.prod(kernel) + sum(kernel)) / (outs * ins)
        full: set[str] = set()
        while True:
            left = density * sum(sizes.values()) - sum(sizes[n] for n in full)
            scale = left / sum(raw[n] * sizes[n] for n in sizes if n not in full)
            over = {n for n in sizes if n not in full and scale * raw[n] > 1}
            if not over:
                break
            full |= over
        return {n: 1.0 if n in full else scale * raw[n] for n in sizes}
