"""The block problem: a binary quadratic problem with a fixed count in each group."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.matrices import CONVEX_SHIFT, gram, has_cholesky, symmetrised
from secateur.core.ocean import bqm_of, cqm_of
from secateur.core.qubo import Penalty, Qubo, check_size, quadratic_form

T = TypeVar("T")

# By factors, the matrix of more variables than these is never formed: of 4,096 it takes 134 MB.
LARGE = 4096

# Counts are kept for every number up to that of the last group.
MOST_GROUPS = 2**24

# Sums of some thousand terms, updated as many times: this many roundings of the sum of the terms'
# sizes is more than their error, and less than any change that matters.
ROUNDINGS = 64


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
        memory: what has been computed of it, by name (`remembered`).

    Raises:
        SecateurError: types or shapes disagree, or an entry is not finite.
    """

    constant: float
    linear: Float[Tensor, " n"]
    groups: Int[Tensor, " n"]
    incumbent: Bool[Tensor, " n"]
    dense: Float[Tensor, "n n"] | None = None
    factors: Float[Tensor, "n s"] | None = None
    diagonal: Float[Tensor, " n"] | None = None
    convex: bool | None = None
    memory: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check types, shapes and finiteness."""
        self._check_types()
        object.__setattr__(self, "constant", float(self.constant))
        for name in ("linear", "dense", "factors", "diagonal"):
            part = getattr(self, name)
            object.__setattr__(self, name, None if part is None else part.detach())
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

    def _check_types(self) -> None:
        """Refuse what would be misread."""
        parts = [self.linear, self.groups, self.incumbent, self.dense, self.factors, self.diagonal]
        if not all(isinstance(part, Tensor) for part in parts if part is not None):
            raise SecateurError(
                "the parts of a block problem are torch tensors: wrap arrays by torch.from_numpy."
            )
        if self.incumbent.dtype != torch.bool:
            raise SecateurError("the incumbent of a block problem is a tensor of bools: add .bool() to it.")
        if not all(part.is_floating_point() for part in (parts[0], *parts[3:]) if part is not None):
            raise SecateurError("l, B, U and v of a block problem are floating-point: add .double() to them.")
        if any(part.layout != torch.strided for part in parts if part is not None):
            raise SecateurError("the parts of a block problem are dense tensors: call .to_dense() on them.")
        shaped = [(1, part) for part in (self.linear, self.groups, self.incumbent, self.diagonal)]
        shaped += [(2, part) for part in (self.dense, self.factors)]
        if any(part.ndim != wanted for wanted, part in shaped if part is not None):
            raise SecateurError(
                "l, v, groups and incumbent of a block problem are vectors, B and U matrices."
            )
        if self.groups.dtype != torch.int64 or bool(((self.groups < 0) | (self.groups >= MOST_GROUPS)).any()):
            raise SecateurError(
                f"the groups of a block problem are a tensor of int64, from 0 to below {MOST_GROUPS}."
            )
        if len({part.device for part in parts if part is not None}) > 1:
            raise SecateurError("the parts of a block problem are on different devices: move them to one.")

    def remembered(self, name: str, make: Callable[[], T]) -> T:
        """Compute something once for this problem and all that are restarted from it.

        Args:
            name: of what is computed.
            make: computes it; it may depend on the incumbent in how exact it is, and in nothing else.

        Returns:
            It.
        """
        if name not in self.memory:
            self.memory[name] = make()
        return self.memory[name]

    @property
    def counts(self) -> Int[Tensor, " groups"]:
        """How many variables of each group are 1: those of the incumbent."""
        return self.remembered("counts", self._counts)

    def _counts(self) -> Tensor:
        total = int(self.groups.max()) + 1 if self.size else 0
        return torch.bincount(self.groups[self.incumbent], minlength=total)

    @property
    def matrix(self) -> Float[Tensor, "n n"]:
        """B in float64, exactly symmetric, formed from the factors where need be."""
        return self.remembered("matrix", self._matrix)

    def _matrix(self) -> Tensor:
        if self.dense is not None:
            return symmetrised(self.dense.double())
        assert self.factors is not None
        # In float64 before the product, so that values agree with those taken by the factors.
        matrix = gram(self.factors.double())
        if self.diagonal is not None:
            matrix.diagonal().add_(self.diagonal.double())
        return matrix

    @property
    def convexifier(self) -> Float[Tensor, " n"] | None:
        """A diagonal D with B + diag(D) positive semi-definite, None where none is known.

        For binary x nothing changes when 1/2 D is taken off l at the same time, and the
        continuous relaxation becomes convex. By factors D = -v. Dense, D = 1e-5 diag(B), which
        outweighs rounding in B; unless `convex` says so, a Cholesky factorisation of B scaled to
        a diagonal of ones must exist: n^3/3 operations, once.
        """
        return self.remembered("convexifier", self._convexifier)

    def _convexifier(self) -> Tensor | None:
        if self.dense is None:
            own = torch.zeros_like(self.linear) if self.diagonal is None else self.diagonal
            return -own.double()
        if self.convex is None and not has_cholesky(self.matrix):
            return None
        return None if self.convex is False else CONVEX_SHIFT * self.matrix.diagonal().clamp(min=0)

    @property
    def magnitude(self) -> float:
        """The sum of |c|, |l_i| and |B_ij| (by factors, a bound on it): the unit of rounding errors."""
        return self.remembered("magnitude", self._magnitude)

    def _magnitude(self) -> float:
        if self.dense is None:
            assert self.factors is not None
            own = 0.0 if self.diagonal is None else float(self.diagonal.double().abs().sum())
            sums = torch.linalg.vector_norm(self.factors, ord=1, dim=0, dtype=torch.float64)
            size = float(sums.square().sum()) + own
        else:
            size = float(self.matrix.abs().sum())
        return abs(self.constant) + float(self.linear.double().abs().sum()) + size

    @property
    def rounding(self) -> float:
        """What rounding may feign in a value: 64 units of it in `magnitude`."""
        return ROUNDINGS * torch.finfo(torch.float64).eps * self.magnitude

    def restarted(self, incumbent: Bool[Tensor, " n"]) -> "BlockProblem":
        """Pose the same problem from another incumbent with the same counts.

        Args:
            incumbent: a feasible x.

        Returns:
            The problem, which shares what has been computed and will be (`remembered`).
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
        if self.dense is None:  # also where the matrix is at hand: sums in another order differ
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
