"""SparseGPT: prune column after column, and let the columns behind make up for it."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from secateur.core.budget import Grouping
from secateur.core.errors import SecateurError
from secateur.core.ranks import as_rows, from_rows, mark_best
from secateur.core.registry import register
from secateur.pruners.damping import check_damping, solvable
from secateur.pruners.layerwise import Layerwise, Site
from secateur.pruners.session import Session


@register("pruner", "sparsegpt")
@dataclass(frozen=True)
class SparseGPT(Layerwise):
    """Layer-wise pruning with updates of the weights, column by column (Frantar & Alistarh 2023).

    With the inputs x of a layer, H = sum x x' + damping * mean(diag) * I, and the output error of a row of
    weights is (w - w0)' H (w - w0). Columns are gone through in order; where weight j of a row is pruned,
    the weights behind it move by -w_j / [H_j^-1]_jj * [H_j^-1]_j:, H_j being the rows and columns of H from
    j on: the best that they can do for all rows with one sequence of inverses. The masks of `block`
    columns are chosen together, when the columns before have been gone through, by the error
    w_j^2 / [H_j^-1]_jj that each weight would make by itself. All inverses come from one Cholesky factor.

    With a group for a layer or an output row, each block of columns keeps its share of the group's count, and
    what rounding leaves over goes to later blocks, so that the count is exact; of columns, each keeps its own
    count. Inputs that are 0 in all calibration data cannot be missed: their weights are pruned first.

    Where it differs from the paper: the counts are exact; sums are in float64 where the model's numbers
    are, else in float32, and factors always in float64; a singular matrix is damped further.

    Reference: arXiv:2301.00774, equations 3 to 5 and algorithm 1.

    Attributes:
        damping: added to the diagonal, as a fraction of its mean.
        block: columns whose masks are chosen together.

    Raises:
        SecateurError: a number out of range.
    """

    updates: ClassVar[bool] = True
    damping: float = 0.01
    block: int = 128

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        check_damping(self.damping)
        if self.block < 1:
            raise SecateurError(f"block must be at least 1 column, not {self.block}.")

    def records(self, session: Session, *, least: bool) -> int:
        """Say how many bytes it holds beside passes: four matrices in float64 more.

        Args:
            session: what to work with.
            least: one Gram matrix at a time, rather than those of a decoder layer.

        Returns:
            The bytes.
        """
        widest = max(layer.shape[1] for layer in session.network.layers)
        return super().records(session, least=least) + 4 * 8 * widest**2

    def prune_layer(
        self, session: Session, site: Site, draw: torch.Generator
    ) -> tuple[Bool[Tensor, "o i"], Float[Tensor, "o i"] | None]:
        """Prune one layer.

        Args:
            session: is told where the damping had to be raised.
            site: the layer.
            draw: not used.

        Returns:
            The mask and the weights; of an expert that no position came to, the mask it starts from.
        """
        gram = site.moments.gram
        assert gram is not None
        live = gram.diagonal() > 0
        if not bool(live.any()):
            return site.mask, None
        weight = site.weight.to(gram.dtype, copy=True)
        mask, kept = _spared(weight, live, site.grouping, site.kept)
        matrix = solvable(session, site.name, gram[live][:, live], self.damping)
        inverse = inverse_factor(matrix).to(gram.dtype)
        found, updated = sweep(weight[:, live], inverse, site.grouping, kept, self.block)
        mask[:, live] = found
        weight[:, live] = updated
        return mask, weight


def inverse_factor(matrix: Float[Tensor, "i i"]) -> Float[Tensor, "i i"]:
    """Factor the inverse of a matrix whose columns are eliminated from the first to the last.

    Row j of the result, from j on, is the first row of the inverse of H's rows and columns from j on,
    divided by the square root of its first entry.

    Args:
        matrix: H, positive definite.

    Returns:
        The upper triangular U with U' U = H^-1.
    """
    # With H reversed = L L', the reverse of L^-1 is U: nothing is inverted but a triangle.
    factor = torch.linalg.cholesky(matrix.flip(0, 1))
    unit = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    inverse = torch.linalg.solve_triangular(factor, unit, upper=False)
    del factor, unit
    return inverse.flip(0, 1)


def sweep(
    weight: Float[Tensor, "o i"],
    inverse: Float[Tensor, "i i"],
    grouping: Grouping,
    kept: Int[Tensor, " g"],
    block: int,
) -> tuple[Bool[Tensor, "o i"], Float[Tensor, "o i"]]:
    """Go through the columns once.

    Args:
        weight: the trained weights.
        inverse: U of `inverse_factor`.
        grouping: what a group is.
        kept: how many weights each group keeps.
        block: columns whose masks are chosen together.

    Returns:
        The mask, and the weights, 0 where pruned.
    """
    weight = weight.clone()
    mask = torch.zeros_like(weight, dtype=torch.bool)
    columns = weight.shape[1]
    for begin in range(0, columns, block):
        end = min(begin + block, columns)
        within, factor = weight[:, begin:end], inverse[begin:end, begin:end]
        if grouping == "input":
            counts = kept[begin:end]
        else:  # this block's share, and what rounding has left over
            counts = _share(kept, end, columns) - _share(kept, begin, columns)
        scores = within.square() / factor.diagonal().square()
        best = mark_best(as_rows(scores, grouping), counts)
        mask[:, begin:end] = from_rows(best, grouping, scores.shape)
        errors = torch.empty_like(within)
        for j in range(end - begin):
            pruned = torch.where(mask[:, begin + j], 0, within[:, j])
            errors[:, j] = pruned / factor[j, j]
            within[:, j:] -= torch.outer(errors[:, j], factor[j, j:])
        weight[:, end:] -= errors @ inverse[begin:end, end:]
    return mask, torch.where(mask, weight, 0)


def _share(kept: Int[Tensor, " g"], columns: int, total: int) -> Int[Tensor, " g"]:
    """Give what the first columns keep of each group's count, rounded to the nearest."""
    return (2 * kept * columns + total).div(2 * total, rounding_mode="floor")


def _spared(
    weight: Float[Tensor, "o i"], live: Bool[Tensor, " i"], grouping: Grouping, kept: Int[Tensor, " g"]
) -> tuple[Bool[Tensor, "o i"], Int[Tensor, " l"]]:
    """Mark what has to be kept among weights of dead inputs, and give the counts of the live ones."""
    mask = torch.zeros_like(weight, dtype=torch.bool)
    if bool(live.all()):
        return mask, kept
    dead = weight[:, ~live].abs()
    if grouping == "input":
        mask[:, ~live] = mark_best(dead.T, kept[~live]).T
        return mask, kept[live]
    room = as_rows(weight[:, live], grouping).shape[1]
    left = (kept - room).clamp(min=0)
    rows = as_rows(dead, grouping)
    mask[:, ~live] = from_rows(mark_best(rows, left), grouping, dead.shape)
    return mask, kept - left
