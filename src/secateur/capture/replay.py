"""Inputs of layers, one decoder layer after the other, while the layers before are changed."""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.capture.groups import Order, by_inputs, divided, grouped, owners
from secateur.capture.inputs import Listener, listening
from secateur.capture.stubs import alike, copied, sampled, stubbed
from secateur.capture.sums import Sums
from secateur.core.errors import SecateurError
from secateur.core.inputs import Inputs, Latest
from secateur.core.layer import Layer
from secateur.core.modes import evaluating
from secateur.core.moments import Moments
from secateur.core.stack import find_stack
from secateur.core.task import Batch, Task, check_losses
from secateur.core.trained import Trained


def sequentially(
    model: nn.Module,
    task: Task,
    batches: Sequence[Batch],
    layers: Sequence[Layer],
    *,
    gram: bool,
    limit: int | None = None,
    trained: Trained | None = None,
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
        trained: as for `Replay`.

    Yields:
        The layers of a group and their moments by name; layers with the same inputs share them.
    """
    replay = Replay(model, task, batches, layers, gram=gram, limit=limit, trained=trained)
    for number, group in enumerate(replay.groups):
        yield group, replay.moments(number)


# Which decoder layer passed a batch, and what it gave.
_Passed = tuple[int, Any]
_NOT_PASSED: _Passed = (-1, None)


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
    model whose decoder layers do not follow on one another, or share weights, or that has no stack of them,
    every group is recorded in whole passes. Those are broken off when the layers of the group have run as
    often as they did in a pass of as many samples at the start, unless they are experts, which run as often
    as they are called.

    Memory: the hidden state of every sample once, the pass of one batch, and the moments of a group. With
    trained weights also the hidden states of the trained network, the inputs that a batch gives the
    layers of a group, the weights of a decoder layer (of all layers in whole passes), and a matrix as
    large as the Gram matrix for each.

    Attributes:
        groups: the layers of each decoder layer, and each layer outside the stack by itself, in the order
            in which the model runs them. With trained weights the layers of a decoder layer that have the
            same inputs, so that a layer is changed before another's inputs come through it.
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
        trained: Trained | None = None,
    ) -> None:
        """Group the layers, with two passes of one sample.

        Args:
            model: the network.
            task: how it is run.
            batches: the calibration samples.
            layers: whose inputs.
            gram: whether products of different inputs are wanted.
            limit: bytes of Gram matrices in a group; None: no bound.
            trained: the trained network, whose inputs are multiplied with those of the model as it stands
                (`Moments.cross`; not those of experts, which get other positions); None: no such products
                are wanted.
        """
        self._model, self._task, self._batches, self._gram = model, task, batches, gram
        self._layers, self._trained = layers, trained
        found = find_stack(model)
        stack: list[nn.Module] = [] if found is None else list(found[1])
        owner = owners(layers, stack)
        self._stack = [] if owner is None else stack
        self._owner = dict.fromkeys((layer.name for layer in layers), None) if owner is None else owner
        # Which decoder layer last passed each batch, and what it gave: one hidden state a batch.
        self._passed: list[_Passed] = [_NOT_PASSED] * len(batches)
        self._trained_passed = list(self._passed)
        trial = batches[0].split(1)[0]
        self._order, looks = self._look(trial)
        self.whole = not (self._stack and self._follows(trial, looks))
        # How often layers run in a whole pass, by its samples: a model may divide them.
        self._calls: dict[int, Counter[str]] = {}
        for batch in batches if self.whole else ():
            if batch.size not in self._calls:
                self._calls[batch.size] = self._look(batch)[0].calls
        matrices = gram + (trained is not None)
        parts = [
            (at, piece)
            for at, group in grouped(layers, self._owner, self._order)
            for part in ([group] if trained is None else by_inputs(group, self._order))
            for piece in divided(part, limit, matrices)
        ]
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
        group = self.groups[number]
        sums = Sums(self._gram, {layer.name for layer in group})
        for place, batch in enumerate(self._batches):
            if self._trained is not None:
                sums.trained = self._trained_inputs(number, place)
            self._passed[place] = self._through(batch, number, self._passed[place], sums.add)
        return sums.close(group)

    def _through(self, batch: Batch, number: int, passed: _Passed, listener: Listener) -> _Passed:
        """Run a batch as far as a group needs, and listen to the inputs of all layers."""
        at = self._at[number]
        if not (at is None or self.whole):
            with self._running(listener):
                return self._pass(batch, at, passed if passed[0] < at else _NOT_PASSED)  # somebody goes back
        left = self._left(number, batch.size)

        def hear(name: str, inputs: Inputs) -> None:
            listener(name, inputs)
            if name in left:
                left[name] -= 1
                if not any(left.values()):
                    raise _Stop

        with self._running(hear), suppress(_Stop):
            losses = self._task.losses(self._task.forward(self._model, batch), batch.targets)
            check_losses(losses, "calibration samples", batch.index)
        return passed

    def _left(self, number: int, samples: int) -> Counter[str]:
        """Say how often the layers of a group will run in a whole pass; of experts nobody can."""
        group = self.groups[number]
        if samples not in self._calls or any(layer.slot is not None for layer in group):
            return Counter()
        return Counter({layer.name: self._calls[samples][layer.name] for layer in group})

    def _trained_inputs(self, number: int, place: int) -> dict[str, deque[Inputs]]:
        """Give what a batch gives the layers of a group in the trained network, call by call."""
        group, at = self.groups[number], self._at[number]
        found: dict[str, deque[Inputs]] = {layer.name: deque() for layer in group if layer.slot is None}
        latest: Latest[Inputs] = Latest()

        def keep(name: str, inputs: Inputs) -> None:
            if name in found:  # copied, as the model may go on in the same memory
                copy = latest.of(inputs, lambda: replace(inputs, tensor=inputs.tensor.clone()))
                found[name].append(copy)

        passed = self._trained_passed[place]
        with self._as_trained(at, passed[0]):
            self._trained_passed[place] = self._through(self._batches[place], number, passed, keep)
        return found

    @contextmanager
    def _as_trained(self, at: int | None, level: int) -> Iterator[None]:
        """Give the layers that a pass runs their trained weights for a while."""
        layers = self._layers
        if not (at is None or self.whole):
            run = range(level + 1 if level < at else 0, at + 1)
            begin = self._order.places[at]
            layers = [
                x for x in layers
                if (self._order.of(x) < begin if (own := self._owner[x.name]) is None else own in run)
            ]  # fmt: skip
        assert self._trained is not None
        with self._trained.standing(layers):
            yield

    @contextmanager
    def _running(self, listener: Listener) -> Iterator[None]:
        """Listen to all layers: to experts one runs them one by one, which rounds otherwise than together."""
        with torch.no_grad(), evaluating(self._model), listening(self._layers, listener):
            yield

    def _pass(
        self, batch: Batch, at: int, passed: _Passed, look: "Callable[..., None] | None" = None
    ) -> _Passed:
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

    def _look(self, batch: Batch) -> tuple[Order, list[list[list[Tensor]]]]:
        """Run a whole pass: the order in which layers and decoder layers run, and what the latter get."""
        order = Order()
        looks: list[list[list[Tensor]]] = [[] for _ in self._stack]
        with ExitStack() as stack:
            for at, module in enumerate(self._stack):

                def look(_: nn.Module, args: Any, kwargs: Any, at: int = at) -> None:
                    order.reach(at)
                    looks[at].append(sampled((args, kwargs)))

                handle = module.register_forward_pre_hook(look, with_kwargs=True)
                stack.callback(handle.remove)
            stack.enter_context(self._running(order.hear))
            self._task.forward(self._model, batch)
        return order, looks

    def _follows(self, batch: Batch, looks: list[list[list[Tensor]]]) -> bool:
        """Say whether each decoder layer gets with replaced forwards what it gets in a whole pass."""
        if any(len(calls) != 1 for calls in looks):
            return False
        passed = _NOT_PASSED
        seen: list[list[Tensor]] = []

        def look(_: nn.Module, args: Any, kwargs: Any) -> None:
            seen.append(sampled((args, kwargs)))

        with self._running(lambda *_: None):
            # Each twice: from where the one before it left off, and from its own inputs again.
            for at, calls in ((at, calls) for at, calls in enumerate(looks) for _ in range(2)):
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
