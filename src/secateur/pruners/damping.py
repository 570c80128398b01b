"""Gram matrices that can be factored: damped as much as it takes."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.moments import Moments
from secateur.pruners.session import Session


def damped(
    gram: Float[Tensor, "i i"], damping: float, start: float = 1e-8
) -> tuple[Float[Tensor, "i i"], float]:
    """Add to the diagonal of a Gram matrix until it can be factored.

    H = G + damping * mean(diag G) * I, with the damping raised tenfold where H is singular to the precision
    of G: where a pivot of its Cholesky factor is no larger than what rounding makes of the diagonal entry.

    Args:
        gram: G, symmetric, all its diagonal entries greater than 0.
        damping: as a fraction of the mean of the diagonal; at least 0.
        start: what follows on a damping of 0.

    Returns:
        H in float64, and the damping that it took.
    """
    mean, noise = float(gram.diagonal().double().mean()), torch.finfo(gram.dtype).eps
    while True:
        matrix = gram.to(torch.float64, copy=True)
        matrix.diagonal().add_(damping * mean)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if int(failed) == 0 and bool((factor.diagonal().square() > noise * matrix.diagonal()).all()):
            return matrix, damping
        damping = max(10 * damping, start)


def solvable(session: Session, name: str, gram: Float[Tensor, "i i"], damping: float) -> Float[Tensor, "i i"]:
    """Damp the Gram matrix of a layer, and say so where it took more than was asked for.

    Args:
        session: whom to tell.
        name: the layer.
        gram: sum of x x' over its inputs, all its diagonal entries greater than 0.
        damping: as a fraction of the mean of the diagonal; at least 0.

    Returns:
        The damped matrix in float64.
    """
    matrix, used = damped(gram, damping)
    if used > damping:
        session.notice(
            f"the Gram matrix of the inputs of layer '{name}' is singular with damping {damping:g}: damping "
            f"{used:g} was used; give more calibration samples, or more damping."
        )
    return matrix


def note_few(session: Session, moments: Mapping[str, Moments]) -> None:
    """Say so where there are fewer positions than inputs, whatever the damping.

    Args:
        session: whom to tell.
        moments: of the inputs, by layer.
    """
    few = [name for name, found in moments.items() if found.count < found.total.shape[-1]]
    if few:
        found = moments[few[0]]
        session.notice(
            f"the Gram matrix of layer '{few[0]}' is singular, as {found.count} calibration positions are "
            f"fewer than its {found.total.shape[-1]} inputs; it is damped, but give more calibration samples "
            "(the same may hold of other layers)."
        )


def check_damping(damping: float) -> None:
    """Refuse a damping that is none.

    Args:
        damping: as a fraction of the mean of the diagonal.

    Raises:
        SecateurError: it is negative.
    """
    if not damping >= 0:
        raise SecateurError(f"damping must be at least 0, not {damping}.")
