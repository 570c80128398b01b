"""The layer-wise refit that also chooses which weights are kept: by ADMM."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from secateur.core.budget import Grouping
from secateur.core.errors import SecateurError
from secateur.core.moments import Moments
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

    in every group of the layer (of a convolution in groups, in each of those, too). A mask for weights that
    stay as trained is not the best for weights that change: the kept ones make up for the pruned ones. The
    alternating direction method of multipliers splits the weights in two copies, W without a count and D with
    it, in coordinates in which H has a diagonal of 1:

        W <- (H + p I)^-1 (b - V + p D),   D <- the best of W + V / p,   V <- V + p (W - D),   p <- growth * p

    beginning at the trained weights. What D has kept when it has not changed for a while is the mask; then
    come the least squares for it. Where the error is no smaller than for the mask given (of each row by
    itself where rows are groups), that one stays, and what it keeps where inputs are always 0 goes to inputs
    that are not. The inverse is taken through the eigenvectors of H, once.

    Memory beyond that of `LeastSquares`: four matrices as large as H and eleven copies of the layer, in
    float64.

    Reference: arXiv:2406.07831 (its penalty rises with the changes of the mask, here evenly; the least
    squares after it are by conjugate gradients there).

    Attributes:
        rounds: at most.
        penalty: p in the first round, > 0; the mean of H's eigenvalues is 1 in those coordinates.
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
    def share(self) -> float:
        """What part of a budget of seconds is held back for it: a fifth."""
        return 0.2

    @property
    def bytes_a_weight(self) -> float:
        """What least squares keep, and the masks."""
        return super().bytes_a_weight + 1.0

    def _solving(self, session: Session) -> int:
        """What least squares take, the eigenvectors, and copies of the largest layer."""
        layers = session.network.layers
        size, ins = max(layer.size for layer in layers), max(layer.shape[1] for layer in layers)
        return super()._solving(session) + 8 * (11 * size + 4 * ins**2)

    def _refit(
        self,
        session: Session,
        name: str,
        moments: Moments,
        mask: Bool[Tensor, "o i"],
        weights: Float[Tensor, "o i"],
    ) -> tuple[Bool[Tensor, "o i"], Float[Tensor, "o i"]]:
        """Give a layer's mask and weights, nothing being kept in vain at the start."""
        trained = session.network.reference[name]
        mask = without_dead(mask, trained, moments.beside(trained), session.budget.grouping)
        return super()._refit(session, name, moments, mask, weights)

    def _fit(self, session: Session, rows: Rows) -> tuple[Bool[Tensor, "o i"], Float[Tensor, "o i"]]:
        """Give the mask and the weights of rows that have the same inputs."""
        before = self._solve(session, rows, rows.kept, rows.now.double())
        try:
            kept, start = best_support(
                rows.matrix, rows.target, rows.trained.double(), rows.kept, session.budget.grouping,
                rounds=self.rounds, penalty=self.penalty, growth=self.growth,
                out_of_time=session.out_of_time,
            )  # fmt: skip
        except torch.linalg.LinAlgError:  # the eigenvectors were not found
            session.notice(f"ADMM failed on layer '{rows.name}', which keeps its mask: give more damping.")
            return rows.kept, before.to(rows.now.dtype)
        after = self._solve(session, rows, kept, start)
        errors, others = _errors(rows, after), _errors(rows, before)
        lower = errors < others if session.budget.grouping == "output" else errors.sum() < others.sum()
        lower = lower.reshape(-1, 1)  # for each row, or for all
        found = torch.where(lower, after, before)
        return torch.where(lower, kept, rows.kept), found.to(rows.now.dtype)


def _errors(rows: Rows, weights: Float[Tensor, "o i"]) -> Float[Tensor, " o"]:
    """Give the error of each row, less a constant."""
    return (weights * (weights @ rows.matrix / 2 - rows.target)).sum(1)


def without_dead(
    mask: Bool[Tensor, "o i"],
    weight: Float[Tensor, "o i"],
    norms: Float[Tensor, "#o i"],
    grouping: Grouping,
) -> Bool[Tensor, "o i"]:
    """Keep, instead of weights whose inputs are always 0, those with the largest |w| |x| in the same group.

    Args:
        mask: what is kept.
        weight: the trained weights.
        norms: |x| of the input of each weight.
        grouping: what a group is; with ``"input"`` all weights of one have the same input, and nothing moves.

    Returns:
        The mask, which has the same counts.
    """
    if grouping == "input" or bool((norms > 0).all()):
        return mask
    worth = weight.abs().double() * norms
    # First what is kept with reason, then the others by their worth, then, as it was, what is dead.
    worth = torch.where(norms > 0, torch.where(mask, torch.inf, worth), torch.where(mask, -1.0, -2.0))
    best = mark_best(as_rows(worth, grouping), count_rows(as_rows(mask, grouping)))
    return from_rows(best, grouping, mask.shape)


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
    out_of_time: Callable[[float], bool] = lambda _: False,
) -> tuple[Bool[Tensor, "o i"], Float[Tensor, "o i"]]:
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
        out_of_time: says whether a further piece of work, of so many seconds, would take too long.

    Returns:
        The mask, which has the same counts, and weights near the best for it, 0 where pruned.
    """
    counts = count_rows(as_rows(kept, grouping))
    scale = matrix.diagonal().sqrt()
    linear, sparse = target / scale, start * scale
    dual, mask, still, longest = torch.zeros_like(sparse), kept, 0, 0.0
    eigenvalues, vectors = torch.linalg.eigh(matrix / scale / scale[:, None])
    for _ in range(rounds):
        begin = time.monotonic()
        free = ((linear - dual + penalty * sparse) @ vectors / (eigenvalues + penalty)) @ vectors.T
        wanted = free + dual / penalty
        last, mask = mask, from_rows(mark_best(as_rows(wanted.abs(), grouping), counts), grouping, mask.shape)
        sparse = torch.where(mask, wanted, 0)
        dual = dual + penalty * (free - sparse)
        penalty *= growth
        still = still + 1 if torch.equal(mask, last) else 0
        longest = max(longest, time.monotonic() - begin)
        if still == _STILL or out_of_time(longest):
            break
    return mask, sparse / scale
