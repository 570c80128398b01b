"""The abstract score."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.core.budget import Grouping
from secateur.core.moments import Evidence
from secateur.core.ranks import as_rows, from_rows
from secateur.core.signal import Signal


@dataclass(frozen=True)
class Score(ABC):
    """Says how much each weight is worth keeping.

    Attributes:
        ranking: ``"global"`` compares raw scores; ``"layer"``, ``"output"`` and ``"input"``
            replace each score by its relative rank, in (0, 1], within its layer, output row
            or input column, so that a threshold spares the same fraction of each.
    """

    part_name: ClassVar[str] = "score"
    needs: ClassVar[frozenset[Signal]] = frozenset()
    ranking: Grouping = "global"

    @abstractmethod
    def raw(
        self, weight: Float[Tensor, "o i"], evidence: Evidence, generator: torch.Generator
    ) -> Float[Tensor, "o i"]:
        """Score a layer's weights, before any ranking.

        Args:
            weight: the reference weights.
            evidence: of the layer, as far as the score asked for it.
            generator: where randomness comes from.

        Returns:
            Scores; higher = more worth keeping.
        """

    def __call__(
        self, weight: Float[Tensor, "o i"], evidence: Evidence, generator: torch.Generator
    ) -> Float[Tensor, "o i"]:
        """Score a layer's weights and rank them as `ranking` says.

        Args:
            weight: the reference weights.
            evidence: of the layer, as far as the score asked for it.
            generator: where randomness comes from.

        Returns:
            Scores; higher = more worth keeping.
        """
        return relative_rank(self.raw(weight, evidence, generator), self.ranking)


def relative_rank(scores: Float[Tensor, "o i"], ranking: Grouping) -> Float[Tensor, "o i"]:
    """Replace scores by ranks within groups, ties by position.

    Args:
        scores: raw scores.
        ranking: the groups; ``"global"`` leaves the scores as they are.

    Returns:
        Ranks divided by the group's size, in (0, 1], float64 whatever the scores are: fewer bits
        do not hold as many distinct ranks as a group has weights.
    """
    if ranking == "global":
        return scores
    rows = as_rows(scores, ranking)
    order = rows.argsort(dim=1, stable=True)
    places = torch.arange(1, rows.shape[1] + 1, device=scores.device, dtype=torch.float64) / rows.shape[1]
    ranks = torch.empty_like(rows, dtype=torch.float64).scatter_(1, order, places.expand_as(rows))
    return from_rows(ranks, ranking, scores.shape)
