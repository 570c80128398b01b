"""Refit by gradient steps on the true loss."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.mask import Mask
from secateur.core.registry import register
from secateur.core.task import Task
from secateur.pruners.batches import Batches
from secateur.pruners.distillation import BYTES_A_WEIGHT, check_temperature
from secateur.pruners.network import Network
from secateur.pruners.refit import Refit
from secateur.pruners.session import Session
from secateur.pruners.sizes import width

# A mini-batch is this share of the pool at most, as in averaging.
_SHARE = 16
# Over samples that are not varied.
_PASSES = 10.0
NOTHING = (
    "the gradient steps found nothing better, or had no time to, and kept the weights as they were: give "
    "more time, more calibration samples or another refit."
)
# Steps after which the guard samples are looked at.
_LENGTH = 25


@register("refit", "gradient")
@dataclass(frozen=True)
class GradientSteps(Refit):
    """Takes steps of Adam on the kept weights, down the task's own loss; pruned weights stay 0.

    With w the kept weights of a layer, s the root of their mean square, g the gradient of a mini-batch:

        w <- w - e h s m / (sqrt(v) + 1e-8),

    m and v the running means of g and g^2 (Adam: Kingma and Ba 2015, arXiv:1412.6980), e the rate, and h
    falling from 1 to 0 along a cosine. So the rate is a share of a typical weight, whatever the layer.
    The refit serves the objective that the mask was found for; one of the layer's error makes such a mask
    worse. Of the weights on the way those with the lowest loss on the guard samples are returned, which no
    step saw.

    Memory: weights, their best values, gradients and Adam's two means: five numbers a weight in float32.

    Attributes:
        rate: e > 0.
        steps: how many, for a run without a budget of seconds.
        passes: over the calibration samples, at most: more would fit them alone; None = 10, or no bound
            where the task draws variants of them; infinity = no bound.
        time: share of a budget of seconds that is held back for the refit, in [0, 1).
        samples: in a mini-batch; None = 500, or a sixteenth of the data where that is less.
        batches: says how many guard samples are held back: as many as the pruner held back, or it has
            seen them.
        temperature: T in (0, 100]; g is the gradient of the distance from the trained network's outputs then,
            T^2 KL(softmax(trained / T) || softmax(outputs / T)) (`Task.divergences`; Hinton et al. 2015,
            arXiv:1503.02531), and guard samples go by the loss all the same. None: the gradient of the loss.
        bfloat16: multiply matrices in bfloat16; None = where the hardware does so faster and the
            weights are in float32. Noise of mini-batches hides the rounding.

    Raises:
        SecateurError: a number out of range.
    """

    rate: float = 0.01
    steps: int = 200
    passes: float | None = None
    time: float = 0.4
    samples: int | None = None
    batches: Batches = field(default_factory=Batches)
    bfloat16: bool | None = None
    temperature: float | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 < self.rate < math.inf:
            raise SecateurError(f"the rate of the refit must be positive and finite, not {self.rate}.")
        check_temperature(self.temperature, "the refit")
        for name in ("steps", "passes", "samples"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise SecateurError(f"{name} of the refit must be positive, not {value}.")
        if not 0 <= self.time < 1:
            raise SecateurError(f"time is a share of the budget from 0 to below 1, not {self.time}.")

    @property
    def share(self) -> float:
        """What part of a budget of seconds is held back."""
        return self.time

    @property
    def bytes_a_weight(self) -> float:
        """Weights, their best values, gradients, Adam's two means, those put aside; and the mask."""
        return 25.0 + (0.0 if self.temperature is None else BYTES_A_WEIGHT)

    @property
    def distils(self) -> bool:
        """Whether there is a temperature."""
        return self.temperature is not None

    def check(self, network: Network, task: Task) -> None:
        """Refuse bfloat16 where weights are not in float32."""
        network.check_bfloat16(self.bfloat16)

    def warm_up(self) -> None:
        """Have torch import what its optimisers need, which takes a second."""
        torch.optim.Adam([torch.zeros(1, requires_grad=True)])

    def gradient_samples(self, session: Session) -> int:
        """Those of a mini-batch."""
        pool, _ = session.divided(self.batches)
        return self._size(pool)

    def _size(self, pool: Tensor) -> int:
        return min(pool.numel(), self.samples or max(1, min(500, pool.numel() // _SHARE)))

    def __call__(
        self, session: Session, mask: Mask, weights: Mapping[str, Tensor]
    ) -> tuple[Mask, dict[str, Tensor]]:
        """Go down the loss from the weights that the model holds."""
        network = session.network
        values = _Kept(session, mask, weights)
        pool, guard = session.divided(self.batches)
        size = self._size(pool)
        first = session.mean_loss(guard) if guard.numel() else math.inf
        best, lowest = values.clone(), first
        rates = {name: self.rate * values.size_of(name) for name in mask}
        groups = [{"params": [values[name]], "lr": rates[name]} for name in mask]
        adam = torch.optim.Adam(groups)
        step = 0
        for step, (progress, index) in enumerate(self._draws(session, pool, size), 1):
            for group, rate in zip(adam.param_groups, rates.values(), strict=True):
                group["lr"] = rate * (0.5 + 0.5 * math.cos(math.pi * progress))
            gradients = session.minibatch_gradient(index, step - 1, self.bfloat16, self.temperature)[1]
            for name in mask:
                found = gradients.get(name)
                values[name].grad = None if found is None else found.to(values[name]).mul_(mask[name])
            del gradients
            adam.step()
            network.write(mask, values)
            if guard.numel() and step % _LENGTH == 0:
                loss = session.mean_loss(guard)
                if loss < lowest:
                    best, lowest = values.clone(), loss
        if step and (guard.numel() == 0 or session.mean_loss(guard) < lowest):
            return mask, dict(values)
        if not lowest < first:
            session.notice(NOTHING)
        return mask, best

    def _draws(self, session: Session, pool: Tensor, size: int) -> Iterator[tuple[float, Tensor]]:
        """Give mini-batches while there is time, each with the share of the time that is spent."""
        whole = session.remaining()
        most = self.steps if whole is None else None
        passes = self.passes or (math.inf if session.task.variation else _PASSES)
        bound = math.inf if passes == math.inf else math.ceil(passes * pool.numel() / size)
        cursor, step = (0, 0), 0
        while step < min(bound, math.inf if most is None else most):
            left = session.remaining()
            spent = 0.0 if whole is None or left is None else 1 - left / max(whole, 1e-9)
            progress = max(spent, step / min(bound, math.inf if most is None else most))
            if progress >= 1:
                return
            index, cursor = self.batches.draw(pool, session.seed, cursor, size)
            yield progress, index
            step += 1


class _Kept(dict[str, Tensor]):
    """The weights by layer, in float32 or wider, that steps change."""

    def __init__(self, session: Session, mask: Mask, weights: Mapping[str, Tensor]) -> None:
        reference = session.network.reference
        for name in mask:
            weight = weights.get(name, reference[name])
            self[name] = torch.where(mask[name], weight, 0).to(width(weight), copy=True)

    def size_of(self, name: str) -> float:
        """Give the root mean square of a layer's kept weights."""
        kept = self[name][self[name] != 0]
        return float(kept.square().mean().sqrt()) if kept.numel() else 0.0

    def clone(self) -> dict[str, Tensor]:
        """Copy them."""
        return {name: weight.clone() for name, weight in self.items()}
