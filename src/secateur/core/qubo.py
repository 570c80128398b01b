"""Binary quadratic forms without constraints: counts as a penalty, and how large to make it."""

import math
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from secateur.core.errors import SecateurError

# Q alone takes 8 n^2 bytes, 3.2 GB here, and what samplers make of it several times as much.
MOST_VARIABLES = 20_000
Penalty = float | int | str | None  # a number of at least 0, "auto", or None


@dataclass(frozen=True, eq=False)
class Qubo:
    """A quadratic unconstrained binary form, x'Qx + offset.

    Attributes:
        matrix: Q, upper triangular; its diagonal is the linear part.
        offset: what is added, in the unit of the loss.
        penalty: P, what the squares of the groups' deviations from their counts are weighted with.
    """

    matrix: Float[Tensor, "n n"]
    offset: float
    penalty: float = 0.0

    def energies(self, assignments: Bool[Tensor, "m n"]) -> Float[Tensor, " m"]:
        """Evaluate the form.

        Args:
            assignments: any x, feasible or not, one a row.

        Returns:
            x'Qx + offset of each, in the unit of the loss.
        """
        x = assignments.to(self.matrix)
        return ((x @ self.matrix) * x).sum(1) + self.offset

    @property
    def mean_size(self) -> float:
        """The mean |Q_ij| over the upper triangle; 1 where Q is zero."""
        n = len(self.matrix)
        return float(self.matrix.abs().sum()) / max(1, n * (n + 1) // 2) or 1.0

    def with_counts(self, groups: Int[Tensor, " n"], counts: Int[Tensor, " g"], penalty: Penalty) -> "Qubo":
        """Add P sum_g (sum of x over g - k_g)^2.

        Since x_i^2 = x_i, each square is (1 - 2 k) sum_i x_i + 2 sum_{i<j} x_i x_j + k^2.

        Args:
            groups: the group of each variable.
            counts: k of each group.
            penalty: P >= 0; ``"auto"``: what `automatic_penalty` says; None for 0.

        Returns:
            The form with its penalty.
        """
        check_penalty(penalty)
        weight = automatic_penalty(self, groups, counts) if penalty == "auto" else float(penalty or 0.0)
        if weight == 0:
            return self
        together = (groups[:, None] == groups).triu(1).to(self.matrix)
        matrix = self.matrix + (2 * weight) * together
        matrix.diagonal().add_(weight * (1 - 2 * counts.to(matrix)[groups]))
        offset = self.offset + weight * float(counts.double().square().sum())
        return Qubo(matrix, offset, self.penalty + weight)


def quadratic_form(constant: float, linear: Float[Tensor, " n"], matrix: Float[Tensor, "n n"]) -> Qubo:
    """Write c + l.x + 1/2 x'B x as x'Qx + offset.

    Args:
        constant: c.
        linear: l.
        matrix: B, symmetric up to rounding.

    Returns:
        The form, in float64, on the CPU.
    """
    matrix = matrix.double().cpu()
    form = (0.5 * (matrix + matrix.T)).triu(1)
    form.diagonal().add_(linear.double().cpu() + 0.5 * matrix.diagonal())
    return Qubo(form, constant)


def automatic_penalty(form: Qubo, groups: Int[Tensor, " n"], counts: Int[Tensor, " g"]) -> float:
    """Choose the penalty so that samplers still move.

        P = sqrt(G) mean |Q_ij|

    with Q the objective's own form and G the number of groups in which there is a choice. A flip
    changes the objective by about sqrt(n) mean |Q_ij|; P charges as much for a deviation of about
    sqrt(n / G), the root of a group's size, and hardly anything for a deviation of one.

    It guarantees that P scales with the objective, and depends on neither the constant, nor the
    incumbent, nor the numbering of the variables. It does *not* guarantee that the lowest energy
    is feasible: P > max_i (|Q_ii| + sum_j |Q_ij|) would, and is up to n times as much, so that an
    annealer that flips one variable at a time freezes at once. Measured with dwave-samplers'
    annealing on blocks of 32 to 256 variables: at 0.3 to 3 times this P reads are off by
    nothing to a few variables, and lowest after repair; at 10 times all are feasible, and worse.

    Args:
        form: the objective.
        groups: the group of each variable.
        counts: k of each group.

    Returns:
        P, in the unit of the loss.
    """
    sizes = groups.bincount(minlength=counts.numel())
    choices = int(((counts > 0) & (counts < sizes)).sum())
    return math.sqrt(max(1, choices)) * form.mean_size


def check_penalty(penalty: Penalty) -> None:
    """Refuse what is no penalty.

    Args:
        penalty: what was given.

    Raises:
        SecateurError: it is neither a number of at least 0, nor "auto", nor None.
    """
    if penalty is None or penalty == "auto":
        return
    if isinstance(penalty, str) or not 0 <= penalty < math.inf:
        raise SecateurError(
            f"a penalty is a number of at least 0, or 'auto', or None where there is none, not {penalty!r}."
        )


def check_size(size: int) -> None:
    """Refuse to write a matrix that no memory holds.

    Args:
        size: n.

    Raises:
        SecateurError: n is too large.
    """
    if size > MOST_VARIABLES:
        raise SecateurError(
            f"a problem of {size} variables is too large to be written out as a matrix: take a block of at "
            f"most {MOST_VARIABLES} variables."
        )
