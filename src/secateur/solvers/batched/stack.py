"""Many block problems as one set of tensors, on one device."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.matrices import CONVEX_SHIFT, gram
from secateur.core.problem import ROUNDINGS, BlockProblem
from secateur.solvers.batched.groups import Groups
from secateur.solvers.batched.parts import (
    EPS,
    padded,
    pieces_of,
    survey_factors,
    survey_rows,
    symmetrise,
)

# B is formed from factors up to this size: 16 MB a problem in float32 is cheap, and one row of B costs
# n instead of n s operations.
FORMED_UP_TO = 2048


@dataclass(frozen=True, eq=False)
class Stack:
    """b problems of n variables each: minimise c + l.x + 1/2 x'B x with fixed counts in groups.

    Shorter problems are padded with variables of a group of their own, none of which is ever
    pruned. A diagonal v beside factors is moved into the linear term, l + v/2 (the same for
    binary x, as x_i^2 = x_i): so what remains, U U', is convex whatever v is.

    Only B is held in the dtype asked for; all else, and every decision, is in float64.
    Memory: b n^2 numbers of that dtype for dense B (n = 1,024: 4 MB a problem in float32, 8 in
    float64), b n s for factors, and below 100 n bytes a problem for the rest.

    Attributes:
        sizes: variables of each problem, padding left out.
        constant: c.
        linear: l.
        quadratic: B, symmetric; or U where it is in factor form.
        formed: whether that is B.
        groups: the groups.
        incumbents: the assignments that the problems came with.
        diagonal: B_ii.
        peak: at least the largest entry of each row of B beside the diagonal.
        weight: at least the sum of |entries| of each row of B.
        faithful: whether B is held as it was given, not rounded to a narrower dtype.
        shift: the share of its diagonal that makes B positive semi-definite beyond rounding: 0 for
            U U'; inf where there is none, nan where that is not known (`convex_shift`).
    """

    sizes: Int[Tensor, " b"]
    constant: Float[Tensor, " b"]
    linear: Float[Tensor, "b n"]
    quadratic: Float[Tensor, "b n s"]
    formed: bool
    groups: Groups
    incumbents: Bool[Tensor, "b n"]
    diagonal: Float[Tensor, "b n"]
    peak: Float[Tensor, "b n"]
    weight: Float[Tensor, "b n"]
    faithful: Bool[Tensor, " b"]
    shift: Float[Tensor, " b"]

    @classmethod
    def of(
        cls,
        problems: Sequence[BlockProblem],
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
        formed_up_to: int = FORMED_UP_TO,
    ) -> "Stack":
        """Stack problems.

        Args:
            problems: at least one; of any sizes, dense or in factor form.
            dtype: for B or U.
            device: where to put them; None = where the first one is.
            formed_up_to: B is formed from factors up to this n. Beyond it n x n is not formed,
                unless a problem in the same stack is dense.

        Returns:
            The stack.

        Raises:
            SecateurError: there is no problem.
        """
        if not problems:
            raise SecateurError("a stack needs at least one block problem.")
        device = problems[0].linear.device if device is None else torch.device(device)
        # At least one variable, so that no reduction is over nothing.
        n = max(1, *(problem.size for problem in problems))
        formed = n <= formed_up_to or any(problem.dense is not None for problem in problems)
        linear = padded([_linear(problem, device) for problem in problems], n, 0.0)
        incumbents = padded([problem.incumbent.to(device) for problem in problems], n, 0.0)
        labels = padded([problem.groups.to(device).long() for problem in problems], n, -1.0)
        s = n if formed else max(1, *(p.factors.shape[1] for p in problems if p.factors is not None))
        quadratic = torch.zeros(len(problems), n, s, dtype=dtype, device=device)
        for room, problem in zip(quadratic, problems, strict=True):
            part = _quadratic(problem, formed, device)
            room[: part.shape[0], : part.shape[1]] = part
        exact = torch.tensor([_is_exact(problem, formed, dtype) for problem in problems], device=device)
        faithful = exact & symmetrise(quadratic) if formed else exact
        diagonal, peak, weight = survey_rows(quadratic) if formed else survey_factors(quadratic)
        return cls(
            sizes=torch.tensor([problem.size for problem in problems], device=device),
            constant=torch.tensor([p.constant for p in problems], dtype=torch.float64, device=device),
            linear=linear,
            quadratic=quadratic,
            formed=formed,
            groups=Groups.of(labels, incumbents),
            incumbents=incumbents,
            diagonal=diagonal,
            peak=peak,
            weight=weight,
            faithful=faithful,
            shift=torch.tensor([_shift(p) for p in problems], dtype=torch.float64, device=device),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers b and n of problems, and of variables of each."""
        return self.linear.shape[0], self.linear.shape[1]

    @property
    def slack(self) -> Float[Tensor, "b n"]:
        """What rounding may feign in each field; a swap must gain more than that of both."""
        return ROUNDINGS * EPS * (self.linear.abs() + self.weight)

    @property
    def rounding(self) -> Float[Tensor, " b"]:
        """What rounding may feign in a value: 64 units of it in |c| + sum |l_i| + sum |B_ij|."""
        return ROUNDINGS * EPS * (self.constant.abs() + (self.linear.abs() + self.weight).sum(1))

    def multiply(self, vectors: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """Multiply one vector of each problem by its B, in the dtype of B.

        Args:
            vectors: x.

        Returns:
            B x.
        """
        return _product(vectors[:, None, :], self.quadratic, self.formed)[:, 0]

    def products(self, owner: Int[Tensor, " c"], vectors: Float[Tensor, "c n"]) -> Float[Tensor, "c n"]:
        """Multiply vectors by the B of any problems, in float64.

        Args:
            owner: the problem of each vector.
            vectors: x.

        Returns:
            B x.
        """
        if self.shape[0] == 1:
            return _product(vectors, self.quadratic[0].double(), self.formed)
        pieces = []
        for part in pieces_of(owner.numel(), self.quadratic[0].numel()):
            rows = vectors[part, None, :]
            pieces.append(
                _product(rows, self.quadratic.index_select(0, owner[part]).double(), self.formed)[:, 0]
            )
        return torch.cat(pieces)

    def rows(self, owner: Int[Tensor, " c"], variables: Int[Tensor, " c"]) -> Float[Tensor, "c n"]:
        """Give rows of B in float64.

        Args:
            owner: the problem of each row.
            variables: which row.

        Returns:
            The rows; in factor form at the cost of n s operations each.
        """
        n = self.shape[1]
        if self.formed:
            return self.quadratic.view(-1, n).index_select(0, owner * n + variables).double()
        out = self.linear.new_empty(owner.numel(), n)
        # Each is a product of matrices, large as n is: gathering U for each row would cost more.
        for one in owner.unique().tolist():
            at = (owner == one).nonzero()[:, 0]
            factors = self.quadratic[one].double()
            out[at] = factors[variables[at]] @ factors.T
        return out

    def entries(
        self, owner: Int[Tensor, " c"], variables: Int[Tensor, " c"], columns: Int[Tensor, "c m"]
    ) -> Float[Tensor, "c m"]:
        """Give some entries of rows of B in float64.

        Args:
            owner: the problem of each row.
            variables: which row.
            columns: which entries of it; numbers from n on give any entry.

        Returns:
            The entries; in factor form at the cost of s operations and temporary numbers each.
        """
        n = self.shape[1]
        columns = columns.clamp(max=n - 1)
        if self.formed:
            return self.quadratic.view(-1)[(owner * n + variables)[:, None] * n + columns].double()
        row = self.quadratic[owner, variables].double()
        return torch.bmm(self.quadratic[owner[:, None], columns].double(), row[:, :, None])[:, :, 0]

    def values(self, owner: Int[Tensor, " c"], assignments: Bool[Tensor, "c n"]) -> Float[Tensor, " c"]:
        """Evaluate the objective in float64.

        Args:
            owner: the problem of each assignment.
            assignments: x.

        Returns:
            c + l.x + 1/2 x'B x.
        """
        x = assignments.double()
        fields = 2 * self.linear[owner] + self.products(owner, x)
        return self.constant[owner] + 0.5 * (x * fields).sum(1)


def _product(rows: Tensor, quadratic: Tensor, formed: bool) -> Tensor:
    """Multiply rows by B."""
    first = rows @ quadratic
    return first if formed else first @ quadratic.mT


def _linear(problem: BlockProblem, device: torch.device) -> Float[Tensor, " n"]:
    """Give l, and with it the diagonal beside factors."""
    linear = problem.linear.detach().to(device, torch.float64)
    if problem.diagonal is None:
        return linear
    return linear + 0.5 * problem.diagonal.detach().to(device, torch.float64)


def _quadratic(problem: BlockProblem, formed: bool, device: torch.device) -> Float[Tensor, "n s"]:
    """Give B, or U."""
    if problem.dense is not None:
        return problem.dense.detach().to(device)
    assert problem.factors is not None
    factors = problem.factors.detach().to(device)
    # In float64 before the product, so that values agree with those taken by the factors.
    return gram(factors.double()) if formed else factors


def _shift(problem: BlockProblem) -> float:
    """Give what is known of convexity."""
    if problem.dense is None:
        return 0.0
    return {None: math.nan, False: math.inf, True: CONVEX_SHIFT}[problem.convex]


def _is_exact(problem: BlockProblem, formed: bool, dtype: torch.dtype) -> bool:
    """Say whether B, or U, is held without rounding; a product is taken in float64."""
    if problem.dense is not None:
        return torch.promote_types(problem.dense.dtype, dtype) == dtype
    assert problem.factors is not None
    return dtype == torch.float64 or (
        not formed and torch.promote_types(problem.factors.dtype, dtype) == dtype
    )
