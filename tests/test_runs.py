"""Runs: folders that survive anything, resumes that change nothing, sentences that help."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from secateur import ICBS, Classification, GradientSteps, LearnedMask, Mask, OneShot, SecateurError, prune
from secateur.core.limit import Limit
from secateur.export.outcome import apply_outcome
from secateur.pruners import Averaging, Batches, Session, Stage, Trust
from secateur.runs import RunFolder
from secateur.runs.clock import Clock
from secateur.runs.prune import _check
from secateur.scores import Gradient
from secateur.solvers import Swaps
from secateur.testing import networks

STAGES = ICBS(solver=Swaps(), stage=Stage(blocks=3, block_size=16), batches=Batches(size=40), share=0.0)
STEPS = replace(ICBS.published(), solver=Swaps(), stage=Stage(1, 16, 8, 0.75), batches=Batches(20, guard=0))
# Half the run averages gradients, the other half exchanges blocks.
BOTH = replace(STAGES, averaging=Averaging(length=3), share=0.5)
LEARNED = LearnedMask(averaging=Averaging(length=3, unit="first"))


def go(out=None, pruner=STAGES, steps=8, **more):
    """Prune a fresh tiny network."""
    net = networks.mlp(samples=200)
    budget = more.pop("budget", f"{steps}steps")
    return prune(net.model, net.task, pruner, density=0.5, budget=budget, out=out, **more)


def events(folder: Path) -> list[dict]:
    """Read the log."""
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_the_run_folder_holds_what_is_promised(tmp_path):
    run = go(tmp_path / "run", recipe={"run": {"density": 0.5}}, save_model=True)
    folder = tmp_path / "run"
    report = json.loads((folder / "report.json").read_text())
    assert report == run.report
    assert set(report["evaluation"]) >= {"dense", "start", "pruned"}
    assert all(set(report["evaluation"][s]) == {"loss", "accuracy"} for s in ("dense", "start", "pruned"))
    assert set(report["seconds"]) == {"total", "capture", "select", "solve", "evaluate"}
    assert report["density"]["layers"] == run.mask.densities
    assert (report["steps"], report["reason"], report["seed"]) == (8, "budget", 0)
    assert {"secateur", "torch", "python"} <= set(report["versions"])
    assert Mask.load(folder / "mask.safetensors").same_as(run.mask)
    kinds = [event["event"] for event in events(folder)]
    assert kinds == ["started", "evaluated", "evaluated", *["stepped"] * 8, "evaluated", "finished"]
    stepped = [e for e in events(folder) if e["event"] == "stepped"]
    assert [e["step"] for e in stepped] == list(range(1, 9))
    assert sum(e["flips"] for e in stepped) >= report["flips"]
    from safetensors.torch import load_file

    state = load_file(folder / "model.safetensors")
    for name, mask in run.mask.items():
        assert not state[f"{name}.weight"][~mask].any()
    assert "density = 0.5" in (folder / "recipe.toml").read_text()


class Crash(BaseException):
    """A stand-in for kill -9: nothing below handles it."""


@pytest.mark.parametrize(
    "pruner", [STAGES, STEPS, BOTH, LEARNED], ids=["stages", "published", "both", "learned"]
)
@pytest.mark.parametrize("at", ["started", "evaluated", 1, 4, 7])
def test_resume_equals_uninterrupted(tmp_path, pruner, at, monkeypatch):
    monkeypatch.setattr(RunFolder, "discard_unless_begun", lambda self: None)  # kill -9 tidies nothing
    whole = go(tmp_path / "whole", pruner)

    def crash(event):
        if at in (event.kind, getattr(event, "step", None) if event.kind == "stepped" else None):
            raise Crash

    with pytest.raises(Crash):
        go(tmp_path / "cut", pruner, listeners=[crash])
    assert not (tmp_path / "cut" / "report.json").exists()
    resumed = go(tmp_path / "cut", pruner, resume=True)
    assert resumed.mask.same_as(whole.mask)
    assert resumed.report["evaluation"] == whole.report["evaluation"]
    assert resumed.report["flips"] == whole.report["flips"]
    steps = [e["step"] for e in events(tmp_path / "cut") if e["event"] == "stepped"]
    assert steps == list(range(1, 9))


def test_a_finished_run_can_be_given_more_steps(tmp_path):
    whole = go(tmp_path / "whole", steps=8)
    go(tmp_path / "two", steps=3)
    more = go(tmp_path / "two", steps=8, resume=True)
    assert more.mask.same_as(whole.mask)


def test_a_learned_mask_can_be_given_more_steps(tmp_path):
    assert go(tmp_path / "run", LEARNED, steps=3).report["reason"] == "budget"
    more = go(tmp_path / "run", LEARNED, steps=6, resume=True).report
    assert (more["steps"], more["reason"]) == (6, "budget")


def test_stop_keeps_the_best_so_far_and_can_be_resumed(tmp_path):
    whole = go(tmp_path / "whole")
    asked = iter([False, False, True])
    run = go(tmp_path / "run", stop=lambda: next(asked))
    assert (run.report["reason"], run.report["steps"]) == ("interrupted", 2)
    assert go(tmp_path / "run", resume=True).mask.same_as(whole.mask)


def test_a_model_found_not_to_run_in_bfloat16_is_not_tried_again_after_a_resume(tmp_path, monkeypatch):
    monkeypatch.setattr("secateur.pruners.session.has_fast_bfloat16", lambda _: True)
    gradient, tried = Session.gradient, []

    def fails_once(self, index, bfloat16=False, **more):
        tried.append(bfloat16)
        if bfloat16 and more["variant"] == 4:
            raise ValueError("this mini-batch meets an expert in float32")
        return gradient(self, index, bfloat16, **more)

    monkeypatch.setattr(Session, "gradient", fails_once)
    pruner = ICBS(averaging=Averaging(length=3, samples=16, rate=0.1), batches=Batches(guard=0))

    def run(out, **more):
        net = networks.mlp(samples=200)
        return prune(
            net.model.float(), net.task, pruner, density=0.5, budget="9steps", out=tmp_path / out, **more
        )

    whole = run("whole")
    asked = iter([False, False, False, True])
    assert run("cut", stop=lambda: next(asked)).report["steps"] == 3
    tried.clear()
    assert run("cut", resume=True).mask.same_as(whole.mask)
    assert tried
    assert not any(tried)


SCRIPT = """
import sys
from test_runs import STAGES, go
run = go(sys.argv[1], steps=60, resume=sys.argv[2] == "resume")
run.mask.save(sys.argv[3])
"""


def test_kill_9_at_any_moment(tmp_path):
    """Kill the same run again and again, each time a little further on."""
    here = Path(__file__).parent
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "run")]
    environment = os.environ | {"PYTHONPATH": str(here)}
    killed = 0
    for goal in (1, 4, 12, 30):
        word = "resume" if (tmp_path / "run" / "events.jsonl").exists() else "new"
        process = subprocess.Popen([*command, word, str(tmp_path / "never")], env=environment)
        while process.poll() is None and len(events_so_far(tmp_path / "run")) < goal:
            time.sleep(0.002)
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert killed >= 3
    subprocess.run([*command, "resume", str(tmp_path / "resumed")], env=environment, check=True, timeout=200)
    subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "other"), "new", str(tmp_path / "whole")],
        env=environment, check=True, timeout=200,
    )  # fmt: skip
    assert Mask.load(tmp_path / "resumed").same_as(Mask.load(tmp_path / "whole"))
    assert not list((tmp_path / "run").glob(".*.part"))


def events_so_far(folder: Path) -> list[str]:
    """Read the log's lines while it is being written."""
    if not (folder / "events.jsonl").exists():
        return []
    return (folder / "events.jsonl").read_text().splitlines()


