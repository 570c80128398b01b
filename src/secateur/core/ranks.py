"""Order within groups: who is best, and who comes at what place, ties by position."""

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from secateur.core.budget import Grouping


def as_rows(matrix: Shaped[Tensor, "o i"], grouping: Grouping) -> Shaped[Tensor, "g w"]:
    """Lay out a layer with one group a row, positions ascending in each.

    Args:
        matrix: a value for each weight.
        grouping: the groups; with ``"global"`` the layer is a part of one and makes one row.

    Returns:
        The rows, a view where possible.
    """
    return {"output": lambda: matrix, "input": lambda: matrix.T}.get(
        grouping, lambda: matrix.reshape(1, -1)
    )()


def from_rows(
    rows: Shaped[Tensor, "g w"], grouping: Grouping, shape: torch.Size | tuple[int, int]
) -> Shaped[Tensor, "o i"]:
    """Undo `as_rows`.

    Args:
        rows: one group a row.
        grouping: the groups.
        shape: outputs and inputs of the layer.

    Returns:
        A value for each weight, contiguous.
    """
    return (rows.T if grouping == "input" else rows).reshape(shape).contiguous()


def places(groups: Int[Tensor, " m"]) -> Int[Tensor, " m"]:
    """Number the members of each group 0, 1, ... in the order given.

    Args:
        groups: the group of each member, ascending.

    Returns:
        Each member's place in its group.
    """
    return torch.arange(groups.numel(), device=groups.device) - torch.searchsorted(groups, groups)


def count_rows(flags: Bool[Tensor, "g w"]) -> Int[Tensor, " g"]:
    """Count what is marked in each row.

    Args:
        flags: True = marked.

    Returns:
        The counts.
    """
    # Torch counts a whole tensor many times faster than along a dimension.
    return flags.count_nonzero().reshape(1) if len(flags) == 1 else flags.count_nonzero(1)


def mark_best(values: Shaped[Tensor, "g w"], counts: Int[Tensor, " g"] | int) -> Bool[Tensor, "g w"]:
    """Mark the highest values of each row, ties by position.

    Thresholds need less time and memory than sorting, of which a block would throw almost
    all away.

    Args:
        values: one group a row; NaN counts as highest, as in a sort.
        counts: how many to mark in each row; all of a row where it has fewer.

    Returns:
        True for those values.
    """
    groups, width = values.shape
    if values.numel() == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    wanted = torch.as_tensor(counts, device=values.device).expand(groups).clamp(0, width)
    threshold = _lowest_of_best(values, wanted.clamp(min=1))
    marked = values >= threshold
    found = count_rows(marked)
    if bool((found < wanted).any()):  # no comparison finds NaN
        return mark_best(values.nan_to_num(torch.inf, torch.inf, -torch.inf), wanted)
    crowded = found > wanted
    if bool(crowded.any()):
        tied = values[crowded] == threshold[crowded]
        left = wanted[crowded] - found[crowded] + count_rows(tied)
        late = tied & (tied.cumsum(1, dtype=torch.int32) > left[:, None])
        marked[crowded] = marked[crowded] & ~late
    return marked


def _lowest_of_best(values: Tensor, counts: Tensor) -> Tensor:
    """Give the counts-th highest value of each row, in a column; counts in [1, width]."""
    width, most, least = values.shape[1], int(counts.max()), int(counts.min())
    if most == least and values.device.type == "cpu":  # as a rule: a layer's groups keep the same number
        return _kth_highest(values, most)
    # On a GPU kthvalue gives a row to one block of threads: 86 million numbers take it half a second, and
    # topk 2 ms, 5 where it sorts them, which also takes several times the memory.
    if values.device.type != "cpu" and most == least:
        return values.topk(most, dim=1, sorted=False)[0].amin(1, keepdim=True)
    if values.device.type != "cpu" or 8 * most <= width:
        return values.topk(most, dim=1)[0].gather(1, counts[:, None] - 1)
    found = values.new_empty(values.shape[0], 1)
    for count in counts.unique().tolist():
        rows = counts == count
        found[rows] = _kth_highest(values[rows], count)
    return found


def _kth_highest(values: Tensor, count: int) -> Tensor:
    """Give the count-th highest value of each row, in a column."""
    place = values.shape[1] - count
    if values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64):
        # NumPy partitions with vector instructions, in a tenth of the time; NaN is highest in both.
        ordered = np.partition(values.detach().numpy(), place, axis=1)
        return torch.from_numpy(ordered[:, place : place + 1].copy())
    return values.kthvalue(place + 1, dim=1, keepdim=True)[0]
