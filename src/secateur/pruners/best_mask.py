"""The mask of the highest scores that meets a budget."""

import torch
from torch import Tensor

from secateur.core.budget import Budget
from secateur.core.mask import Mask
from secateur.core.ranks import as_rows, from_rows, mark_best


def keep_best(scores: dict[str, Tensor], budget: Budget) -> Mask:
    """Keep the highest-scored weights of each group, exactly as many as the budget says.

    Args:
        scores: a score for each weight, by layer.
        budget: the groups and their counts.

    Returns:
        The mask.
    """
    if budget.grouping == "global":  # here alone layers compete
        rows = torch.cat([values.reshape(-1) for values in scores.values()]).reshape(1, -1)
        pieces = mark_best(rows, budget.kept).reshape(-1).split([v.numel() for v in scores.values()])
        return Mask({n: p.reshape(scores[n].shape) for n, p in zip(scores, pieces, strict=True)})
    kept: dict[str, Tensor] = {}
    for name, values in scores.items():
        rows, start = as_rows(values, budget.grouping), budget.offset(name)
        best = mark_best(rows, budget.kept[start : start + len(rows)])
        kept[name] = from_rows(best, budget.grouping, values.shape)
    return Mask(kept)
