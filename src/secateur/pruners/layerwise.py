"""What all layer-wise pruners share: layer after layer, on the inputs that the pruned ones before leave."""

from abc import abstractmethod
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from secateur.capture.replay import Replay
from secateur.core.budget import Grouping
from secateur.core.errors import SecateurError
from secateur.core.layer import Layer
from secateur.core.mask import Mask
from secateur.core.moments import Evidence, Moments
from secateur.core.ranks import as_rows, from_rows, mark_best
from secateur.core.score import Score
from secateur.core.seeds import generator
from secateur.core.signal import Signal
from secateur.core.stack import find_stack
from secateur.pruners.calibration import (
    calibration_samples,
    gram_records,
    gram_room,
    state_bytes,
    write_layers,
)
from secateur.pruners.damping import note_few
from secateur.pruners.pruner import Outcome, Pruner, State
from secateur.pruners.session import Session
from secateur.scores import Wanda


@dataclass(frozen=True, eq=False)
class Site:
    """One layer to be pruned, or one group of a convolution, and what is known of it.

    Attributes:
        name: the layer.
        weight: the trained weights, as the model stores them; not to be written to.
        moments: of the layer's inputs, where all layers before its decoder layer are pruned; the layers
            of one decoder layer may share them, so that they must not be written to either.
        mask: the mask to start from, which has the right counts.
        grouping: what a group is: ``"layer"``, ``"output"`` or ``"input"``.
        kept: how many weights each group of the layer keeps, in the order of `as_rows`.
    """

    name: str
    weight: Float[Tensor, "o i"]
    moments: Moments
    mask: Bool[Tensor, "o i"]
    grouping: Grouping
    kept: Int[Tensor, " g"]

    def by_group(self) -> "list[Site]":
        """Divide a convolution in groups, the outputs of which have other inputs.

        Returns:
            A site for each group, which keeps as many weights as the mask to start from does there; the
            site itself where there is one.
        """
        if self.moments.groups == 1:
            return [self]
        sites = []
        for outputs, moments in self.moments.by_group(len(self.mask)):
            mask = self.mask[outputs]
            kept = as_rows(mask, self.grouping).sum(1)
            sites.append(replace(self, weight=self.weight[outputs], moments=moments, mask=mask, kept=kept))
        return sites


@dataclass(frozen=True, eq=False)
class _Going(State):
    """A state that has the hidden states of the model at hand; they are not saved, but made again."""

    replay: Replay | None = None


