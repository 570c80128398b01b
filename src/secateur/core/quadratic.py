"""The quadratic model of a block, and the binary problem it poses."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from secateur.core.matrices import gram
from secateur.core.problem import LARGE, BlockProblem


@dataclass(frozen=True, eq=False)
class QuadraticModel:
    """Gradient and curvature of the mean loss over a block: dL(d) = g.d + 1/2 d'H d.

    H is dense, or H = A A' with A [n, q].

    Attributes:
        gradient: g, nats per unit of weight.
        dense: H; None where it is given by factors.
        factors: A; None where H is given dense.
    """

    gradient: Float[Tensor, " n"]
    dense: Float[Tensor, "n n"] | None = None
    factors: Float[Tensor, "n q"] | None = None

    def problem(
        self,
        reference: Float[Tensor, " n"],
        pruned: Bool[Tensor, " n"],
        groups: Int[Tensor, " n"],
        multiplier: float = 1.0,
        ridge: float = 0.0,
        anchor: Bool[Tensor, " n"] | None = None,
    ) -> BlockProblem:
        """Write the choice of a block's mask as a binary quadratic problem.

        With w0 the reference weights, x0 what is pruned now and xa what was pruned at the
        anchor, the change of the weights is d = w0 (x0 - x), and

            dL(x) = a g.d + 1/2 d'H d + r sum_i w0_i^2 (|x - xa| - |x0 - xa|)_i
            B = w0 w0' * H
            l = -B x0 - a w0 g + r w0^2 (1 - 2 xa)
            c = 1/2 x0'B x0 + a (w0 g).x0 - r (w0^2 (1 - 2 xa)).x0

        (Rosenberg et al. 2024, arXiv:2411.17796; there xa = x0, the ridge's weight being
        the distance from the current weights.) The value at x0 is 0.

        Args:
            reference: w0.
            pruned: x0.
            groups: the budget group of each weight.
            multiplier: a, what the gradient is multiplied with.
            ridge: r >= 0, nats per squared unit of weight.
            anchor: xa, where the distance is measured from; x0 where None.

        Returns:
            The problem, where the weights are, with x0 as its incumbent. Given by factors, H is
            formed in their precision; above `LARGE` variables the problem has factors itself.
        """
        w, x0 = reference.double(), pruned.double()
        side = 1 - 2 * (x0 if anchor is None else anchor.double())
        penalty = ridge * w.square() * side
        slope = multiplier * w * self.gradient.double()
        form, pull = self._couplings(w, pruned)
        return BlockProblem(
            constant=float(0.5 * (x0 @ pull) + (slope - penalty) @ x0),
            linear=penalty - slope - pull,
            groups=torch.unique(groups.to(pruned.device), return_inverse=True)[1],
            incumbent=pruned,
            **form,
        )

    def _couplings(self, w: Float[Tensor, " n"], pruned: Bool[Tensor, " n"]) -> tuple[dict[str, Any], Tensor]:
        """Give B, dense or by factors, and B x0 in float64."""
        if self.factors is None:
            assert self.dense is not None
            matrix = w[:, None] * self.dense.double() * w
            return {"dense": matrix}, matrix[:, pruned].sum(1)
        factors = w.to(self.factors.dtype)[:, None] * self.factors
        if w.numel() <= LARGE:
            matrix = gram(factors).double()
            return {"dense": matrix, "convex": True}, matrix[:, pruned].sum(1)
        response = factors[pruned].sum(0, dtype=torch.float64)
        return {"factors": factors}, torch.cat([rows.double() @ response for rows in factors.split(LARGE)])

    def change(self, delta: Float[Tensor, " n"]) -> float:
        """Predict the change of the mean loss when the weights change.

        Args:
            delta: the change of each weight.

        Returns:
            g.d + 1/2 d'H d, nats a sample.
        """
        first = float(self.gradient.double() @ delta.double())
        if self.factors is not None:
            return first + 0.5 * float((delta.to(self.factors.dtype) @ self.factors).double().square().sum())
        assert self.dense is not None
        return first + 0.5 * float(delta.double() @ self.dense.double() @ delta.double())
