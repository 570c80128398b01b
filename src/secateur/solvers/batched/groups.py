"""The groups of many problems side by side, and what is taken over them: sums, minima, ranks."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Groups:
    """The groups of b problems of n variables each.

    Sums and minima over groups are taken in a layout of g rows of m places a problem, m being
    the size of the largest group: reductions over a dimension, in a fixed order on any device,
    where a scattered sum on a GPU would round differently each time. Memory: b g m numbers, which is
    b n for groups of equal size.

    Attributes:
        labels: the group of each variable, from 0 to g - 1.
        counts: how many variables of each group are pruned.
        sizes: how many variables each group has.
        places: the variables of each group, and n in the places left over; None where the
            groups are runs of m variables one after another, as one group is.
    """

    labels: Int[Tensor, "b n"]
    counts: Int[Tensor, "b g"]
    sizes: Int[Tensor, "b g"]
    places: Int[Tensor, "b g m"] | None

    @classmethod
    def of(cls, labels: Int[Tensor, "b n"], pruned: Bool[Tensor, "b n"]) -> "Groups":
        """Lay groups out.

        Args:
            labels: the group of each variable; -1 for padding, which becomes a group in which
                nothing is pruned.
            pruned: an assignment, for the counts.

        Returns:
            The groups.
        """
        b, n = labels.shape
        g = int(labels.max()) + 1
        if bool((labels < 0).any()):
            labels, g = torch.where(labels < 0, g, labels), g + 1
        sizes = labels.new_zeros(b, g).scatter_add_(1, labels, torch.ones_like(labels))
        counts = labels.new_zeros(b, g).scatter_add_(1, labels, pruned.long())
        m = int(sizes.max())
        order = labels.argsort(dim=1, stable=True)
        group = labels.gather(1, order)
        rank = torch.arange(n, device=labels.device) - (sizes.cumsum(1) - sizes).gather(1, group)
        places = labels.new_full((b, g * m), n).scatter_(1, group * m + rank, order)
        plain = g * m == n and torch.equal(places, torch.arange(n, device=labels.device).expand(b, n))
        return cls(labels, counts, sizes, None if plain else places.view(b, g, m))

    def take(self, rows: Int[Tensor, " c"]) -> "Groups":
        """Choose problems.

        Args:
            rows: which, as often as wanted.

        Returns:
            The groups of those.
        """
        places = None if self.places is None else self.places[rows]
        return Groups(self.labels[rows], self.counts[rows], self.sizes[rows], places)

    def lay(self, values: Shaped[Tensor, "b n"], fill: float) -> Shaped[Tensor, "b g m"]:
        """Bring values into the layout.

        Args:
            values: one for each variable.
            fill: what the places left over get.

        Returns:
            The values, group by group.
        """
        b, g = self.counts.shape
        if self.places is None:
            return values.reshape(b, g, -1)
        padded = torch.nn.functional.pad(values, (0, 1), value=fill)
        return padded.gather(1, self.places.view(b, -1)).view(self.places.shape)

    def total(self, values: Float[Tensor, "b n"]) -> Float[Tensor, "b g"]:
        """Sum over each group.

        Args:
            values: one for each variable.

        Returns:
            The sums.
        """
        return self.lay(values, 0.0).sum(2)

    def low(self, values: Float[Tensor, "b n"]) -> Float[Tensor, "b g"]:
        """Take the minimum over each group.

        Args:
            values: one for each variable.

        Returns:
            The minima; inf for a group without variables.
        """
        return self.lay(values, float("inf")).amin(2)

    def spread(self, each: Float[Tensor, "b g"]) -> Float[Tensor, "b n"]:
        """Give each variable the number of its group.

        Args:
            each: one for each group.

        Returns:
            One for each variable.
        """
        if self.counts.shape[1] == 1:
            return each.expand(self.labels.shape)
        return each.gather(1, self.labels)

    def chosen(self, assignments: Bool[Tensor, "b n"], most: int) -> Int[Tensor, "b g k"]:
        """List the pruned variables of each group.

        Args:
            assignments: feasible ones.
            most: the largest count.

        Returns:
            The variables, and n in the places left over.
        """
        n = self.labels.shape[1]
        places = torch.arange(n, device=self.labels.device).expand_as(self.labels)
        variables = self.lay(places, float(n))
        laid = torch.where(self.lay(assignments, 0.0), variables, n)
        return laid.sort(dim=2).values[:, :, :most]

    def largest(self, scores: Float[Tensor, "b n"]) -> Bool[Tensor, "b n"]:
        """Choose as many variables of each group as are to be pruned: those of the highest scores.

        Args:
            scores: one for each variable; among equal ones those of lower numbers are chosen.

        Returns:
            A feasible assignment.
        """
        laid = self.lay(scores, -float("inf"))
        order = laid.argsort(dim=2, descending=True, stable=True)
        first = torch.arange(laid.shape[2], device=scores.device) < self.counts[:, :, None]
        chosen = torch.zeros_like(order, dtype=torch.bool).scatter_(2, order, first).flatten(1)
        if self.places is None:
            return chosen
        room = chosen.new_zeros(chosen.shape[0], scores.shape[1] + 1)
        return room.scatter_(1, self.places.flatten(1), chosen)[:, :-1]

    def swappable(self) -> Bool[Tensor, " b"]:
        """Say which problems have a group with both a pruned and a kept variable.

        Returns:
            True where at least one swap is possible.
        """
        return ((self.counts > 0) & (self.counts < self.sizes)).any(1)