@pytest.mark.parametrize("density", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_density_outside_is_refused(density):
    net = networks.mlp()
    with pytest.raises(SecateurError, match="must lie between 0 and 1"):
        prune(net.model, net.task, density=density)


def spoiled(value: float) -> networks.Network:
    """Give a network with one bad weight."""
    net = networks.mlp()
    with torch.no_grad():
        net.model[2].weight[0, 0] = value
    return net


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_weights_are_refused(value):
    net = spoiled(value)
    with pytest.raises(SecateurError, match=r"layer '2' has NaN or infinite weights"):
        prune(net.model, net.task)


def test_a_full_gpu_is_said_in_a_sentence_and_the_model_restored():
    net = networks.mlp()
    before = {key: value.clone() for key, value in net.model.state_dict().items()}

    def fill(event):
        if event.kind == "stepped":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.86 GiB.")

    with pytest.raises(SecateurError, match=r"out of memory.*--memory"):
        prune(net.model, net.task, STAGES, density=0.5, budget="3steps", listeners=[fill])
    assert all(torch.equal(net.model.state_dict()[key], value) for key, value in before.items())


def test_a_run_goes_on_on_another_device_and_says_so(tmp_path, monkeypatch):
    whole = go(tmp_path / "whole")
    asked = iter([False, False, True])
    monkeypatch.setattr("secateur.runs.drive.device_name", lambda _: "GPU of another kind")
    go(tmp_path / "run", stop=lambda: next(asked))
    monkeypatch.undo()
    resumed = go(tmp_path / "run", resume=True)
    assert any("GPU of another kind" in notice and "cpu" in notice for notice in resumed.report["notices"])
    assert resumed.mask.same_as(whole.mask)
    assert resumed.report["device"] == "cpu"


def test_a_run_goes_on_in_less_memory(tmp_path, monkeypatch):
    asked = iter([False, True])
    go(tmp_path / "run", stop=lambda: next(asked), memory="1GB")
    monkeypatch.setattr("secateur.runs.drive.plan", lambda session, *_: setattr(session, "chunk", 7))
    chunks = []
    passes = Session.passes
    monkeypatch.setattr(Session, "passes", lambda s, *more: chunks.append(s.chunk) or passes(s, *more))
    go(tmp_path / "run", resume=True, memory="1GB")
    assert set(chunks) == {7}


@pytest.mark.parametrize("refit", [None, GradientSteps(steps=5)], ids=["mask", "refit"])
def test_what_a_run_found_stays_where_no_step_is_left(tmp_path, refit, monkeypatch):
    """A refit would be done again, in the time that is left."""
    first = go(tmp_path / "run", refit=refit)
    report = (tmp_path / "run" / "report.json").read_text()
    monkeypatch.setattr(GradientSteps, "__call__", None)
    again = go(tmp_path / "run", refit=refit, resume=True, save_model=True)
    assert again.report == first.report
    assert (tmp_path / "run" / "report.json").read_text() == report
    assert again.mask.same_as(first.mask)
    for name, value in first.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value)
    assert (tmp_path / "run" / "model.safetensors").exists()
    kinds = [event["event"] for event in events(tmp_path / "run")]
    assert kinds.count("finished") == 1


