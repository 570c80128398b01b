"""Products and tests of symmetric matrices."""

import torch
from jaxtyping import Float
from torch import Tensor

# Relative to the diagonal: more than the rounding of a product in float32, less than what matters.
CONVEX_SHIFT = 1e-5
# Of columns, in which a product with its own transpose is computed.
_STRIPS = 4


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


def symmetrised(matrix: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Average a matrix and its transpose.

    A product of matrices is symmetric up to rounding only, which can send a descent round in circles.

    Args:
        matrix: a square matrix.

    Returns:
        The average, exactly symmetric; the matrix itself where it is so already.
    """
    transpose = matrix.T.contiguous()
    return matrix if torch.equal(matrix, transpose) else 0.5 * matrix + 0.5 * transpose


def has_cholesky(matrix: Float[Tensor, "n n"]) -> bool:
    """Say whether B + 1e-5 diag(B) is positive definite beside its zero rows: n^3/3 operations.

    Args:
        matrix: B, symmetric.

    Returns:
        Whether the Cholesky factorisation exists, of B scaled to a diagonal of ones.
    """
    diagonal = matrix.diagonal()
    alive = matrix.abs().sum(1) > 0
    if bool((diagonal[alive] <= 0).any()):
        return False
    scale = diagonal[alive].rsqrt()
    scaled = matrix[alive][:, alive] * scale[:, None] * scale
    scaled.diagonal().add_(CONVEX_SHIFT)
    return bool(torch.linalg.cholesky_ex(scaled).info == 0)
