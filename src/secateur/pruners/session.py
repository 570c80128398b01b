"""What a pruner is given, and what it remembers from step to step."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from secateur.capture import capture, mean_gradient, moments
from secateur.core.budget import Budget
from secateur.core.device import has_fast_bfloat16
from secateur.core.errors import SecateurError
from secateur.core.layer import Layer, to_exclude
from secateur.core.mask import Mask
from secateur.core.modes import evaluating
from secateur.core.moments import Evidence, Moments
from secateur.core.score import Score
from secateur.core.seeds import generator
from secateur.core.signal import Signal
from secateur.core.tape import Tape
from secateur.core.task import Batch, Task, check_losses
from secateur.pruners.batches import Batches
from secateur.pruners.best_mask import keep_best
from secateur.pruners.distillation import distilled
from secateur.pruners.network import Network


@dataclass(eq=False)
class Session:
    """Everything outside a pruner that it works with.

    Attributes:
        network: the model and its reference weights.
        task: data and loss.
        budget: what each group keeps.
        seed: the seed of the run.
        out_of_time: says whether a further piece of work, of so many seconds, would exceed
            the time allowed.
        progress: steps done -> the share of the run's budget that is spent, None without a budget.
        remaining: seconds left; None without a budget of seconds.
        clocked: whether the budget is one of seconds, so that steps may end by the clock.
        notice: tells the user something.
        seconds: seconds spent by activity.
        verified: whether a recorded gradient has been compared with autograd's.
        exact: whether the model has been found not to run in bfloat16.
        chunk: samples that one pass takes at most; None: no bound.
        positions: that one sample gives each layer, where that has been found out.
        inputs: numbers that it gives each layer, likewise.
        room: bytes that records of layers may take; None: no bound.
    """

    network: Network
    task: Task
    budget: Budget
    seed: int
    out_of_time: Callable[[float], bool] = lambda _: False
    progress: Callable[[float], float | None] = lambda _: None
    remaining: Callable[[], float | None] = lambda: None
    clocked: bool = False
    notice: Callable[[str], None] = lambda _: None
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("capture", "select", "solve", "evaluate"), 0.0)
    )
    verified: bool = False
    exact: bool = False
    chunk: int | None = None
    positions: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, int] = field(default_factory=dict)
    room: int | None = None

    @contextmanager
    def timed(self, activity: str) -> Iterator[None]:
        """Add the time spent inside to an activity.

        Args:
            activity: ``"capture"``, ``"select"``, ``"solve"`` or ``"evaluate"``.

        Yields:
            Nothing.
        """
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[activity] = self.seconds.get(activity, 0.0) + time.perf_counter() - begin

    @contextmanager
    def leaving(self, share: float) -> Iterator[None]:
        """Have what goes by the time that remains go by less of it.

        Args:
            share: of the time, for what comes after.

        Yields:
            Nothing.
        """
        remaining, left = self.remaining, self.remaining()
        if left is not None:
            later = share * left
            self.remaining = lambda: max(0.0, (remaining() or 0.0) - later)
        try:
            yield
        finally:
            self.remaining = remaining

    def divided(self, batches: Batches) -> tuple[Tensor, Tensor]:
        """Divide the calibration samples.

        Args:
            batches: says how many are held back.

        Returns:
            Those to draw batches from, and the guard.
        """
        return batches.split(self.task.size("calibration"), self.seed, self.task.ordered)

    def batch(self, index: Tensor) -> Batch:
        """Fetch calibration samples.

        Args:
            index: which.

        Returns:
            The batch, on the model's device.
        """
        return replace(self.task.batch("calibration", index, self.network.device), index=index)

    def passes(self, index: Tensor, variant: int | None = None) -> Iterator[Batch]:
        """Fetch calibration samples, as many at a time as one pass may take.

        Args:
            index: which.
            variant: the number of a mini-batch, where the task is to draw variants of its samples; None: the
                samples as they are. The same number, seed and samples give the same variants.

        Yields:
            Batches of `chunk` samples.
        """
        draw = None if variant is None else generator(self.seed, "variant", variant)
        for part in index.split(self.chunk or max(1, index.numel())):
            batch = self.batch(part)
            yield batch if draw is None else self.task.varied(batch, draw)

    def recorded(self, step: int, samples: int, rows: int) -> Sequence[Layer]:
        """Say which layers a stage records: all, or, without room for that, one group after the other.

        Args:
            step: the number of the stage.
            samples: that it records.
            rows: gradients at the outputs that are kept of each.

        Returns:
            The layers.
        """
        layers = self.network.layers
        if self.room is None:
            return layers
        groups: list[list[Layer]] = [[]]
        taken = 0
        for layer in layers:
            size = self.record_bytes(layer, samples, rows)
            if groups[-1] and taken + size > self.room:
                groups.append([])
                taken = 0
            groups[-1].append(layer)
            taken += size
        return groups[step % len(groups)]

    def record_bytes(self, layer: Layer, samples: int, rows: int) -> int:
        """Say how many bytes the record of a layer takes: inputs and rows at the outputs, or gradients; sums.

        Args:
            layer: the layer.
            samples: that are recorded.
            rows: gradients at the outputs that are kept of each.

        Returns:
            The bytes.
        """
        outs, ins = layer.shape
        positions = self.positions.get(layer.name, 1)
        both = self.inputs.get(layer.name, positions * ins) + rows * positions * outs
        # The mean gradient, that of the point reached, the diagonal, gains, and what sorting those takes.
        return 4 * (samples * min(both, rows * outs * ins or both) + 10 * outs * ins)

    def record(
        self,
        batch: Batch,
        needs: frozenset[Signal],
        step: int,
        draws: int = 1,
        layers: Sequence[Layer] | None = None,
    ) -> Tape:
        """Run the model as it stands on a batch and record it, `chunk` samples a pass.

        The first gradient of a session is compared with autograd's own, at the price of one
        backward pass, so that a model that is not what the tape takes it for is refused.

        Args:
            batch: the samples.
            needs: what to record.
            step: for the seed of sampled labels.
            draws: labels drawn for each sample.
            layers: which layers; None: all.

        Returns:
            The tape.
        """
        labels = generator(self.seed, "labels", step)
        whole = Signal.HESSIAN in needs  # which is taken of all samples at once
        tapes = []
        with self.timed("capture"):
            model, layers = self.network.model, self.network.layers if layers is None else layers
            for part in batch.split(None if whole else self.chunk):
                verify = not self.verified and needs != frozenset({Signal.INPUTS})
                tapes.append(capture(model, self.task, part, layers, needs, labels, draws, verify=verify))
                self.verified |= verify
            return Tape.join(tapes)

    def gradient(
        self,
        index: Tensor,
        bfloat16: bool = False,
        variant: int | None = None,
        temperature: float | None = None,
    ) -> tuple[float, dict[str, Tensor]]:
        """Differentiate the mean loss of some calibration samples at the model as it stands.

        Args:
            index: which samples.
            bfloat16: multiply matrices in bfloat16.
            variant: the number of a mini-batch whose samples are varied; None: they are taken as they are.
            temperature: that of the distance from the trained network's outputs (`Task.divergences`), which
                is differentiated then; None: the loss is.

        Returns:
            The loss, nats a sample, and the gradient of each layer that was reached; summed over passes
            in float32 or wider.
        """
        loss, gradients = 0.0, {}
        with self.timed("capture"):
            model, layers = self.network.model, self.network.layers
            for batch in self.passes(index, variant):
                share = batch.size / index.numel()
                compare = None
                if temperature is not None:
                    compare = distilled(self.network, self.task, batch, temperature, bfloat16)
                mean, found = mean_gradient(model, self.task, batch, layers, bfloat16, compare)
                loss += share * mean
                if share == 1:
                    return mean, found
                for name, gradient in found.items():
                    if name in gradients:
                        gradients[name].add_(gradient, alpha=share)
                    else:
                        gradients[name] = gradient.mul_(share)
        return loss, gradients

    def minibatch_gradient(
        self, index: Tensor, number: int, bfloat16: bool | None, temperature: float | None = None
    ) -> tuple[float, dict[str, Tensor]]:
        """Differentiate the mean loss of a mini-batch of variants, as the task draws them.

        Args:
            index: which samples.
            number: of the mini-batch in the run, for the seed of its variants.
            bfloat16: multiply matrices in bfloat16; None: where the hardware does so faster, all weights are
                in float32, and the model runs so.
            temperature: as for `gradient`.

        Returns:
            The loss, nats a sample, and the gradient of each layer that was reached.
        """
        self.network.check_bfloat16(bfloat16)
        if bfloat16 is None and self.network.is_single and has_fast_bfloat16(self.network.device):
            return self._fast_gradient(index, number, temperature)
        return self.gradient(index, bool(bfloat16), variant=number, temperature=temperature)

    def _fast_gradient(
        self, index: Tensor, number: int, temperature: float | None
    ) -> tuple[float, dict[str, Tensor]]:
        """Give it in bfloat16, or, from the first time that fails, in the model's own precision."""
        # A model may mix types in ways that autocast cannot follow (index_put, routing between experts).
        if not self.exact:
            try:
                return self.gradient(index, True, variant=number, temperature=temperature)
            except torch.OutOfMemoryError:  # which float32 would not cure
                raise
            except (SecateurError, RuntimeError, TypeError, ValueError):
                self.exact = True
                # Where that fails as well, bfloat16 was not the reason.
                found = self.gradient(index, variant=number, temperature=temperature)
                self.notice(
                    "the model does not run in bfloat16: mini-batches are passed in its own precision."
                )
                return found
        return self.gradient(index, variant=number, temperature=temperature)

    def guard_loss(self, guard: Tensor) -> float | None:
        """Measure the mean loss of the guard samples at the start of a run.

        Args:
            guard: which samples.

        Returns:
            The loss, nats a sample; None without any.
        """
        if guard.numel() == 0:
            return None
        losses = self.losses(guard)
        check_losses(losses, "guard samples of the calibration data", guard)
        return float(losses.mean())

    @torch.no_grad()
    def losses(self, index: Tensor) -> Tensor:
        """Measure the loss of each of some calibration samples of the model as it stands.

        Args:
            index: which.

        Returns:
            The losses in float64, nats.
        """
        model, task = self.network.model, self.task
        with self.timed("evaluate"), evaluating(model):
            found = [task.losses(task.forward(model, b), b.targets).double() for b in self.passes(index)]
        return torch.cat(found)

    def mean_loss(self, index: Tensor) -> float:
        """Measure the mean loss of some calibration samples of the model as it stands.

        Args:
            index: which.

        Returns:
            The loss, nats a sample.
        """
        return float(self.losses(index).mean())

    def evidence(self, needs: frozenset[Signal], index: Tensor) -> dict[str, Evidence]:
        """Gather what a score asks for, of the model as it stands.

        Args:
            needs: the gradient, the moments of the inputs, both or neither.
            index: the samples to gather it from.

        Returns:
            The evidence by layer.

        Raises:
            SecateurError: a layer has no gradient.
        """
        network, names = self.network, self.network.shapes
        gradients: dict[str, Tensor] = {}
        sums: dict[str, Moments] = {}
        if Signal.MOMENTS in needs:
            with self.timed("capture"):
                sums = moments(network.model, self.task, self.passes(index), network.layers)
        if Signal.GRADIENT in needs:
            gradients = self.gradient(index)[1]
            for name in names:
                if name not in gradients:
                    raise SecateurError(f"layer '{name}' does not affect the loss: {to_exclude(name)}")
        return {name: Evidence(gradients.get(name), sums.get(name)) for name in names}

    def one_shot(self, score: Score, index: Tensor) -> tuple[Mask, dict[str, Tensor]]:
        """Score the dense network and keep the best of each group, ties by position.

        Args:
            score: by what.
            index: the samples for scores that need any.

        Returns:
            The mask, which meets the budget, and the scores.
        """
        network = self.network
        network.write(network.dense_mask())
        evidence = self.evidence(score.needs, index)
        draw = generator(self.seed, "score")
        with self.timed("select"):
            scores = {name: score(weight, evidence[name], draw) for name, weight in network.reference.items()}
            mask = keep_best(scores, self.budget)
        network.write(mask)
        return mask, scores
