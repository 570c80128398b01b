"""Statistics of BatchNorm, estimated anew: against a computation by hand, and what a run makes of them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from secateur import Classification, GradientSteps, LearnedMask, OneShot, SecateurError, prune
from secateur.allocation import Uniform
from secateur.capture.norms import Pool
from secateur.cli.app import run as command
from secateur.export.outcome import apply_outcome
from secateur.pruners import Averaging, Network, Recalibration, Session
from secateur.report import write_page
from secateur.runs import RunFolder
from secateur.runs.ending import Ending
from secateur.scores import Magnitude
from secateur.testing import networks

MAGNITUDE = OneShot(Magnitude())
LEARNED = LearnedMask(averaging=Averaging(length=3))
REFIT = GradientSteps(rate=0.01, steps=3, samples=16)
KEYS = {f"{name}.{key}" for name in ("1", "5") for key in ("running_mean", "running_var")}

# What a recipe builds; the tests build it in the same way.
SOURCE = """
from torch import nn


def build():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 8),
        nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4),
    )
"""
space: dict = {}
exec(SOURCE, space)


def cnn(samples=100):
    """A small CNN with two BatchNorms, of which the linear layers are pruned."""
    return networks.furnish(space["build"](), (2, 5, 5), 0, samples)


def deep(layers=7, samples=100):
    """A perceptron with many BatchNorms in a row."""
    parts = [part for _ in range(layers) for part in (nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh())]
    return networks.furnish(nn.Sequential(*parts, nn.Linear(6, 4)), (6,), 0, samples)


def go(net=None, pruner=MAGNITUDE, recalibrate=True, steps=3, **more):
    """Prune a fresh network."""
    net = net or cnn()
    more = {"include": ("4", "8"), **more}
    return prune(
        net.model, net.task, pruner, density=0.4, budget=f"{steps}steps", recalibrate=recalibrate, **more
    )


def begun(net, chunk=None):
    """A session with the model as it was trained."""
    network = Network(net.model, ("*",))
    return Session(network, net.task, Uniform().budget(network.shapes, 0.5, "layer"), 0, chunk=chunk)


def inputs_of(task):
    """Give all calibration samples."""
    return task.batch("calibration", torch.arange(task.size("calibration")), torch.device("cpu")).inputs


def by_hand(model, x):
    """Compute the statistics of the CNN layer after layer, in numpy and float64."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    windows = np.lib.stride_tricks.sliding_window_view(x.numpy(), (3, 3), axis=(2, 3))
    h = np.einsum("scijkl,ockl->soij", windows, state["0.weight"]) + state["0.bias"][:, None, None]
    first = h.transpose(1, 0, 2, 3).reshape(3, -1)
    mean, var = first.mean(1), first.var(1, ddof=1)
    found = {"1.running_mean": mean, "1.running_var": var}
    scale = state["1.weight"] / np.sqrt(var + model[1].eps)
    h = (h - mean[:, None, None]) * scale[:, None, None] + state["1.bias"][:, None, None]
    h = np.maximum(h, 0).reshape(len(h), -1) @ state["4.weight"].T + state["4.bias"]
    return found | {"5.running_mean": h.mean(0), "5.running_var": h.var(0, ddof=1)}


def statistics(model):
    """Give the statistics of a model, copied."""
    norms = (nn.modules.batchnorm._BatchNorm,)
    names = [name for name, module in model.named_modules() if isinstance(module, norms)]
    state = model.state_dict()
    return {f"{n}.{k}": state[f"{n}.{k}"].clone() for n in names for k in ("running_mean", "running_var")}


def same(one, other, but=()):
    """Compare two dictionaries of tensors, bit for bit."""
    assert one.keys() == other.keys()
    return all(torch.equal(value, other[key]) for key, value in one.items() if key not in but)


# What is estimated.