def test_what_a_resumed_run_is_refused_is_not_written_into_its_folder(tmp_path):
    recipe = {"run": {"density": 0.5}}
    go(tmp_path / "run", recipe=recipe, steps=2)
    with pytest.raises(SecateurError, match="Give at least --memory"):
        go(tmp_path / "run", recipe={"run": {"memory": "1KB"}}, resume=True, memory="1KB")
    assert "1KB" not in (tmp_path / "run" / "recipe.toml").read_text()


def test_a_run_without_the_file_of_its_weights_is_not_taken_for_another(tmp_path):
    go(tmp_path / "run", refit=GradientSteps(steps=5))
    (tmp_path / "run" / "weights.safetensors").unlink()
    with pytest.raises(SecateurError, match=r"holds no weights\.safetensors, which its run wrote"):
        apply_outcome(networks.mlp(samples=200).model, tmp_path / "run")


def test_a_refit_that_leaves_most_of_its_time_says_so():
    run = go(pruner=LEARNED, refit=GradientSteps(passes=1.0, time=0.9), budget="4s")
    assert any("less than were kept for it" in notice for notice in run.report["notices"])


def test_an_infinite_loss_is_refused_and_the_model_restored():
    net = networks.mlp()
    before = net.model[4].weight.detach().clone()
    with torch.no_grad():
        net.model[4].bias[0] = float("inf")
    with pytest.raises(SecateurError, match="NaN or infinite"):
        prune(net.model, net.task, density=0.5)
    assert torch.equal(net.model[4].weight, before)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"include": ["*.attention"]}, r"'\*\.attention' matches no layer"),
        ({"exclude": ["*"]}, "exclude every layer"),
        ({"grouping": "rows"}, "there is no grouping 'rows'"),
        ({"budget": "soon"}, "cannot read the budget 'soon'"),
        ({"resume": True}, "needs a run folder"),
        ({"save_model": True}, "needs a run folder"),
    ],
)
def test_settings_that_cannot_be(settings, words):
    net = networks.mlp()
    with pytest.raises(SecateurError, match=words):
        prune(net.model, net.task, **settings)


