"""The block problem: a binary quadratic problem with a fixed count in each group."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from secateur.core.errors import SecateurError


@dataclass(frozen=True, eq=False)
class BlockProblem:
    """Minimise c + l.x + 1/2 x'B x over binary x with a fixed sum in each group.

    x = 1 means pruned. B is given dense, or by factors: B = U U' + diag(v), with U [n, s].
    The diagonal of B counts: x_i^2 = x_i.

    Attributes:
        constant: c, in the unit of the loss.
        linear: l.
        groups: the group of each variable, numbered from 0.
        incumbent: the current assignment, which is feasible by definition.
        dense: B, symmetric; None where it is given by factors.
        factors: U; None where B is given dense.
        diagonal: v, beside the factors; None for zero.

    Raises:
        SecateurError: shapes disagree, or an entry is not finite.
    """

    constant: float
    linear: Float[Tensor, " n"]
    groups: Int[Tensor, " n"]
    incumbent: Bool[Tensor, " n"]
    dense: Float[Tensor, "n n"] | None = None
    factors: Float[Tensor, "n s"] | None = None
    diagonal: Float[Tensor, " n"] | None = None

    def __post_init__(self) -> None:
        """Check shapes and finiteness."""
        n = self.linear.numel()
        if (self.dense is None) == (self.factors is None):
            raise SecateurError("a block problem has either a dense B or factors U: give exactly one.")
        quadratic = self.factors if self.dense is None else self.dense
        assert quadratic is not None
        square = self.dense is None or self.dense.shape == (n, n)
        lengths = {quadratic.shape[0], self.groups.numel(), self.incumbent.numel()}
        lengths |= set() if self.diagonal is None else {self.diagonal.numel()}
        if not square or lengths != {n}:
            raise SecateurError(f"a block problem of {n} variables got parts of other lengths.")
        parts = [self.linear, quadratic] + ([] if self.diagonal is None else [self.diagonal])
        if not math.isfinite(self.constant) or not all(bool(torch.isfinite(part).all()) for part in parts):
            raise SecateurError(
                "a block problem has an entry that is NaN or infinite: look for overflow in the loss."
            )

    @property
    def size(self) -> int:
        """n, the number of variables."""
        return self.linear.numel()

    @cached_property
    def counts(self) -> Int[Tensor, " groups"]:
        """How many variables of each group are 1: those of the incumbent."""
        total = int(self.groups.max()) + 1 if self.size else 0
        return torch.bincount(self.groups[self.incumbent], minlength=total)

    @cached_property
    def matrix(self) -> Float[Tensor, "n n"]:
        """B in float64, formed from the factors where need be."""
        if self.dense is not None:
            return self.dense.double()
        assert self.factors is not None
        # In float64 before the product, so that values agree with those taken by the factors.
        factors = self.factors.double()
        matrix = factors @ factors.T
        if self.diagonal is not None:
            matrix.diagonal().add_(self.diagonal.double())
        return matrix

    def value(self, assignment: Bool[Tensor, " n"]) -> float:
        """Evaluate the objective in float64.

        Args:
            assignment: x; True = pruned.

        Returns:
            c + l.x + 1/2 x'B x, in the unit of the loss.
        """
        x = assignment.double()
        linear = self.constant + float(self.linear.double() @ x)
        if self.dense is None and "matrix" not in self.__dict__:
            assert self.factors is not None
            response = self.factors.double().T @ x
            own = float(self.diagonal.double() @ x) if self.diagonal is not None else 0.0
            return linear + 0.5 * (float(response @ response) + own)
        return linear + 0.5 * float(x @ self.matrix @ x)

    def is_feasible(self, assignment: Bool[Tensor, " n"]) -> bool:
        """Say whether every group has as many ones as the incumbent has.

        Args:
            assignment: x.

        Returns:
            True where it is feasible.
        """
        counts = torch.bincount(self.groups[assignment], minlength=self.counts.numel())
        return torch.equal(counts, self.counts)
