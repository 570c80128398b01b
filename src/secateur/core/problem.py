"""The block problem: a binary quadratic problem with a fixed count in each group."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.ocean import bqm_of, cqm_of
from secateur.core.qubo import Penalty, Qubo, check_size, quadratic_form

# By factors, the matrix of more variables than these is never formed: of 4,096 it takes 134 MB.
LARGE = 4096

# Of columns, in which a product with its own transpose is computed.
_STRIPS = 4

# Relative to the diagonal: more than the rounding of a product in float32, less than what matters.
_SHIFT = 1e-5


@dataclass(frozen=True, eq=False)
class BlockProblem:
    """Minimise c + l.x + 1/2 x'B x over binary x with a fixed sum in each group.

    x = 1 means pruned. B is given dense, or by factors: B = U U' + diag(v), with U [n, s]
    (of a mean over S samples, U holds their gradients divided by the root of S). The diagonal
    of B counts: x_i^2 = x_i. Memory is that of the parts, and 8 n^2 bytes more once a solver
    asks for `matrix`; those that come with Secateur do not, by factors, for n above 4,096.

    Attributes:
        constant: c, in the unit of the loss.
        linear: l.
        groups: the group of each variable, numbered from 0.
        incumbent: the current assignment, which is feasible by definition.
        dense: B, symmetric; None where it is given by factors.
        factors: U; None where B is given dense.
        diagonal: v, beside the factors; None for zero.
        convex: whether a dense B is positive semi-definite up to rounding, as a sum of squares
            is; None: not known, and tried when somebody asks (`convexifier`).

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
    convex: bool | None = None

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
        if not math.isfinite(self.constant) or not all(_is_finite(part) for part in parts):
            raise SecateurError(
                "a block problem has an entry that is NaN or infinite: look for overflow in the loss."
            )

    @property
    def size(self) -> int:
        """n, the number of variables."""
        return self.linear.numel()

    @property
    def is_large(self) -> bool:
        """Whether B is given by factors, and too large to be formed."""
        return self.dense is None and self.size > LARGE

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
        matrix = gram(self.factors.double())
        if self.diagonal is not None:
            matrix.diagonal().add_(self.diagonal.double())
        return matrix

    @cached_property
    def convexifier(self) -> Float[Tensor, " n"] | None:
        """A diagonal D with B + diag(D) positive semi-definite, None where none is known.

        For binary x nothing changes when 1/2 D is taken off l at the same time, and the
        continuous relaxation becomes convex. By factors D = -v. Dense, D = 1e-5 diag(B), which
        outweighs rounding in B; unless `convex` says so, a Cholesky factorisation of B scaled to
        a diagonal of ones must exist: n^3/3 operations, once.
        """
        if self.dense is None:
            return (
                torch.zeros_like(self.linear).double() if self.diagonal is None else -self.diagonal.double()
            )
        if self.convex is None and not _has_cholesky(self.matrix):
            return None
        return None if self.convex is False else _SHIFT * self.matrix.diagonal().clamp(min=0)

    @cached_property
    def rounding(self) -> float:
        """What rounding may feign in a value: 64 units of it in |c| + sum |l_i| + sum |B_ij|."""
        if self.dense is None:
            assert self.factors is not None
            own = 0.0 if self.diagonal is None else float(self.diagonal.double().abs().sum())
            sums = torch.linalg.vector_norm(self.factors, ord=1, dim=0, dtype=torch.float64)
            size = float(sums.square().sum()) + own
        else:
            size = float(self.matrix.abs().sum())
        return (
            64
            * torch.finfo(torch.float64).eps
            * (abs(self.constant) + float(self.linear.double().abs().sum()) + size)
        )

    def restarted(self, incumbent: Bool[Tensor, " n"]) -> "BlockProblem":
        """Pose the same problem from another incumbent with the same counts.

        Args:
            incumbent: a feasible x.

        Returns:
            The problem. What has been computed for this one and kept beside its fields, by
            solvers too, is not computed again: nothing that depends on the incumbent may be.
        """
        again = object.__new__(type(self))  # past the checks, which this one has passed
        again.__dict__.update(self.__dict__, incumbent=incumbent)
        return again

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
            response = self.factors[assignment].sum(0, dtype=torch.float64)
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

    def to_qubo(self, penalty: Penalty = "auto") -> Qubo:
        """Write the problem without constraints, the counts as a penalty.

            x'Qx + offset = c + l.x + 1/2 x'B x + P sum_g (sum of x over g - k_g)^2

        Args:
            penalty: P >= 0 in the unit of the loss; None for 0, which leaves the counts to the
                caller; ``"auto"``: what samplers can work with, which does not guarantee that
                the lowest energy is feasible (`secateur.core.qubo.automatic_penalty`).

        Returns:
            Q, upper triangular, offset and P.
        """
        check_size(self.size)
        form = quadratic_form(self.constant, self.linear, self.matrix)
        return form.with_counts(self.groups.cpu(), self.counts.cpu(), penalty)

    def to_bqm(self, penalty: Penalty = "auto") -> Any:
        """Write the problem as dimod's binary quadratic model, the counts as a penalty.

        Args:
            penalty: as in `to_qubo`.

        Returns:
            A `dimod.BinaryQuadraticModel` over 0 ... n-1, of the energies of `to_qubo`.
        """
        return bqm_of(self.to_qubo(penalty))

    def to_cqm(self) -> Any:
        """Write the problem as dimod's constrained quadratic model, without a penalty.

        Returns:
            A `dimod.ConstrainedQuadraticModel` over 0 ... n-1: the objective, and an equation
            ``"group g"`` for each group that has members.
        """
        return cqm_of(self.to_qubo(None), self.groups.cpu(), self.counts.cpu())


def _is_finite(part: Tensor) -> bool:
    """Look for NaN and infinity: in the sum first, as that takes a twentieth of the time."""
    return bool(torch.isfinite(part.sum())) or bool(torch.isfinite(part).all())


def gram(factors: Float[Tensor, "n s"]) -> Float[Tensor, "n n"]:
    """Multiply a matrix and its transpose.

    Args:
        factors: U.

    Returns:
        U U', exactly symmetric, for five eighths of the operations of a product.
    """
    n = factors.shape[0]
    product = factors.new_empty(n, n)
    step = max(1, -(-n // _STRIPS))
    for first in range(0, n, step):
        last = min(n, first + step)
        strip = factors[first:] @ factors[first:last].T
        own = strip[: last - first]
        own.copy_(own.tril() + own.tril(-1).T)
        product[first:, first:last] = strip
        product[first:last, first:] = strip.T
    return product


def _has_cholesky(matrix: Float[Tensor, "n n"]) -> bool:
    """Say whether a matrix, scaled to a diagonal of ones, is positive definite after a small shift."""
    diagonal = matrix.diagonal()
    alive = matrix.abs().sum(1) > 0
    if bool((diagonal[alive] <= 0).any()):
        return False
    scale = diagonal[alive].rsqrt()
    scaled = matrix[alive][:, alive] * scale[:, None] * scale
    scaled.diagonal().add_(_SHIFT)
    return bool(torch.linalg.cholesky_ex(scaled).info == 0)
