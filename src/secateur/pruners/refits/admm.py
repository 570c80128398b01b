"""The layer-wise refit that also chooses which weights are kept: by ADMM."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from secateur.core.budget import Grouping
from secateur.core.errors import SecateurError
from secateur.core.ranks import as_rows, count_rows, from_rows, mark_best
from secateur.core.registry import register
from secateur.pruners.refits.least_squares import LeastSquares, Rows
from secateur.pruners.session import Session

# Rounds in a row without a change of the mask after which it is taken for found.
_STILL = 25


@register("refit", "admm")
@dataclass(frozen=True)
class ADMM(LeastSquares):
    """Least squares of each layer's output error over the weights and the mask (ALPS: Meng et al. 2024).

    `LeastSquares` finds the best weights for a mask. This looks for the mask whose best weights have the
    smallest error: with H and b as there, for the rows w of a layer together

        minimise  sum over rows of w'H w / 2 - b.w   with as many weights that are not 0 as the mask has

    in every group, of a layer in each; how many that is, is all that it takes of the mask it is given. A
    mask for weights that stay as trained is not the best for weights that change: the kept ones make up for
    the pruned ones. The alternating direction method of multipliers splits the weights in two copies, W
    without a count and D with it, in coordinates in which H has a diagonal of 1:

        W <- (H + p I)^-1 (b - V + p D),   D <- the best of W + V / p,   V <- V + p (W - D),   p <- growth * p

    beginning at the trained weights. What D has kept when p is so large that nothing changes any more is
    the mask; then come the least squares for it. Rows whose error is no smaller than for the mask given,
    keep that. The inverse is taken through the eigenvectors of H, once.

    Memory beyond that of `LeastSquares`: the eigenvectors of H, and five copies of the layer, in float64.

    Reference: arXiv:2406.07831 (its penalty rises with the changes of the mask, here evenly; the least
    squares after it are by conjugate gradients there).

    Attributes:
        rounds: at most.
        penalty: p in the first round, > 0, in mean eigenvalues of H.
        growth: of p in a round, > 1.

    Raises:
        SecateurError: a number out of range.
    """

    rounds: int = 300
    penalty: float = 0.1
    growth: float = 1.03

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        if self.rounds < 1:
            raise SecateurError(f"rounds of ADMM must be at least 1, not {self.rounds}.")
        if not 0 < self.penalty < math.inf:
            raise SecateurError(f"the penalty of ADMM must be positive and finite, not {self.penalty}.")
        if not 1 < self.growth < math.inf:
            raise SecateurError(f"the growth of ADMM's penalty must be greater than 1, not {self.growth}.")

    @property
    def chooses(self) -> bool:
        """It does."""
        return True

    @property
    def bytes_a_weight(self) -> float:
        """What least squares keep, and the masks."""
        return super().bytes_a_weight + 1.0

    def records(self, session: Session, *, least: bool) -> int:
        """What least squares need, the eigenvectors, and copies of the largest layer."""
        layers = session.network.layers
        copies = 5 * 8 * max(layer.size for layer in layers)
        return super().records(session, least=least) + copies + 8 * max(x.shape[1] for x in layers) ** 2

    def _fit(self, session: Session, rows: Rows) -> tuple[Bool[Tensor, "o i"], Float[Tensor, "o i"]]:
        """Give the mask and the weights of rows that have the same inputs."""
        before = self._solve(session, rows, rows.kept)
        kept = best_support(
            rows.matrix, rows.target, rows.trained.double(), rows.kept, session.budget.grouping,
            rounds=self.rounds, penalty=self.penalty, growth=self.growth,
        )  # fmt: skip
        after = self._solve(session, rows, kept)
        lower = _error(rows, after) < _error(rows, before)
        kept, found = (kept, after) if lower else (rows.kept, before)
        return kept, found.to(rows.now.dtype)


def _error(rows: Rows, weights: Float[Tensor, "o i"]) -> float:
    """Give the error of some weights, less a constant."""
    return float((weights * (weights @ rows.matrix / 2 - rows.target)).sum())


def best_support(
    matrix: Float[Tensor, "i i"],
    target: Float[Tensor, "o i"],
    start: Float[Tensor, "o i"],
    kept: Bool[Tensor, "o i"],
    grouping: Grouping,
    *,
    rounds: int = 300,
    penalty: float = 0.1,
    growth: float = 1.03,
) -> Bool[Tensor, "o i"]:
    """Look for the weights to keep, so that w'H w / 2 - b.w is small when those are solved for.

    Args:
        matrix: H, positive definite, in float64.
        target: b.
        start: the weights to begin at, nothing pruned.
        kept: a mask with the counts of each group.
        grouping: what a group is.
        rounds: of ADMM, at most.
        penalty: p in the first round.
        growth: of p in a round.

    Returns:
        The mask, which has the same counts.
    """
    counts = count_rows(as_rows(kept, grouping))
    scale = matrix.diagonal().sqrt()
    eigenvalues, vectors = torch.linalg.eigh(matrix / scale / scale[:, None])
    linear, sparse = target / scale, start * scale
    dual, mask, still = torch.zeros_like(sparse), kept, 0
    for _ in range(rounds):
        free = ((linear - dual + penalty * sparse) @ vectors / (eigenvalues + penalty)) @ vectors.T
        wanted = free + dual / penalty
        last, mask = mask, from_rows(mark_best(as_rows(wanted.abs(), grouping), counts), grouping, mask.shape)
        sparse = torch.where(mask, wanted, 0)
        dual = dual + penalty * (free - sparse)
        penalty *= growth
        still = still + 1 if torch.equal(mask, last) else 0
        if still == _STILL:
            break
    return mask
