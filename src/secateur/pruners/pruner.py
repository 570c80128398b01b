"""The abstract pruner: a start and a step; and the state between steps."""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from secateur.core.limit import Limit
from secateur.core.mask import Mask
from secateur.pruners.session import Session
from secateur.pruners.trust import Region


@dataclass(frozen=True, eq=False)
class State:
    """Everything that decides how a run goes on: saved, it resumes bit for bit (on a CPU).

    Attributes:
        mask: what is kept now.
        best: the best mask so far, by the loss of the guard samples.
        start: the one-shot mask.
        step: steps done.
        turn: blocks taken.
        cursor: epoch and position in the stream of calibration samples.
        samples: size of the next batch.
        region: how far the next linearisation is trusted.
        guard: guard loss of `mask`, None without a guard set.
        best_guard: guard loss of `best`; likewise.
        stall: steps in a row that found no better mask, since the batch last grew.
        done: the run has nothing left to do.
        stamps: the number of the last block each weight was in, by layer; empty where the
            pruner keeps none.
        frozen: weights that never change, by layer; likewise.
        scores: the evidence for keeping each weight, by layer; likewise.
        velocity: the averaged gradients that move the scores, by layer; likewise.
        weights: what the kept weights have become, by layer; empty where they are the trained ones.
        lowest: under ``"guard"``, the losses of the guard samples for the mask of an averaging stage that
            had the lowest mean.
        rate_factor: what the rate of averaging is multiplied with.
        exchanging: stages of blocks have begun, and averaging is over.
    """

    mask: Mask
    best: Mask
    start: Mask
    step: int = 0
    turn: int = 0
    cursor: tuple[int, int] = (0, 0)
    samples: int = 0
    region: Region = field(default_factory=lambda: Region(0.0, 0))
    guard: float | None = None
    best_guard: float | None = None
    stall: int = 0
    done: bool = False
    stamps: dict[str, Tensor] = field(default_factory=dict)
    frozen: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[str, Tensor] = field(default_factory=dict)
    velocity: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    lowest: dict[str, Tensor] = field(default_factory=dict)
    rate_factor: float = 1.0
    exchanging: bool = False

    def tensors(self) -> dict[str, Tensor]:
        """Give the tensors of the state under flat names.

        Returns:
            Tensors for a safetensors file.
        """
        families = {
            "mask": self.mask.layers, "best": self.best.layers, "start": self.start.layers,
            "stamps": self.stamps, "frozen": self.frozen, "scores": self.scores, "velocity": self.velocity,
            "lowest": self.lowest, "weights": self.weights,
        }  # fmt: skip
        # A clone each: a safetensors file cannot hold tensors that share memory.
        return {f"{f}/{n}": t.detach().cpu().clone() for f, ts in families.items() for n, t in ts.items()}

    def numbers(self) -> dict[str, Any]:
        """Give everything else of the state, ready for JSON.

        Returns:
            The numbers by field.
        """
        plain = ("step", "turn", "cursor", "samples", "guard", "best_guard", "stall", "done")
        plain += ("rate_factor", "exchanging")
        numbers = {name: getattr(self, name) for name in plain}
        return numbers | {"region": asdict(self.region), "layers": list(self.mask)}

    @classmethod
    def rebuild(cls, tensors: dict[str, Tensor], numbers: dict[str, Any], device: torch.device) -> "State":
        """Put a state together again.

        Args:
            tensors: what `tensors` gave.
            numbers: what `numbers` gave, having been through JSON.
            device: where the tensors go.

        Returns:
            The state.
        """
        kinds = ("mask", "best", "start", "stamps", "frozen", "scores", "velocity", "lowest", "weights")
        families: dict[str, dict[str, Tensor]] = {kind: {} for kind in kinds}
        for key, tensor in tensors.items():
            family, name = key.split("/", 1)
            families[family][name] = tensor.to(device)
        fields = dict(numbers)
        # A file has them in an order of its own, and sums over layers must be in that of the model.
        order = fields.pop("layers")
        families = {f: {n: ts[n] for n in order if n in ts} or ts for f, ts in families.items()}
        fields["cursor"] = tuple(fields["cursor"])
        fields["region"] = Region(**fields["region"])
        return cls(
            Mask(families["mask"]),
            Mask(families["best"]),
            Mask(families["start"]),
            stamps=families["stamps"],
            frozen=families["frozen"],
            scores=families["scores"],
            velocity=families["velocity"],
            lowest=families["lowest"],
            weights=families["weights"],
            **fields,
        )


@dataclass(frozen=True)
class Outcome:
    """What one step did, for the log.

    Attributes:
        predicted: change of the mean loss by the quadratic model, nats a sample; None where no
            model was made of the whole step.
        measured: the same, measured; None where it was not.
        loss: mean loss over the batch after the step, or before it where not measured.
        guard: mean loss over the guard samples, None without any.
        flips: weights flipped, by layer.
        blocks: block problems solved.
        samples: samples recorded.
        ridge: the ridge in force.
        accepted: False where the step was undone.
        gap: the largest `Solution.gap` of its blocks, None where no lower bound is known.
        phase: ``"blocks"`` or ``"averaging"``.
    """

    predicted: float | None
    measured: float | None
    loss: float
    guard: float | None
    flips: dict[str, int]
    blocks: int
    samples: int
    ridge: float
    accepted: bool
    gap: float | None = None
    phase: str = "blocks"


class Pruner(ABC):
    """Chooses a mask. Its fields are its settings; what it remembers is in the `State`."""

    part_name: ClassVar[str] = "pruner"
    # Whether the kept weights change with the mask.
    updates: ClassVar[bool] = False
    # Whether it is done when nothing improves, rather than when it has been through the network.
    converges: ClassVar[bool] = True

    @property
    def bytes_a_weight(self) -> float:
        """What it keeps for each prunable weight while it runs: masks and first scores, by default."""
        return 8.0

    @property
    def distils(self) -> bool:
        """Whether mini-batches are compared with the trained network, whose outputs are held meanwhile."""
        return False

    def gradient_samples(self, session: Session) -> int:
        """Say of how many samples together gradients are wanted, at most.

        Args:
            session: what to work with.

        Returns:
            None at all, by default.
        """
        return 0

    def records(self, session: Session, *, least: bool) -> int:
        """Say how many bytes of records of layers, or of sums over their inputs, it holds beside passes.

        Args:
            session: what to work with; it knows how many positions a sample has.
            least: at the least, where there is little room, rather than where there is enough.

        Returns:
            None at all, by default.
        """
        return 0

    @property
    def default_limit(self) -> Limit:
        """How long a run goes on where the user sets no bound: until it says it is done."""
        return Limit()

    def warm_up(self, limit: Limit | None = None) -> None:
        """Compile what has to be compiled, before any clock runs.

        Args:
            limit: of the run, where it says what will not be needed.
        """
        return

    def least_samples(self, session: Session, state: State) -> int:
        """Say how many samples the next step passes through the model at the least.

        Args:
            session: what to work with.
            state: the state before it.

        Returns:
            The number: of its batch, by default.
        """
        return state.samples

    @abstractmethod
    def start(self, session: Session) -> State:
        """Draw the first mask and write it to the model.

        Args:
            session: what to work with.

        Returns:
            The state before the first step.
        """

    @abstractmethod
    def step(self, session: Session, state: State) -> tuple[State, Outcome]:
        """Improve the mask by one step and write it to the model.

        Everything random follows from the session's seed and `state.step`.

        Args:
            session: what to work with.
            state: the state before.

        Returns:
            The state after, and what happened.
        """
