"""Inputs of layers, one decoder layer after the other, while the layers before are changed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from secateur.capture.inputs import Listener, listening
from secateur.capture.stubs import alike, copied, sampled, stubbed
from secateur.capture.sums import Sums
from secateur.core.errors import SecateurError
from secateur.core.inputs import Inputs
from secateur.core.layer import Layer
from secateur.core.modes import evaluating
from secateur.core.moments import Moments
from secateur.core.stack import find_stack
from secateur.core.task import Batch, Task, check_losses


def sequentially(
    model: nn.Module,
    task: Task,
    batches: Sequence[Batch],
    layers: Sequence[Layer],
    *,
    gram: bool,
    limit: int | None = None,
) -> Iterator[tuple[list[Layer], dict[str, Moments]]]:
    """Give the layers of one decoder layer after the other, and the moments of their inputs.

    The moments are those of the model as it stands when they are asked for: what is written to the layers
    of a group before the next is asked for shows in the next group's.

    Args:
        model: the network.
        task: how it is run.
        batches: the calibration samples.
        layers: whose inputs.
        gram: whether products of different inputs are wanted.
        limit: bytes of Gram matrices in a group, beyond which a decoder layer makes several groups.

    Yields:
        The layers of a group and their moments by name; layers with the same inputs share them.
    """
    replay = Replay(model, task, batches, layers, gram=gram, limit=limit)
    for number, group in enumerate(replay.groups):
        yield group, replay.moments(number)


class _Stop(BaseException):
    """Breaks a forward pass off; no Exception, so that no model catches it."""


class Replay:
    """Runs a model up to one decoder layer, without running again what comes before.

    The model's own forward is called, so that positions, masks and arguments are what it makes them, but
    the forwards of the decoder layers before are replaced meanwhile: they give the hidden states that the
    last of them gave when it was last run. Behind the decoder layer that is asked for the pass is broken
    off. So a sweep over the decoder layers runs each of them twice: when its inputs are recorded, and,
    changed, for the next one's.

    Whether that is what a whole pass does is tried out on one sample first. Where it is not, as in a
    model whose decoder layers do not follow on one another, or that has no stack of them, every
    group is recorded in whole passes.

    Memory: the hidden state of every sample once, the pass of one batch, and the moments of a group.

    Attributes:
        groups: the layers of each decoder layer, and each layer outside the stack by itself, in the order
            in which the model runs them.
        whole: whether whole passes are needed.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        batches: Sequence[Batch],
        layers: Sequence[Layer],
        *,
        gram: bool,
        limit: int | None = None,
    ) -> None:
        """Group the layers, with two passes of one sample.

        Args:
            model: the network.
            task: how it is run.
            batches: the calibration samples.
            layers: whose inputs.
            gram: whether products of different inputs are wanted.
            limit: bytes of Gram matrices in a group; None: no bound.
        """
        self._model, self._task, self._batches, self._gram = model, task, batches, gram
        self._layers = layers
        found = find_stack(model)
        self._stack: list[nn.Module] = [] if found is None else list(found[1])
        # Which decoder layer last passed each batch, and what it gave: one hidden state a batch.
        self._passed: list[tuple[int, Any]] = [(-1, None)] * len(batches)
        trial = batches[0].split(1)[0]
        order, looks = self._look(trial)
        self.whole = not (self._stack and self._follows(trial, looks))
        grouped = _grouped(layers, self._stack, order)
        parts = [(at, part) for at, group in grouped for part in _divided(group, gram, limit)]
        self._at = [at for at, _ in parts]
        self.groups: list[list[Layer]] = [part for _, part in parts]

    def moments(self, number: int) -> dict[str, Moments]:
        """Sum over the inputs of a group's layers, of the model as it stands.

        What comes before a group must have been changed before the group behind it was asked for. A layer
        that is no expert and is never reached is refused, and one whose inputs are not finite.

        Args:
            number: of the group.

        Returns:
            The moments by layer; those of an expert that no position came to are 0.
        """
        group, at = self.groups[number], self._at[number]
        sums = Sums(self._gram, {layer.name for layer in group})
        with self._running(sums.add):
            for place, batch in enumerate(self._batches):
                if at is None or self.whole:
                    losses = self._task.losses(self._task.forward(self._model, batch), batch.targets)
                    check_losses(losses, "calibration samples", batch.index)
                else:
                    if self._passed[place][0] >= at:  # somebody goes back
                        self._passed[place] = (-1, None)
                    self._passed[place] = self._pass(batch, at, self._passed[place])
        return sums.close(group)

    @contextmanager
    def _running(self, listener: Listener) -> Iterator[None]:
        """Listen to all layers: to experts one runs them one by one, which rounds otherwise than together."""
        with torch.no_grad(), evaluating(self._model), listening(self._layers, listener):
            yield

    def _pass(
        self, batch: Batch, at: int, passed: tuple[int, Any], look: "Callable[..., None] | None" = None
    ) -> tuple[int, Any]:
        """Run a batch through decoder layer `at` and no further; give what the one before it gave."""
        level, state = passed
        taken: list[Any] = [state] if level == at - 1 else []

        def take(_: nn.Module, __: Any, output: Any) -> None:
            taken.append(copied(output))

        def stop(*_: Any) -> None:
            raise _Stop

        with ExitStack() as stack:
            if level >= 0:
                stack.enter_context(stubbed(self._stack[: level + 1], state))
            if level < at - 1:
                stack.callback(self._stack[at - 1].register_forward_hook(take).remove)
            if look is not None:
                hook = self._stack[at].register_forward_pre_hook(look, with_kwargs=True)
                stack.callback(hook.remove)
            stack.callback(self._stack[at].register_forward_hook(stop).remove)
            try:
                self._task.forward(self._model, batch)
            except _Stop:
                if taken:
                    return at - 1, taken[-1]
        raise SecateurError(
            f"decoder layer {at} was run on one sample but not on a batch: the model's forward leaves out "
            "layers by chance or by its input, which layer-wise pruning cannot follow."
        )

    def _look(self, batch: Batch) -> tuple[dict[str | int, int], list[list[list[Tensor]]]]:
        """Run a whole pass: the order in which layers and decoder layers run, and what the latter get."""
        order: dict[str | int, int] = {}
        looks: list[list[list[Tensor]]] = [[] for _ in self._stack]

        def hear(name: str, inputs: Inputs) -> None:
            order.setdefault(name, len(order))

        with ExitStack() as stack:
            for at, module in enumerate(self._stack):

                def look(_: nn.Module, args: Any, kwargs: Any, at: int = at) -> None:
                    order.setdefault(at, len(order))
                    looks[at].append(sampled((args, kwargs)))

                handle = module.register_forward_pre_hook(look, with_kwargs=True)
                stack.callback(handle.remove)
            stack.enter_context(self._running(hear))
            self._task.forward(self._model, batch)
        return order, looks

    def _follows(self, batch: Batch, looks: list[list[list[Tensor]]]) -> bool:
        """Say whether each decoder layer gets with replaced forwards what it gets in a whole pass."""
        if any(len(calls) != 1 for calls in looks):
            return False
        passed: tuple[int, Any] = (-1, None)
        seen: list[list[Tensor]] = []

        def look(_: nn.Module, args: Any, kwargs: Any) -> None:
            seen.append(sampled((args, kwargs)))

        with self._running(lambda *_: None):
            for at, calls in enumerate(looks):
                seen.clear()
                try:
                    passed = self._pass(batch, at, passed, look)
                except torch.OutOfMemoryError:
                    raise
                except Exception:  # the model's code looks at its layers in ways that a stub cannot answer
                    return False
                if len(seen) != 1 or not alike(seen[0], calls[0]):
                    return False
        return True