def test_layers_can_be_chosen():
    net = networks.mlp()
    run = prune(net.model, net.task, OneShot(), density=0.5, include=["0", "2"], exclude=["2"])
    assert list(run.mask) == ["0"]


def test_a_layer_that_no_data_reach_is_named_and_can_be_excluded():
    net = networks.dead_layer()
    with pytest.raises(SecateurError, match=r"layer 'unused' is never reached"):
        prune(net.model, net.task, STAGES, density=0.5)
    run = prune(net.model, net.task, STAGES, density=0.5, exclude=["unused"], budget="2steps")
    assert "unused" not in run.mask


@pytest.mark.parametrize(
    "make", [networks.reused, networks.sequence_first, networks.auxiliary, networks.backbone]
)
def test_a_model_whose_gradients_would_be_wrong_is_refused_and_left_alone(make):
    net = make()
    before = {k: v.clone() for k, v in net.model.state_dict().items()}
    with pytest.raises(SecateurError, match=r"layer '.*exclude"):
        prune(net.model, net.task, STAGES, density=0.5)
    assert all(torch.equal(before[k], v) for k, v in net.model.state_dict().items())


def test_too_few_samples_for_a_batch():
    net = networks.mlp()
    with pytest.raises(SecateurError, match=r"fewer than a batch of 500.*lower the batch size"):
        prune(net.model, net.task, ICBS(batches=Batches(size=500)), density=0.5)


def test_labels_beyond_the_outputs_are_refused():
    net = networks.mlp()
    task = Classification.from_arrays(torch.randn(20, 6), torch.arange(20) % 9)
    with pytest.raises(SecateurError, match="labels"):
        prune(net.model, task, density=0.5)


