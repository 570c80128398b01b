"""How far a network's predictions are from another's."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from secateur.core.modes import widened


def softened_divergence(
    logits: Float[Tensor, "... c"], trained: Float[Tensor, "... c"], temperature: float
) -> Float[Tensor, "..."]:
    """Compute T^2 KL(q || p) with p = softmax(logits / T) and q = softmax(trained / T).

    For T = 1 that is what drawing labels from q would cost beyond their entropy; as T grows it comes to the
    variance of the differences of logits over 2, so that all labels count alike. T^2 keeps the gradient from
    vanishing meanwhile (Hinton, Vinyals and Dean 2015, arXiv:1503.02531). Labels whose logits are -inf in
    both, as those of a model that masks them, add nothing.

    Args:
        logits: of the network, which may be differentiated.
        trained: of the trained network.
        temperature: T > 0.

    Returns:
        Nats, at least 0 but for rounding, which T^2 multiplies.
    """
    p, q = (_finite(widened(x).div(temperature)).log_softmax(-1) for x in (logits, trained))
    return temperature**2 * nn.functional.kl_div(p, q, reduction="none", log_target=True).sum(-1)


def _finite(logits: Float[Tensor, "... c"]) -> Float[Tensor, "... c"]:
    """Lift -inf, of which 0 times the difference would be NaN, so little that its probability stays 0."""
    return logits.clamp(min=torch.finfo(logits.dtype).min / 4)
