"""The budget: how many weights each group keeps, exactly."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from secateur.core.errors import SecateurError, nearest
from secateur.core.mask import Mask

Grouping = Literal["layer", "output", "input", "global"]


def as_grouping(word: str) -> Grouping:
    """Check that a word names a grouping.

    Args:
        word: what was given.

    Returns:
        The word.

    Raises:
        SecateurError: it does not.
    """
    if word not in get_args(Grouping):
        raise SecateurError(f"there is no grouping '{word}': {nearest(word, get_args(Grouping))}")
    return cast(Grouping, word)


@dataclass(frozen=True, eq=False)
class Budget:
    """A partition of the prunable weights into groups, and how many each group keeps.

    Groups are numbered through all layers: one a layer, one an output row, one an input
    column, or a single one for the whole network. A mask meets the budget when every
    group's count of kept weights is as given; every swap inside a group preserves it.

    Attributes:
        grouping: what a group is.
        shapes: outputs and inputs of each layer.
        kept: weights kept in each group.
    """

    grouping: Grouping
    shapes: Mapping[str, tuple[int, int]]
    kept: Int[Tensor, " groups"]

    @classmethod
    def from_densities(
        cls,
        grouping: Grouping,
        shapes: Mapping[str, tuple[int, int]],
        densities: Mapping[str, float],
    ) -> "Budget":
        """Round densities to counts: each group keeps the nearest whole number.

        Args:
            grouping: what a group is.
            shapes: outputs and inputs of each layer.
            densities: fraction kept in each layer, in (0, 1]; with one global group they must
                be equal.

        Returns:
            The budget.

        Raises:
            SecateurError: a group would keep no weight, nothing would be pruned, or a global
                group got unequal densities.
        """
        kept: list[int] = []
        if grouping == "global":
            if len(set(densities.values())) > 1:
                raise SecateurError(
                    'with grouping = "global" the layers share one count, so an allocation that gives them '
                    'unequal densities means nothing: use grouping = "layer" or allocation = "global".'
                )
            kept.append(round(sum(densities[n] * o * i for n, (o, i) in shapes.items())))
        for name, (outs, ins) in shapes.items():
            if grouping == "global":
                break
            groups, size = {"layer": (1, outs * ins), "output": (outs, ins), "input": (ins, outs)}[grouping]
            count = round(densities[name] * size)
            if count == 0:
                each = "it" if grouping == "layer" else f"each {grouping} group"
                raise SecateurError(
                    f"density {densities[name]:.4g} cannot be met in layer '{name}': {each} has {size} "
                    f"weights and would keep none; raise the density to at least {1 / size:.3g} or "
                    "use coarser groups."
                )
            kept += [count] * groups
        total = sum(o * i for o, i in shapes.values())
        budget = cls(grouping, dict(shapes), torch.tensor(kept, dtype=torch.int64))
        if sum(kept) >= total:
            raise SecateurError(
                f"the density asked for prunes nothing: rounding in each {grouping} group keeps all {total} "
                "weights; lower the density or use coarser groups."
            )
        if sum(kept) == 0:
            raise SecateurError(f"the density asked for keeps none of the {total} weights; raise it.")
        return budget

    def offset(self, name: str) -> int:
        """Give the number of a layer's first group.

        Args:
            name: the layer.

        Returns:
            The offset.
        """
        start = 0
        for other, (outs, ins) in self.shapes.items():
            if other == name:
                break
            start += {"layer": 1, "output": outs, "input": ins, "global": 0}[self.grouping]
        return start

    def groups(self, name: str, index: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Give the group of each of some weights of a layer.

        Args:
            name: the layer.
            index: flat positions in the layer, row by row.

        Returns:
            The groups' numbers, through all layers.
        """
        ins = self.shapes[name][1]
        within = {
            "layer": lambda: torch.zeros_like(index),
            "global": lambda: torch.zeros_like(index),
            "output": lambda: index // ins,
            "input": lambda: index % ins,
        }[self.grouping]()
        return within + self.offset(name)

    def counts(self, mask: Mask) -> Int[Tensor, " groups"]:
        """Count what a mask keeps in each group.

        Args:
            mask: a mask of the same layers.

        Returns:
            The counts, in the order of `kept`.
        """
        if self.grouping == "output":
            return torch.cat([mask[n].sum(1).cpu() for n in self.shapes])
        if self.grouping == "input":
            return torch.cat([mask[n].sum(0).cpu() for n in self.shapes])
        per_layer = torch.stack([mask[n].sum().cpu() for n in self.shapes])
        return per_layer if self.grouping == "layer" else per_layer.sum().reshape(1)

    def is_met_by(self, mask: Mask) -> bool:
        """Say whether a mask keeps exactly the promised number in every group.

        Args:
            mask: a mask of the same layers.

        Returns:
            True where it does.
        """
        return torch.equal(self.counts(mask), self.kept)