def test_shared_samples_are_said():
    net = networks.mlp()
    task = Classification.from_arrays(
        torch.randn(40, 6, dtype=torch.float64), torch.arange(40) % 4, evaluation_fraction=0.0
    )
    run = prune(net.model, task, OneShot(), density=0.5)
    assert run.report["evaluation"]["disjoint"] is False
    assert any("share samples" in notice for notice in run.report["notices"])


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(SecateurError, match="there is no run folder"):
        go(tmp_path / "nowhere", resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    with pytest.raises(SecateurError, match="not a run folder"):
        go(tmp_path / "other", resume=True)
    with pytest.raises(SecateurError, match="not empty: choose another"):
        go(tmp_path / "other")
    assert (tmp_path / "other" / "thesis.txt").read_text() == "precious"
    (tmp_path / "other" / "recipe.toml").write_text("[run]")
    with pytest.raises(SecateurError, match="not a run folder"):
        go(tmp_path / "other", resume=True)
    go(tmp_path / "run", steps=1)
    with pytest.raises(SecateurError, match="not empty: resume it"):
        go(tmp_path / "run", steps=1)


def flipped(content: bytes) -> bytes:
    """Change one weight's mask in a checkpoint."""
    return content[:-10] + bytes([content[-10] ^ 1]) + content[-9:]


@pytest.mark.parametrize("spoil", [lambda _: b"", lambda _: b"junk" * 9, lambda c: c[:-50], flipped])
def test_a_damaged_checkpoint_is_said(tmp_path, spoil):
    go(tmp_path / "run", steps=2)
    path = tmp_path / "run" / "state.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(SecateurError, match=r"is damaged and cannot be resumed"):
        go(tmp_path / "run", resume=True)


def test_a_checkpoint_of_another_version_is_not_called_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr("secateur.runs.checkpoint._FORMAT", "secateur-state-0")
    go(tmp_path / "run", steps=2)
    monkeypatch.undo()
    with pytest.raises(SecateurError, match="another version of Secateur"):
        go(tmp_path / "run", resume=True)


def test_a_lost_log_does_not_lose_the_run(tmp_path):
    whole = go(tmp_path / "whole")
    go(tmp_path / "run", steps=3)
    (tmp_path / "run" / "events.jsonl").unlink()
    assert go(tmp_path / "run", resume=True).mask.same_as(whole.mask)


def test_what_stays_dense_and_what_rounding_does_is_said():
    model = nn.Sequential(nn.ConvTranspose1d(1, 3, 3), nn.Flatten(), nn.Linear(24, 4)).double()
    task = Classification.from_arrays(torch.randn(60, 1, 6, dtype=torch.float64), torch.arange(60) % 4)
    run = prune(model, task, OneShot(), density=0.27, grouping="output")
    assert any("of the weights stay dense" in n and "0.weight" in n for n in run.report["notices"])
    assert any("makes the density 0.25 instead of 0.27" in n for n in run.report["notices"])
    net = networks.mlp()
    assert prune(net.model, net.task, OneShot(), density=0.5).report["notices"] == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"model": 3}, "model must be a torch.nn.Module"),
        ({"task": 3}, "task must be a Task"),
        ({"pruner": "icbs"}, "pruner must be a pruner, such as"),
        ({"pruner": ICBS}, "pruner must be a pruner, such as"),
        ({"allocation": "erk"}, "allocation must be an allocation"),
        ({"density": "a"}, "density must be a number"),
        ({"seed": None}, "seed must be a whole number"),
    ],
)
def test_arguments_of_the_wrong_kind(wrong, words):
    """Past the run-time checks of the tests, which would answer first."""
    net = networks.mlp()
    given = {
        "model": net.model,
        "task": net.task,
        "pruner": None,
        "density": 0.5,
        "allocation": None,
        "seed": 0,
    }
    with pytest.raises(SecateurError, match=words):
        _check(**(given | wrong))


def test_a_run_of_another_model_or_other_settings_is_refused(tmp_path):
    go(tmp_path / "run", steps=2)
    other = networks.mlp(seed=9, samples=200)
    with pytest.raises(SecateurError, match="made with another model"):
        prune(other.model, other.task, STAGES, density=0.5, out=tmp_path / "run", resume=True)
    ours = networks.mlp(samples=200)
    with pytest.raises(SecateurError, match="made with another data set"):
        prune(ours.model, other.task, STAGES, density=0.5, out=tmp_path / "run", resume=True)
    with pytest.raises(SecateurError, match="made with another setting"):
        go(tmp_path / "run", replace(STAGES, init=Gradient()), resume=True)