def _grouped(
    layers: Sequence[Layer], stack: Sequence[nn.Module], order: dict[str | int, int]
) -> list[tuple[int | None, list[Layer]]]:
    """Put the layers of each decoder layer together, in the order in which they run."""
    owners: dict[int, set[int]] = {}
    for at, element in enumerate(stack):
        for part in element.modules():
            owners.setdefault(id(part), set()).add(at)
    groups: dict[str | int, tuple[int | None, list[Layer]]] = {}
    for layer in layers:
        # A weight that is used in several decoder layers, or within and without, belongs to none.
        used = [owners.get(id(module), set()) for module in layer.modules]
        mine = set().union(*used)
        at = next(iter(mine)) if len(mine) == 1 and all(used) else None
        groups.setdefault(layer.name if at is None else at, (at, []))[1].append(layer)
    never = len(order)
    keyed = sorted(groups.items(), key=lambda item: order.get(item[0], never))
    return [group for _, group in keyed]


def _divided(group: list[Layer], gram: bool, limit: int | None) -> Iterator[list[Layer]]:
    """Cut a group where its Gram matrices would exceed a bound."""
    part: list[Layer] = []
    held = 0
    for layer in group:
        size = layer.gram_bytes if gram else 0
        if part and limit is not None and held + size > limit:
            yield part
            part, held = [], 0
        part.append(layer)
        held += size
    yield part