@dataclass(frozen=True)
class Layerwise(Pruner):
    """Prunes every layer by itself, to keep its output on the inputs that it gets.

    A step prunes one decoder layer, or one layer of a model that has none: the inputs of its layers are
    recorded with its own weights as trained and everything before it pruned, each of its layers is pruned
    by `prune_layer`, and the result is written to the model. So an error that one layer makes is seen by
    the next. Where time runs out, the layers that are left have the one-shot mask of `init`, from the
    inputs of the trained network.

    Memory beyond the model and its trained weights: the hidden state of every calibration sample once,
    and the Gram matrices of one decoder layer, in^2 float32 numbers for each different input.

    Attributes:
        init: what the mask that a layer starts from is chosen by; a score that looks at inputs sees those
            of the pruned network.
        samples: calibration samples used; None: 128, or all there are.
        memory: bound on the Gram matrices that are held at a time, in GiB, though one is always. A decoder
            layer whose own would take more is pruned in several steps, each of which sees the ones before.

    Raises:
        SecateurError: a number out of range.
    """

    # Whether `prune_layer` looks at products of different inputs.
    gram: ClassVar[bool] = True
    # Whether it exchanges weights of one row, so that only the counts of rows are kept.
    within_rows: ClassVar[bool] = False
    converges: ClassVar[bool] = False
    init: Score = field(default_factory=Wanda)
    samples: int | None = None
    memory: float = 8.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.samples is not None and self.samples < 1:
            raise SecateurError(f"samples must be at least 1, not {self.samples}.")
        if not self.memory > 0:
            raise SecateurError(f"memory must be greater than 0 GiB, not {self.memory}.")

    @property
    def bytes_a_weight(self) -> float:
        """What it keeps for each prunable weight: masks, and first scores or, later, new weights."""
        return 8.0

    def records(self, session: Session, *, least: bool) -> int:
        """Say how many bytes it holds beside passes: hidden states and Gram matrices.

        Args:
            session: what to work with.
            least: one Gram matrix at a time, rather than those of a decoder layer.

        Returns:
            The bytes; the sum of two Gram matrices is made beside them.
        """
        return state_bytes(session, self.samples) + (gram_records(session, least) if self.gram else 0)

    def least_samples(self, session: Session, state: State) -> int:
        """Say how many samples the next step passes through the model at the least.

        Args:
            session: what to work with.
            state: the state before it.

        Returns:
            All of them; the first step, which is judged by what whole passes take, goes through one decoder
            layer alone.
        """
        stack = find_stack(session.network.model)
        depth = len(stack[1]) if stack is not None and state.step == 0 else 1
        return max(1, state.samples // depth)

    @abstractmethod
    def prune_layer(
        self, session: Session, site: Site, draw: torch.Generator
    ) -> tuple[Bool[Tensor, "o i"], Float[Tensor, "o i"] | None]:
        """Prune one layer.

        Args:
            session: for `notice` and `out_of_time`; its model is not to be written to.
            site: the layer.
            draw: where randomness comes from, on the CPU.

        Returns:
            The mask, with exactly `site.kept` in each group, and the new weights, of which those that are
            pruned are not looked at; None: they stay as trained.
        """

    def start(self, session: Session) -> State:
        """Draw the one-shot mask of `init` and write it to the model.

        Args:
            session: what to work with.

        Returns:
            The state before the first decoder layer.

        Raises:
            SecateurError: the budget has groups that the method does not keep.
        """
        if self.within_rows and session.budget.grouping == "input":
            raise SecateurError(
                f"pruner '{self.part_name}' exchanges weights within output rows, which changes the counts "
                'of input columns: use grouping = "output" or "layer".'
            )
        if session.budget.grouping == "global":
            raise SecateurError(
                f"pruner '{self.part_name}' prunes layer after layer, so the layers cannot share one count: "
                'use grouping = "layer" or "output", and an allocation such as "erk" for unequal densities.'
            )
        index = calibration_samples(session, self.samples)
        mask, _ = session.one_shot(self.init, index)
        return State(mask, mask, mask, samples=index.numel())

    def step(self, session: Session, state: State) -> tuple[State, Outcome]:
        """Prune the layers of the next decoder layer.

        Args:
            session: what to work with.
            state: the state before.

        Returns:
            The state after, and what happened.
        """
        index = calibration_samples(session, self.samples)
        replay = state.replay if isinstance(state, _Going) else None
        if replay is None:
            with session.timed("capture"):
                replay = self._replay(session, index)
        number, group = _next_group(replay, state.turn)
        write_layers(group, {layer.name: session.network.reference[layer.name] for layer in group})
        with session.timed("capture"):
            moments = replay.moments(number)
        if self.gram:
            note_few(session, moments)
        with session.timed("solve"):
            masks, weights = self._prune(session, state, group, moments)
        del moments
        mask = Mask({**state.mask.layers, **masks})
        kept = {**state.weights, **weights}
        write_layers(
            group,
            {
                layer.name: torch.where(
                    mask[layer.name], kept.get(layer.name, session.network.reference[layer.name]), 0
                )
                for layer in group
            },
        )
        # A decoder layer that time ran out in is done again, should the run go on.
        turn = state.turn + len(group) if len(masks) == len(group) else state.turn
        done = turn == len(session.network.layers)
        few = index[: max(1, index.numel() // (2 * len(replay.groups)))]
        outcome = Outcome(
            predicted=None,
            measured=None,
            loss=session.mean_loss(few),
            guard=None,
            flips=mask.layer_flips(state.mask),
            blocks=len(masks),
            samples=index.numel(),
            ridge=0.0,
            accepted=True,
        )
        plain = {f.name: getattr(state, f.name) for f in fields(State)}
        plain |= {"mask": mask, "best": mask, "weights": kept, "step": state.step + 1}
        plain |= {"turn": turn, "done": done}
        return _Going(**plain, replay=None if done else replay), outcome

    def _replay(self, session: Session, index: Tensor) -> Replay:
        """Prepare to run the model decoder layer by decoder layer."""
        network = session.network
        batches = list(session.passes(index))
        limit = gram_room(session, self.memory, self.samples) if self.gram else None
        return Replay(network.model, session.task, batches, network.layers, gram=self.gram, limit=limit)

    def _prune(
        self, session: Session, state: State, group: list[Layer], moments: dict[str, Moments]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Prune layers while there is time: their masks and their new weights."""
        masks: dict[str, Tensor] = {}
        weights: dict[str, Tensor] = {}
        for layer in group:
            if masks and session.out_of_time(0.0):
                break
            whole = self._site(session, state, layer.name, moments[layer.name])
            draw = generator(session.seed, f"{self.part_name} {layer.name}")
            found = [self.prune_layer(session, site, draw) for site in whole.by_group()]
            mask = torch.cat([mask for mask, _ in found])
            masks[layer.name] = mask
            if any(weight is not None for _, weight in found):
                kept = whole.weight.split([len(mask) for mask, _ in found])
                pieces = [old if new is None else new for old, (_, new) in zip(kept, found, strict=True)]
                weight = torch.where(mask, torch.cat(pieces), 0)
                weights[layer.name] = weight.to(whole.weight.dtype).contiguous()
        return masks, weights

    def _site(self, session: Session, state: State, name: str, moments: Moments) -> Site:
        """Put together what is known of a layer."""
        weight, budget = session.network.reference[name], session.budget
        mask = state.start[name]
        groups = len(as_rows(mask, budget.grouping))
        kept = budget.kept[budget.offset(name) :][:groups].to(weight.device)
        if self.init.needs == {Signal.MOMENTS}:
            draw = generator(session.seed, f"score {name}")
            scores = self.init(weight, Evidence(None, moments), draw)
            best = mark_best(as_rows(scores, budget.grouping), kept)
            mask = from_rows(best, budget.grouping, weight.shape)
        return Site(name, weight, moments, mask, budget.grouping, kept)


def _next_group(replay: Replay, turn: int) -> tuple[int, list[Layer]]:
    """Find the group that follows on a number of layers; of one that is begun already, what is left."""
    for number, group in enumerate(replay.groups):
        if turn < len(group):
            return number, group[turn:]
        turn -= len(group)
    raise AssertionError("all layers are pruned")