@pytest.mark.parametrize("chunk", [None, 500, 50, 9])
def test_the_statistics_are_those_of_each_layers_inputs(chunk):
    net = cnn()
    session = begun(net, chunk)
    done = Recalibration()(session)
    expected = by_hand(net.model, inputs_of(net.task))
    found = statistics(net.model)
    assert found.keys() == expected.keys() == KEYS == session.network.statistics.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], torch.from_numpy(value), rtol=1e-10, atol=1e-12)
    assert (done.layers, done.samples) == (2, 80)
    assert done.sweeps == (1 if chunk in (None, 500) else 2)


def test_a_run_leaves_the_statistics_of_the_pruned_network():
    net = cnn()
    run = go(net)
    for key, value in by_hand(net.model, inputs_of(net.task)).items():
        torch.testing.assert_close(
            statistics(net.model)[key], torch.from_numpy(value), rtol=1e-10, atol=1e-12
        )
    assert run.report["recalibration"] == {"layers": 2, "samples": 80, "sweeps": 1}


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_lower_precision_is_pooled_in_a_higher_one(kind):
    draw = torch.Generator().manual_seed(0)
    x = (100 + torch.randn(400, 3, 5, generator=draw)).to(kind)
    pool = Pool()
    for part in x.split([1, 99, 0, 300]):
        pool.add(part)
    exact = x.double().transpose(0, 1).reshape(3, -1)
    torch.testing.assert_close(pool.mean, exact.mean(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(pool.variance, exact.var(1), rtol=1e-5, atol=0)


def test_as_many_sweeps_as_layers_are_exact_and_one_is_nearly_so():
    kinds = [(None, 1), (20, 3), (20, 2)]
    nets = [deep(3, 200) for _ in kinds]
    swept = [
        Recalibration(sweeps=sweeps)(begun(net, chunk)).sweeps
        for net, (chunk, sweeps) in zip(nets, kinds, strict=True)
    ]
    assert swept == [1, 3, 1]
    truth, exact, one = (statistics(net.model) for net in nets)
    for key, value in truth.items():
        torch.testing.assert_close(exact[key], value, rtol=1e-10, atol=1e-12)
        spread = truth[key.replace("mean", "var")].sqrt()
        apart = (one[key] - value) / spread if key.endswith("mean") else one[key] / value - 1
        assert apart.abs().mean() < 0.15  # with 160 samples
    assert any(not torch.allclose(one[key], value, rtol=1e-6) for key, value in truth.items())


def test_where_time_runs_out_after_a_sweep_every_layer_has_been_measured():
    net, other = deep(3), deep(3)
    session = begun(net, 10)
    session.out_of_time = lambda seconds: seconds > 0
    assert Recalibration()(session).sweeps == 1
    Recalibration(sweeps=1)(begun(other, 10))
    assert same(statistics(net.model), statistics(other.model))
    assert not any(torch.equal(v, statistics(deep(3).model)[k]) for k, v in statistics(net.model).items())


def test_the_samples_are_calibration_samples_drawn_by_the_seed(monkeypatch):
    net, asked = cnn(), []
    batch = type(net.task).batch
    monkeypatch.setattr(
        type(net.task),
        "batch",
        lambda s, split, index, d: asked.append((split, index)) or batch(s, split, index, d),
    )
    session = begun(net)
    assert Recalibration(samples=30)(session).samples == 30
    assert {split for split, _ in asked} == {"calibration"}
    chosen = asked[-1][1]
    assert chosen.unique().numel() == 30
    session.seed = 1
    Recalibration(samples=30)(session)
    assert not torch.equal(asked[-1][1], chosen)
    assert Recalibration(samples=None).passed(session) == (80, 1)


@pytest.mark.parametrize("build", [lambda: Recalibration(samples=0), lambda: Recalibration(sweeps=0)])
def test_settings_out_of_range(build):
    with pytest.raises(SecateurError, match="of the recalibration must be positive, not 0"):
        build()


class Frozen(nn.Module):
    """As transformers has it in detection models."""

    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(6))
        self.register_buffer("running_var", torch.ones(6))

    def forward(self, x):
        return (x - self.running_mean) * (self.running_var + 1e-5).rsqrt()


def test_only_layers_with_running_statistics_are_recalibrated():
    """No momentum is no hindrance; frozen layers, and those without statistics, are left alone."""
    norms = [nn.BatchNorm1d(6, momentum=None), nn.BatchNorm1d(6, track_running_stats=False), Frozen()]
    for norm, told in zip(norms, (False, True, True), strict=True):
        net = networks.furnish(nn.Sequential(nn.Linear(6, 6), norm, nn.Linear(6, 4)), (6,), 0, 100)
        before = {name: value.clone() for name, value in net.model.state_dict().items()}
        run = go(net, include=None)
        after = net.model.state_dict()
        moved = {key for key in before if not torch.equal(before[key], after[key])}
        assert moved == {"0.weight", "2.weight"} | (set() if told else {"1.running_mean", "1.running_var"})
        assert any("nothing is recalibrated" in notice for notice in run.report["notices"]) is told
        assert ("masked" in run.report["evaluation"]) is not told


def test_a_layer_that_nothing_reaches_keeps_its_statistics():
    class Idle(nn.Sequential):
        def forward(self, x):
            return self[3](self[1](self[0](x)))

    net = networks.furnish(
        Idle(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.BatchNorm1d(6), nn.Linear(6, 4)), (6,), 0, 100
    )
    before = statistics(net.model)
    assert go(net, include=None).report["recalibration"]["layers"] == 1
    found = statistics(net.model)
    assert torch.equal(found["2.running_mean"], before["2.running_mean"])
    assert not torch.equal(found["1.running_mean"], before["1.running_mean"])


# What a run makes of it.


def test_nothing_but_the_statistics_is_changed_and_off_is_off():
    nets = [cnn() for _ in range(2)]
    before = statistics(nets[0].model)
    nets[0].model[7].train()
    on, off = go(nets[0]), go(nets[1], recalibrate=False)
    assert [module.training for module in nets[0].model] == [False] * 7 + [True, False]
    assert same(nets[0].model.state_dict(), nets[1].model.state_dict(), but=KEYS)
    assert on.mask.same_as(off.mask)
    assert same(statistics(nets[1].model), before)
    assert not any(torch.equal(value, before[key]) for key, value in statistics(nets[0].model).items())
    assert on.report["evaluation"]["masked"] == off.report["evaluation"]["pruned"]
    assert on.report["evaluation"]["pruned"] != on.report["evaluation"]["masked"]
    assert on.report["seconds"]["recalibrate"] > 0
    assert on.report["weights"] == "mask only"
    assert not {"masked", "recalibrated"} & set(off.report["evaluation"])
    assert "recalibration" not in off.report
    assert "recalibrate" not in off.report["seconds"]


def test_it_comes_before_the_refit_and_is_evaluated_between():
    subjects = []
    both = go(refit=REFIT, listeners=[lambda e: e.kind == "evaluated" and subjects.append(e.subject)])
    assert subjects == ["dense", "start", "masked", "recalibrated", "pruned"]
    alone = go().report["evaluation"]["pruned"]
    assert both.report["evaluation"]["recalibrated"] == alone
    assert both.report["evaluation"]["pruned"]["loss"] < alone["loss"]
    assert both.report["weights"] == f"refit by {REFIT!r}"


def test_harm_is_said():
    """Calibration data that are not like those of the evaluation."""
    net, draw = cnn(), torch.Generator().manual_seed(0)
    x = torch.randn(100, 2, 5, 5, generator=draw, dtype=torch.float64)
    with torch.no_grad():
        labels = net.model(x).argmax(1)
    task = Classification.from_arrays(3 * x + 2, labels, evaluation=(x, labels))
    for refit in (None, REFIT):
        told = go(networks.Network(cnn().model, task), refit=refit).report["notices"]
        assert any(n.startswith("the recalibration made the loss larger") for n in told)
        assert not any(n.startswith("the refit made") for n in told)


def test_a_failing_recalibration_leaves_the_mask_and_the_old_statistics(tmp_path, monkeypatch):
    monkeypatch.setattr(Pool, "variance", property(lambda self: self.mean.abs() * torch.inf))
    net = cnn()
    before = statistics(net.model)
    run = go(net, out=tmp_path / "run")
    assert any("recalibration failed" in n and "1.running_var" in n for n in run.report["notices"])
    assert same(statistics(net.model), before)
    assert run.report["evaluation"]["pruned"] == run.report["evaluation"]["masked"]
    assert "recalibration" not in run.report
    assert not (tmp_path / "run" / "statistics.safetensors").exists()


def test_one_value_a_channel_is_no_variance():
    net = deep(1)
    task = Classification.from_arrays(inputs_of(net.task)[:1], [0], evaluation_fraction=0.0)
    run = go(networks.Network(net.model, task), include=None)
    assert any("given a single value a channel" in n for n in run.report["notices"])


@pytest.mark.parametrize("subject", ["masked", "recalibrated", "pruned"])
def test_any_failure_restores_the_statistics(subject):
    def fail(event):
        if event.kind == "evaluated" and event.subject == subject:
            raise ValueError("no")

    net = cnn()
    before = {name: value.clone() for name, value in net.model.state_dict().items()}
    with pytest.raises(ValueError, match="no"):
        go(net, refit=REFIT, listeners=[fail])
    assert same(net.model.state_dict(), before)


class Crash(BaseException):
    """A stand-in for kill -9: nothing below handles it."""


@pytest.mark.parametrize("at", ["recalibration", "recalibrated", "pruned"])
def test_a_run_that_dies_is_resumed_to_the_same_statistics(tmp_path, at, monkeypatch):
    monkeypatch.setattr(RunFolder, "discard_unless_begun", lambda self: None)
    whole = go(pruner=LEARNED, refit=REFIT, out=tmp_path / "whole")

    def crash(event):
        if getattr(event, "subject", None) == at:
            raise Crash

    def die(*_):
        raise Crash

    with monkeypatch.context() as broken:
        if at == "recalibration":
            broken.setattr(Ending, "_recalibrate", die)
        with pytest.raises(Crash):
            go(pruner=LEARNED, refit=REFIT, out=tmp_path / "cut", listeners=[crash])
    assert not (tmp_path / "cut" / "statistics.safetensors").exists()
    resumed = go(pruner=LEARNED, refit=REFIT, out=tmp_path / "cut", resume=True)
    assert same(resumed.model.state_dict(), whole.model.state_dict())
    assert resumed.report["evaluation"] == whole.report["evaluation"]
    for name in ("statistics", "weights", "mask"):
        cut, other = (load_file(tmp_path / run / f"{name}.safetensors") for run in ("cut", "whole"))
        assert same(cut, other)
    assert cut.keys() == set(whole.mask)


def test_a_run_is_resumed_as_it_was_begun(tmp_path):
    go(pruner=LEARNED, out=tmp_path / "run")
    with pytest.raises(SecateurError, match="made with another setting"):
        go(pruner=LEARNED, out=tmp_path / "run", recalibrate=False, resume=True)
    net = cnn()
    net.model[1].running_mean += 1
    with pytest.raises(SecateurError, match="made with another model"):
        go(net, pruner=LEARNED, out=tmp_path / "run", resume=True)
    run = go(pruner=LEARNED, out=tmp_path / "run", resume=True, steps=4)
    assert same(load_file(tmp_path / "run" / "statistics.safetensors"), statistics(run.model))


def test_statistics_that_are_not_new_any_more_are_taken_away(tmp_path, monkeypatch):
    go(pruner=LEARNED, out=tmp_path / "run")
    monkeypatch.setattr(Pool, "variance", property(lambda self: self.mean.abs() * torch.inf))
    go(pruner=LEARNED, out=tmp_path / "run", resume=True, steps=4)
    assert not (tmp_path / "run" / "statistics.safetensors").exists()


def test_time_is_held_back_for_it():
    session = begun(cnn(), 10)
    ending = Ending(session, None, Recalibration(), lambda _: {}, lambda _: None)
    assert ending.evaluations == 2
    assert ending.held_back(0.001, 60.0) == pytest.approx(2 * 1.5 * 0.08)
    assert ending.held_back(0.1, 60.0) == pytest.approx(1.5 * 8 + 6)  # the second sweep in a tenth
    assert replace(ending, recalibration=None).held_back(0.1, 60.0) == 0
    assert replace(ending, refit=replace(REFIT, time=0.25)).held_back(0.1, 60.0) == pytest.approx(33)
    assert ending.held_back(0.1, None) == 0


# What it leaves on the disk.


def test_the_files_reproduce_the_pruned_model(tmp_path):
    run = go(refit=REFIT, out=tmp_path / "run", save_model=True)
    state = run.model.state_dict()
    fresh = cnn().model
    apply_outcome(fresh, tmp_path / "run")
    assert same(fresh.state_dict(), state)
    assert same(load_file(tmp_path / "run" / "model.safetensors"), state)
    assert load_file(tmp_path / "run" / "statistics.safetensors").keys() == KEYS
    save_file({"9.running_mean": torch.ones(3)}, tmp_path / "run" / "statistics.safetensors")
    other = cnn().model
    with pytest.raises(SecateurError, match=r"another model: there is no buffer '9.running_mean' \[3\]"):
        apply_outcome(other, tmp_path / "run")
    assert same(other.state_dict(), cnn().model.state_dict())


def test_the_page_shows_the_effect(tmp_path):
    go(refit=REFIT, out=tmp_path / "run")
    page = write_page(tmp_path / "run").read_text()
    assert "statistics of 2 BatchNorm layers were estimated anew from 80 calibration samples" in page
    for words in ("<td>mask alone</td>", "<td>recalibrated</td>", "recalibrate 0"):
        assert words in page
    go(recalibrate=False, out=tmp_path / "other")
    assert "estimated anew" not in write_page(tmp_path / "other").read_text()


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe of the CNN, in the folder that is worked in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "net.py").write_text(SOURCE)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(200, 2, 5, 5, generator=draw)
    np.savez(tmp_path / "data.npz", x=x.numpy(), y=(torch.arange(200) % 4).numpy())
    (tmp_path / "r.toml").write_text("""
        data = { name = "arrays", path = "data.npz" }
        model = { name = "function", target = "net.py:build" }
        pruner = { name = "one-shot", score = "magnitude" }
        run = { density = 0.4 }
    """)


@pytest.mark.parametrize("words", [["--recalibrate"], ["--run.recalibrate", "true"]])
def test_the_command_line(tmp_path, recipe, capsys, words):
    assert command(["prune", "r.toml", "--out", "run", *words]) == 0
    told = capsys.readouterr().out
    assert "mask alone" in told
    assert "recalibrate = true" in (tmp_path / "run" / "recipe.toml").read_text()
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["recalibration"]["layers"] == 2
    assert (tmp_path / "run" / "report.html").exists()
    assert command(["evaluate", "run"]) == 0
    assert "as the report says" in capsys.readouterr().out
    (tmp_path / "run" / "statistics.safetensors").unlink()
    assert command(["evaluate", "run"]) == 2
    assert "holds no statistics.safetensors, which its run wrote" in capsys.readouterr().err


def test_without_the_flag_nothing_is_recalibrated(tmp_path, recipe):
    assert command(["prune", "r.toml", "--out", "run", "--quiet"]) == 0
    assert "recalibrate = false" in (tmp_path / "run" / "recipe.toml").read_text()
    assert not (tmp_path / "run" / "statistics.safetensors").exists()
