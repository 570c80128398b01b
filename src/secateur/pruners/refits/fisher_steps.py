"""Refit by damped least squares on the Fisher model of the true loss."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.mask import Mask
from secateur.core.registry import register
from secateur.core.seeds import generator
from secateur.core.signal import Signal
from secateur.core.tape import Tape
from secateur.pruners.batches import Batches
from secateur.pruners.refit import Refit
from secateur.pruners.session import Session
from secateur.pruners.sizes import width

# Batches in a row for which no damping helped, after which the refit ends.
_IN_VAIN = 2
_NEEDS = frozenset({Signal.INPUTS, Signal.GRADIENT, Signal.SAMPLED_ROWS})
_LENGTHS = (1.0, 0.5, 0.25, 0.125)
# How often the damping is raised before a batch is given up: by a factor of 2 million in all.
_ATTEMPTS = 8
# Damping below this would be lost in rounding.
_LEAST = 1e-4


@register("refit", "fisher")
@dataclass(frozen=True)
class FisherSteps(Refit):
    """Moves the kept weights to the minimum of a quadratic model of the loss, a few times.

    With g the gradient and F = (1/S) G G' the Fisher matrix of a batch, from labels drawn from the model,
    both over the kept weights of all layers:

        d = argmin g.d + 1/2 d'F d + 1/2 t d.d,    w <- w + a d

    by conjugate gradients, whose products with F cost two matrix products a layer (the update step of the
    combinatorial brain surgeon: Yu et al. 2022, arXiv:2203.04466; damped as by Levenberg 1944 and
    Marquardt 1963). The length a is the first of 1, 1/2, 1/4 and 1/8 with which the loss on the guard
    samples falls. Where it falls with none, t is raised eightfold and d is found again from the same batch;
    it stays raised by as much as a step had to be shortened, and is halved after a full one.

    Of F, whose rank is that of a few samples, most eigenvalues are 0: there t alone bounds the step, so it is
    given as a multiple of the mean of the others.

    Memory: a tape of one batch, and six numbers a weight.

    Attributes:
        steps: how many batches.
        iterations: of conjugate gradients, in each.
        damping: t of the first step over the mean of those eigenvalues of F that are not 0, > 0.
        samples: in a batch; None = 128, or all there are.
        draws: labels drawn for each sample.
        time: share of a budget of seconds that is held back for the refit, in [0, 1).
        batches: says how many guard samples are held back; without any the batch itself judges its step.

    Raises:
        SecateurError: a number out of range.
    """

    steps: int = 10
    iterations: int = 20
    damping: float = 1.0
    samples: int | None = None
    draws: int = 1
    time: float = 0.4
    batches: Batches = field(default_factory=Batches)

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("steps", "iterations", "damping", "samples", "draws"):
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
        """Weights, the move, direction, product, residual and a gradient, in float32; and the mask."""
        return 29.0

    def gradient_samples(self, session: Session) -> int:
        """Those of a batch."""
        pool, _ = session.divided(self.batches)
        return min(pool.numel(), self.samples or 128)

    def records(self, session: Session, *, least: bool) -> int:
        """The tape of all layers: of a batch, or of one sample."""
        samples = 1 if least else self.gradient_samples(session)
        return sum(session.record_bytes(layer, samples, self.draws) for layer in session.network.layers)

    def __call__(
        self, session: Session, mask: Mask, weights: Mapping[str, Tensor]
    ) -> tuple[Mask, dict[str, Tensor]]:
        """Step from the weights that the model holds."""
        reference = session.network.reference
        first = {n: torch.where(mask[n], weights.get(n, reference[n]), 0) for n in mask}
        values = {n: w.to(width(w)) for n, w in first.items()}
        pool, guard = session.divided(self.batches)
        size = self._fitting(session)
        lowest = session.mean_loss(guard) if guard.numel() else math.inf
        cursor, damping, latest, vain, taken = (0, 0), self.damping, 0.0, 0, 0
        for step in range(self.steps):
            if session.out_of_time(latest) or vain == _IN_VAIN:
                break
            begin = time.monotonic()
            index, cursor = self.batches.draw(pool, session.seed, cursor, size)
            tape = session.record(session.batch(index), _NEEDS, step, self.draws)
            lowest = lowest if guard.numel() else tape.loss
            judges = guard if guard.numel() else index
            found, damping = self._attempt(session, tape, mask, values, lowest, judges, damping, step)
            if found is None:
                vain += 1
            else:
                values, lowest, vain, taken = found[0], found[1], 0, taken + 1
            session.network.write(mask, values)
            latest = time.monotonic() - begin
        if taken == 0:
            session.notice(
                "the refit by Fisher steps found nothing better, or had no time to: the weights are as the "
                "mask left them; give more time, or another refit."
            )
        return mask, values

    def _fitting(self, session: Session) -> int:
        """Give the samples of a batch whose tape there is room for."""
        size = self.gradient_samples(session)
        while session.room is not None and size > 1:
            layers = session.network.layers
            if sum(session.record_bytes(x, size, self.draws) for x in layers) <= session.room:
                break
            size = size * 3 // 4
        return size

    def _attempt(
        self,
        session: Session,
        tape: Tape,
        mask: Mask,
        values: dict[str, Tensor],
        lowest: float,
        judges: Tensor,
        damping: float,
        step: int,
    ) -> tuple[tuple[dict[str, Tensor], float] | None, float]:
        """Damp more until the loss falls; give weights and loss, and the damping for the next batch."""
        first, latest = damping, 0.0
        for _ in range(_ATTEMPTS):
            begin = time.monotonic()
            move = self._solve(tape, mask, damping, session.seed, step, lambda: session.out_of_time(0.0))
            found = _shorten(session, mask, values, move, lowest, judges)
            if found is not None:
                trial, loss, length = found
                return (trial, loss), max(_LEAST, damping / 2) if length == 1 else damping / length
            damping *= 8
            latest = time.monotonic() - begin
            if session.out_of_time(latest):
                break
        return None, first

    def _solve(
        self,
        tape: Tape,
        mask: Mask,
        damping: float,
        seed: int,
        step: int,
        late: Callable[[], bool] = lambda: False,
    ) -> dict[str, Tensor]:
        """Minimise the damped model over the kept weights."""

        def multiply(direction: dict[str, Tensor]) -> dict[str, Tensor]:
            rows = sum(tape.layers[n].push(direction[n]) for n in mask)
            assert isinstance(rows, Tensor)
            return {n: tape.layers[n].pullback(rows).mul_(mask[n]).div_(tape.samples) for n in mask}

        # z'F z with z of +1 and -1 has the trace of F for its mean (Hutchinson 1990); F has the rank of its
        # rows, and as many eigenvalues that are not 0, at most.
        draw = generator(seed, "probe", step)
        probe = {
            n: torch.where(torch.rand(m.shape, generator=draw) < 0.5, -1.0, 1.0).to(tape.layers[n].gradient)
            * m
            for n, m in mask.items()
        }
        kept = sum(int(m.sum()) for m in mask.values())
        damp = damping * _dot(probe, multiply(probe)) / min(kept, tape.samples * self.draws)
        residual = {n: -tape.layers[n].gradient * mask[n] for n in mask}
        move = {n: torch.zeros_like(r) for n, r in residual.items()}
        direction = {n: r.clone() for n, r in residual.items()}
        norm = first = _dot(residual, residual)
        for _ in range(self.iterations):
            if norm <= 1e-8 * first or late():
                break
            product = multiply(direction)
            for n in mask:
                product[n].add_(direction[n], alpha=damp)
            length = norm / _dot(direction, product)
            for n in mask:
                move[n].add_(direction[n], alpha=length)
                residual[n].sub_(product[n], alpha=length)
            norm, last = _dot(residual, residual), norm
            for n in mask:
                direction[n].mul_(norm / last).add_(residual[n])
        return move


def _shorten(
    session: Session,
    mask: Mask,
    values: dict[str, Tensor],
    move: dict[str, Tensor],
    lowest: float,
    index: Tensor,
) -> tuple[dict[str, Tensor], float, float] | None:
    """Give the weights after the longest move that lowers the loss, that loss and the length, if any does."""
    for length in _LENGTHS:
        trial = {n: w + length * move[n] for n, w in values.items()}
        session.network.write(mask, trial)
        found = session.mean_loss(index)
        if found < lowest:
            return trial, found, length
    return None


def _dot(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Multiply two vectors that are kept by layer."""
    return sum(float((a[n].double() * b[n].double()).sum()) for n in a)