@pytest.mark.parametrize("name", ["state.safetensors", "mask.safetensors", "report.json"])
def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, name):
    net = networks.mlp(samples=200)
    before = {k: v.clone() for k, v in net.model.state_dict().items()}
    real = os.replace
    replace_path = Path.replace

    def full(self, target):
        if Path(target).name == name and len(events_so_far(tmp_path / "run")) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace_path(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(SecateurError, match="no space left"):
        prune(net.model, net.task, STAGES, density=0.5, budget="8steps", out=tmp_path / "run")
    assert all(torch.equal(before[k], v) for k, v in net.model.state_dict().items())
    monkeypatch.setattr(Path, "replace", replace_path)
    assert os.replace is real
    assert go(tmp_path / "run", resume=True).mask.same_as(go(tmp_path / "whole").mask)


def test_a_full_disk_while_logging_is_said(tmp_path, monkeypatch):
    real = Path.open

    def full(self, mode="r", *args, **more):
        if self.name == "events.jsonl" and mode == "a":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, mode, *args, **more)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(SecateurError, match=r"No space left on device.*--resume"):
        go(tmp_path / "run")


def test_the_clock_goes_on_after_a_resume(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("secateur.runs.clock.time.monotonic", lambda: now[0])
    clock = Clock(Limit(seconds=60.0), elapsed=40.0)
    clock.reserve = 5.0
    assert clock.remaining == 15.0
    now[0] += 10
    assert (clock.elapsed, clock.remaining) == (50.0, 5.0)
    assert clock.lacks(5.0)
    assert not clock.lacks(4.0)
    assert not Clock(Limit(steps=3)).lacks(1e9)


@pytest.mark.parametrize("budget", [20, 31, 60, 200])
def test_a_budget_of_time_is_kept_to_the_end(monkeypatch, budget):
    """Only pretended work takes time: a forward pass one second, a solved block two."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def taking(seconds, function):
        def work(*args, **more):
            now[0] += seconds
            return function(*args, **more)

        return work

    monkeypatch.setattr(Classification, "forward", taking(1.0, Classification.forward))
    monkeypatch.setattr(Swaps, "search", taking(2.0, Swaps.search))
    net = networks.mlp(samples=200)
    endless = replace(STAGES, batches=Batches(size=40, guard=0), trust=Trust(adapt=False))
    run = prune(net.model, net.task, endless, density=0.5, budget=f"{budget}s")
    assert run.report["reason"] == "budget"
    assert run.report["steps"] > 0
    assert 0.5 * budget < run.report["seconds"]["total"] <= budget


def test_a_run_that_fails_before_it_begins_leaves_no_folder(tmp_path):
    net = networks.dead_layer()
    gradient = OneShot(Gradient())
    with pytest.raises(SecateurError, match="does not affect the loss"):
        prune(net.model, net.task, gradient, density=0.5, out=tmp_path / "run", recipe={"run": {}})
    assert not (tmp_path / "run").exists()
    prune(net.model, net.task, gradient, density=0.5, exclude=["unused"], out=tmp_path / "run")


def test_the_remains_of_a_killed_write_are_no_obstacle(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".recipe.toml.1234.part").write_text("half")
    go(tmp_path / "run", steps=1)


def test_weights_that_the_model_changes_by_itself_are_noticed():
    net = networks.mlp()

    def restore(module, inputs):
        with torch.no_grad():
            module.weight.fill_(1.0)

    net.model[0].register_forward_pre_hook(restore)
    with pytest.raises(SecateurError, match="something changes them in its forward pass"):
        prune(net.model, net.task, OneShot(), density=0.5)


def test_a_model_without_layers_and_a_parametrized_one():
    net = networks.mlp()
    with pytest.raises(SecateurError, match="no layers to prune"):
        prune(nn.Sequential(nn.ConvTranspose2d(1, 1, 1)), net.task)
    nn.utils.parametrize.register_parametrization(net.model[0], "weight", nn.Identity())
    with pytest.raises(SecateurError, match=r"layer '0' is parametrized"):
        prune(net.model, net.task)
