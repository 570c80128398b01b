"""What a run tells while it goes on: one frozen record an event."""

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class Event:
    """Something that happened in a run.

    Attributes:
        elapsed: seconds since the run began, those before a resume included.
    """

    kind: ClassVar[str] = "event"
    elapsed: float

    def as_record(self) -> dict[str, Any]:
        """Turn the event into a line of events.jsonl.

        Returns:
            Its fields and its kind.
        """
        return {"event": self.kind, **asdict(self)}


@dataclass(frozen=True)
class Started(Event):
    """The run begins, or goes on after a resume.

    Attributes:
        step: steps done before.
        layers: outputs and inputs of each prunable layer.
        density: what was asked for.
        seed: the seed.
        seconds_limit: wall-clock bound, if any.
        steps_limit: bound on steps, if any.
    """

    kind: ClassVar[str] = "started"
    step: int
    layers: dict[str, tuple[int, int]]
    density: float
    seed: int
    seconds_limit: float | None
    steps_limit: int | None


@dataclass(frozen=True)
class Evaluated(Event):
    """The model was evaluated.

    Attributes:
        subject: ``"dense"``, ``"start"`` (the one-shot mask) or ``"pruned"``.
        metrics: ``loss`` in nats a sample, ``accuracy`` as a fraction.
        samples: how many samples were evaluated.
        seconds: how long that took.
    """

    kind: ClassVar[str] = "evaluated"
    subject: str
    metrics: dict[str, float]
    samples: int
    seconds: float


@dataclass(frozen=True)
class Stepped(Event):
    """A step or a stage is done.

    Attributes:
        step: its number, from 1.
        predicted: change of the mean loss the quadratic model predicts, nats a sample; None where
            no model was made of the whole step.
        measured: change of the mean loss measured over the same samples, None where it was
            not measured.
        loss: mean calibration loss after the step (before it, where not measured); of averaging, the
            mean over its mini-batches, each before it moved the mask.
        guard: mean loss over the guard samples after the step, None where there are none.
        density: overall fraction kept.
        flips: weights whose mask the step changed.
        blocks: block problems solved.
        samples: samples recorded.
        ridge: the ridge in force.
        accepted: False where the step was undone.
        layers: flips by layer, where there were any.
        seconds: by activity: capture, select, solve, evaluate.
        remaining: seconds left of the budget, None without one.
        gap: of the block solved worst, what was not gained as a share of what its lower bound
            leaves possible; None where no bound is known.
        phase: ``"blocks"`` or ``"averaging"``.
    """

    kind: ClassVar[str] = "stepped"
    step: int
    predicted: float | None
    measured: float | None
    loss: float
    guard: float | None
    density: float
    flips: int
    blocks: int
    samples: int
    ridge: float
    accepted: bool
    layers: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    remaining: float | None = None
    gap: float | None = None
    phase: str = "blocks"


@dataclass(frozen=True)
class Noticed(Event):
    """Something the user should know.

    Attributes:
        message: one sentence.
    """

    kind: ClassVar[str] = "noticed"
    message: str


@dataclass(frozen=True)
class Finished(Event):
    """The run is over.

    Attributes:
        step: steps done in all.
        reason: ``"budget"``, ``"converged"``, ``"complete"`` or ``"interrupted"``.
        flips: weights in which the mask differs from the start.
    """

    kind: ClassVar[str] = "finished"
    step: int
    reason: str
    flips: int
