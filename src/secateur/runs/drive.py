"""One run from start to report: the loop, the clock, the log and the checkpoints."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

import torch

from secateur.capture import check_used
from secateur.core.device import device_name
from secateur.core.errors import SecateurError
from secateur.core.events import Evaluated, Event, Finished, Noticed, Started, Stepped
from secateur.core.limit import Limit
from secateur.core.mask import Mask
from secateur.core.patches import Patches
from secateur.evaluation import evaluate
from secateur.export.outcome import apply_outcome
from secateur.pruners import OneShot, Outcome, Pruner, Recalibration, Refit, Session, State
from secateur.runs.cautions import COUNTS_ONLY, FINISHED, NO_STATISTICS, OTHER_MASK, STARTED_ONLY, cautions
from secateur.runs.clock import Clock
from secateur.runs.ending import Ending, Run, save_outcome, save_pruned
from secateur.runs.folder import REPORT, RunFolder
from secateur.runs.memory import Needs, peak_bytes, plan
from secateur.runs.report import build_report

Listener = Callable[[Event], None]
# Of the budget, which is worth a word where it is left over.
_MUCH = 0.2


@dataclass(eq=False)
class Drive:
    """One run from start to report: the loop, the clock, the log and the checkpoints.

    Attributes:
        session: what the pruner works with.
        pruner: the method.
        density: what was asked for.
        limit: how long the run may take.
        folder: the run folder, None where none is written.
        identity: digests of what a resumed run must share with the one it goes on with.
        listeners: called with every event.
        stop: asked between steps whether to stop there.
        refit: what is done at the end to the kept weights, or to the mask; None: nothing.
        memory: bound on the memory of the run, bytes; None: no bound.
        recalibration: how statistics of BatchNorm are estimated anew at the end; None: they stay.
        evaluation: metrics of what has been evaluated, by subject.
        notices: what the user has been told.
    """

    session: Session
    pruner: Pruner
    density: float
    limit: Limit
    folder: RunFolder | None
    identity: dict[str, str]
    listeners: tuple[Listener, ...]
    stop: Callable[[], bool]
    refit: Refit | None = None
    memory: int | None = None
    recalibration: Recalibration | None = None
    evaluation: dict[str, dict[str, float]] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Give the session its clock and its voice."""
        self.clock = Clock(self.limit)
        self._compiling = 0.0
        self._saved_at, self._save_seconds = -1.0, 0.0
        recalibration = self.recalibration if self.session.network.norms else None
        self.ending = Ending(self.session, self.refit, recalibration, self._evaluate, self.notice)
        self.needs: Needs | None = None  # of memory
        self._timings: list[float] = []  # seconds a sample that evaluations took
        self._least = 0.0  # seconds a sample that a step takes at the least
        self.session.out_of_time = lambda seconds: self.clock.lacks(seconds)
        self.session.clocked = self.limit.seconds is not None
        self.session.progress = lambda steps: self.clock.progress(steps)
        self.session.remaining = lambda: self.clock.remaining
        self.session.notice = self.notice

    def run(self, save_model: bool) -> Run:
        """Warm up, start or resume, step until done, and report.

        Args:
            save_model: write the pruned checkpoint, too.

        Returns:
            The run.
        """
        session = self.session
        first = session.batch(torch.tensor([0]))
        check_used(session.network.model, session.task, first, session.network.layers)
        self._foresee()
        self._warm_up()
        # Not under a name, which would keep the first state in memory to the end.
        reason, state = self._loop(self._resume() or self._start())
        return self._as_before(state, save_model) or self._finish(state, reason, save_model)

    def emit(self, event: Event) -> None:
        """Log an event and tell the listeners."""
        if self.folder is not None:
            self.folder.append(event)
        for listener in self.listeners:
            listener(event)

    def notice(self, message: str) -> None:
        """Tell the user something, once."""
        if message not in self.notices:
            self.notices.append(message)
            self.emit(Noticed(self.clock.elapsed, message))

    def _foresee(self) -> None:
        """Find out how much memory is needed, where there is a bound or samples are large."""
        session = self.session
        if self.memory is None and session.task.per_pass is None:
            return
        self.needs = plan(session, self.pruner, self.refit, self.memory)

    def _warm_up(self) -> None:
        begin = time.perf_counter()
        self.pruner.warm_up(self.limit)
        if self.refit is not None:
            self.refit.warm_up()
        if self.session.network.device.type == "cuda":  # which loads its libraries at the first pass
            self.session.losses(torch.tensor([0]))
        self._compiling = time.perf_counter() - begin

    def _started(self, step: int) -> None:
        self.emit(
            Started(
                self.clock.elapsed,
                step,
                self.session.network.shapes,
                self.density,
                self.session.seed,
                self.clock.limit.seconds,
                self.clock.limit.steps,
            )
        )
        for caution in cautions(self.session, self.density, self.needs, self._compiling):
            self.notice(caution)
        if self.recalibration is not None and self.ending.recalibration is None:
            self.notice(NO_STATISTICS)
        if self.refit is not None and self.refit.chooses:
            if not isinstance(self.pruner, OneShot) and self._counts_are_given():
                self.notice(COUNTS_ONLY)
            if self.ending.recalibration is not None:
                self.notice(OTHER_MASK)

    def _counts_are_given(self) -> bool:
        """Say whether every mask has the same counts, also in the groups of convolutions."""
        layers = self.session.network.layers
        patches = [Patches.of(module) for layer in layers for module in layer.modules]
        alone = all(each is None or each.groups == 1 for each in patches)
        return alone and self.session.budget.grouping != "global"

    def _start(self) -> State:
        """Evaluate the dense model, draw the one-shot mask, evaluate that."""
        self.clock = Clock(self.limit)  # compiling does not count
        self._started(0)
        network = self.session.network
        self._evaluate("dense")
        state = self.pruner.start(self.session)
        if not self.session.budget.is_met_by(state.mask):
            raise SecateurError(
                "the one-shot mask does not meet the budget: this is a bug, please report it."
            )
        network.write(state.mask, state.weights)
        self._evaluate("start")
        self._least = 4 * self._passing  # of the faster of both: the first may have been a slow one
        self.clock.began = self.clock.elapsed
        self._save(state, force=True)
        return state

    def _resume(self) -> State | None:
        """Take up the checkpoint, if the folder has one of this very run."""
        if self.folder is None:
            return None
        found = self.folder.load_state(self.session.network.device)
        if found is None:
            self.folder.cut_log(0)
            return None
        state, facts = found
        for what, ours in self.identity.items():
            if facts["identity"].get(what) != ours:
                raise SecateurError(
                    f"the run in '{self.folder.path}' was made with another {what.removesuffix('s')}: resume "
                    "it with the model and the settings it was started with, or choose another run folder."
                )
        self.folder.cut_log(facts["log_size"])
        self.clock = Clock(self.limit, facts["elapsed"])
        self.session.seconds.update(facts["seconds"])
        self.evaluation, self.notices = facts["evaluation"], facts["notices"]
        self.clock.began = facts["began"]
        self._least = facts["least"]
        self._timings, self._save_seconds = facts.get("timings", []), facts.get("saving", 0.0)
        here = device_name(self.session.network.device)
        if facts.get("device", here) != here:
            self.notice(
                f"the run was begun on {facts['device']} and goes on on {here}: it takes other times."
            )
            self._timings, self._least = [self._time_a_pass()], 0.0
        self.session.exact = facts.get("exact", False)
        # Sums over passes are the same only over the same passes; a lower bound on memory cuts them smaller.
        planned = self.session.chunk if self.memory is not None else None
        self.session.chunk = min((x for x in (facts["chunk"], planned) if x is not None), default=None)
        self._hold_back()
        self.session.network.write(state.mask, state.weights)
        self._started(state.step)
        return state

    def _time_a_pass(self) -> float:
        """Give the seconds a sample that a forward pass takes."""
        few = torch.arange(min(self.session.chunk or 100, self.session.task.size("calibration")))
        begin = time.perf_counter()
        self.session.losses(few)
        return (time.perf_counter() - begin) / len(few)

    def _loop(self, state: State) -> tuple[str, State]:
        """Step until nothing is left to do, the budget is spent, or the user says stop."""
        steps = self.clock.limit.steps
        if state.done and state.step == 0:
            return "complete", state
        while not state.done:
            if self.stop():
                return "interrupted", state
            least = self._least * self.pruner.least_samples(self.session, state)
            if (steps is not None and state.step >= steps) or self.clock.lacks(least):
                if state.step == 0:
                    self.notice(STARTED_ONLY)
                return "budget", state
            before = self.session.seconds.copy()
            state, outcome = self.pruner.step(self.session, state)
            spent = {name: s - before.get(name, 0.0) for name, s in self.session.seconds.items()}
            # A stage ends early when time runs out, but it cannot do without its passes; and each
            # mini-batch of averaging ranks all scores.
            passes = (
                ("capture", "evaluate", "select") if outcome.phase == "averaging" else ("capture", "evaluate")
            )
            self._least = 1.5 * sum(spent[name] for name in passes) / outcome.samples
            self._log_step(state, outcome, spent)
            self._save(state)
        return ("converged" if self.pruner.converges else "complete"), state

    def _log_step(self, state: State, outcome: Outcome, spent: dict[str, float]) -> None:
        if not self.session.budget.is_met_by(state.mask):
            raise SecateurError(f"step {state.step} broke the budget: this is a bug, please report it.")
        self.emit(
            Stepped(
                elapsed=self.clock.elapsed,
                step=state.step,
                predicted=outcome.predicted,
                measured=outcome.measured,
                loss=outcome.loss,
                guard=outcome.guard,
                density=state.mask.density,
                flips=sum(outcome.flips.values()),
                blocks=outcome.blocks,
                samples=outcome.samples,
                ridge=outcome.ridge,
                accepted=outcome.accepted,
                layers=outcome.flips,
                seconds=spent,
                remaining=self.clock.remaining,
                gap=outcome.gap,
                phase=outcome.phase,
            )
        )

    def _save(self, state: State, force: bool = False) -> None:
        """Write a checkpoint, unless writing them would take more than a twentieth of the time."""
        if self.folder is None or (not force and time.monotonic() - self._saved_at < 20 * self._save_seconds):
            return
        begin = time.monotonic()
        facts = {
            "identity": self.identity,
            "elapsed": self.clock.elapsed,
            "seconds": self.session.seconds,
            "evaluation": self.evaluation,
            "notices": self.notices,
            "timings": self._timings,
            "saving": self._save_seconds,
            "began": self.clock.began,
            "least": self._least,
            "chunk": self.session.chunk,
            "exact": self.session.exact,
            "device": device_name(self.session.network.device),
            "log_size": self.folder.log_size(),
        }
        self.folder.save_state(state, facts)
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - begin
        self._hold_back()

    @property
    def _passing(self) -> float:
        """Seconds a sample that evaluation takes: as a rule, as a machine may stall once."""
        return statistics.median_low(self._timings) if self._timings else 0.0

    @property
    def _closing(self) -> float:
        """Seconds that the last evaluations and the last files take."""
        passes = (0.5 + self.ending.evaluations) * self.session.task.size("evaluation")
        return passes * self._passing + 3 * self._save_seconds + 0.2

    def _hold_back(self) -> None:
        """Keep time for what follows the mask, the last evaluation and the last files."""
        self.clock.reserve = self._closing + self.ending.held_back(self._passing, self.limit.seconds)

    def _evaluate(self, subject: str) -> dict[str, float]:
        with self.session.timed("evaluate"):
            found = evaluate(self.session.network.model, self.session.task)
        metrics = {name: value for name, value in found.items() if name not in ("samples", "seconds")}
        self.evaluation[subject] = metrics
        self._timings.append(found["seconds"] / found["samples"])
        self._least = self._least or 4 * self._passing
        self._hold_back()
        self.emit(Evaluated(self.clock.elapsed, subject, metrics, int(found["samples"]), found["seconds"]))
        return metrics

    def _say_what_is_left(self, seconds: float) -> None:
        """Say so where a refit ended long before the budget that was kept for it."""
        left = seconds - self.clock.elapsed
        if left > max(1.0, _MUCH * seconds):
            self.notice(
                f"the refit needed {left:.0f} s less than were kept for it: a smaller share (time) leaves "
                "more for the mask, more passes give it more to do."
            )

    def _as_before(self, state: State, save_model: bool) -> Run | None:
        """Give what the run had come to, where no step was left to do: a refit would have less time now."""
        network, folder = self.session.network, self.folder
        report = None if folder is None else folder.read_json(REPORT)
        if folder is None or not isinstance(report, dict) or report.get("steps") != state.step:
            return None
        network.write(network.dense_mask())
        found = apply_outcome(network.model, folder.path).mask
        mask = Mask({name: kept.to(network.device) for name, kept in found.items()}, found.metadata)
        self.notice(FINISHED)
        if save_model:
            save_pruned(folder, self.session, mask)
        self.emit(Finished(report["seconds"]["total"], state.step, report["reason"], report["flips"]))
        return Run(network.model, mask, report, folder.path)

    def _finish(self, state: State, reason: str, save_model: bool) -> Run:
        """Make of the best mask what was asked for, and report."""
        network, folder = self.session.network, self.folder
        if not self.ending.alone:
            self._save(state, force=True)
        made = self.ending.come_to(state, self.clock, self._closing)
        if reason == "budget" and made.refit is not None:
            self._say_what_is_left(self.limit.seconds or 0.0)
        self._save(state, force=True)
        flips = made.mask.flips(state.start)
        made = replace(
            made, mask=Mask(made.mask.layers, {"seed": str(self.session.seed), "density": str(self.density)})
        )
        report = build_report(
            self.session, self.pruner, made, self.density, self.evaluation, self.notices,
            seconds=self.clock.elapsed, flips=flips, steps=state.step, reason=reason,
        )  # fmt: skip
        if self.needs is not None:
            report["memory"] = {**asdict(self.needs), "total": self.needs.total}
        report.setdefault("memory", {})["peak"] = peak_bytes(network.device)
        if folder is not None:
            save_outcome(folder, made)
            if save_model:
                save_pruned(folder, self.session, made.mask)
            folder.write_json(REPORT, report)
        self.emit(Finished(self.clock.elapsed, state.step, reason, flips))
        return Run(network.model, made.mask, report, folder.path if folder else None)
