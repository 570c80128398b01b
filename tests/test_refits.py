"""Refits: what a mask prunes stays 0, the loss falls, and each formula against a dense and obvious one."""

import json
import time
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file

from secateur import (
    ICBS,
    FisherSteps,
    GradientSteps,
    LeastSquares,
    OneShot,
    SecateurError,
    SparseGPT,
    Successive,
    prune,
)  # fmt: skip
from secateur.allocation import Uniform
from secateur.core.layer import find_layers
from secateur.core.mask import Mask
from secateur.core.seeds import generator
from secateur.core.signal import Signal
from secateur.pruners import Averaging, Batches, Network, Refit, Session, State
from secateur.pruners.refits import fisher_steps
from secateur.runs import RunFolder
from secateur.runs.ending import Ending
from secateur.scores import Magnitude
from secateur.tasks.causal_lm import CausalLM
from secateur.testing import networks, oracles

FISHER = frozenset({Signal.INPUTS, Signal.GRADIENT, Signal.SAMPLED_ROWS})
GRADIENT = GradientSteps(rate=0.05, steps=60, samples=16)
FISHER_STEPS = FisherSteps(steps=4)
REFITS = pytest.mark.parametrize("refit", [GRADIENT, FISHER_STEPS], ids=["gradient", "fisher"])
MAGNITUDE = OneShot(Magnitude())
# Without blocks, so that no solver has to be compiled.
AVERAGED = ICBS(averaging=Averaging(length=3), share=1.0)


def llama(**changes):
    """A tiny Llama with random weights, and sequences whose next token follows from the last one."""
    transformers = pytest.importorskip("transformers", reason="language models need transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "max_position_embeddings": 32, "initializer_range": 0.3}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**sizes, **heads, **changes})).eval()
    start = torch.randint(16, (60, 1), generator=torch.Generator().manual_seed(1))
    return model, CausalLM.from_ids((start + 3 * torch.arange(8)) % 16)


def go(refit=None, out=None, pruner=MAGNITUDE, budget=None, density=0.5, **more):
    """Prune a fresh tiny network."""
    net = networks.mlp(samples=400)
    return prune(net.model, net.task, pruner, density=density, budget=budget, out=out, refit=refit, **more)


def weights_of(run):
    """Give the weights of the pruned layers."""
    return {layer.name: layer.weight.detach() for layer in find_layers(run.model) if layer.name in run.mask}


# What any refit of the loss must do.


@REFITS
def test_the_loss_falls_and_what_is_pruned_stays_zero(refit):
    alone, run = go(), go(refit)
    assert run.mask.same_as(alone.mask)
    for name, weight in weights_of(run).items():
        assert not weight[~run.mask[name]].any()
        changed = weight[run.mask[name]] != weights_of(alone)[name][run.mask[name]]
        assert changed.float().mean() > 0.9
    found = run.report["evaluation"]
    assert found["masked"]["loss"] == pytest.approx(alone.report["evaluation"]["pruned"]["loss"], rel=1e-12)
    assert found["pruned"]["loss"] < found["masked"]["loss"] - 0.05
    assert run.report["weights"] == f"refit by {refit!r}"
    assert run.report["seconds"]["refit"] > 0


@REFITS
def test_the_loss_of_a_language_model_falls(refit):
    model, task = llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run = prune(model, task, MAGNITUDE, density=0.5, refit=refit)
    found = run.report["evaluation"]
    assert found["pruned"]["loss"] < found["masked"]["loss"] - 0.2
    assert found["pruned"]["perplexity"] == pytest.approx(torch.tensor(found["pruned"]["loss"]).exp().item())
    pruned = {f"{name}.weight" for name in run.mask}
    for name, value in model.state_dict().items():
        if name not in pruned:
            assert torch.equal(value, before[name]), name
    for name, mask in run.mask.items():
        assert torch.equal(weights_of(run)[name] != 0, mask)


def test_without_a_refit_the_kept_weights_are_the_trained_ones():
    model, task = llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run = prune(model, task, MAGNITUDE, density=0.5)
    for name, mask in run.mask.items():
        weight = before[f"{name}.weight"]
        assert torch.equal(model.state_dict()[f"{name}.weight"], torch.where(mask, weight, 0))
    assert run.report["weights"] == "mask only"
    assert "masked" not in run.report["evaluation"]
    assert "refit" not in run.report["seconds"]


@REFITS
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_the_type_of_the_weights_stays(refit, kind):
    model, task = llama()
    run = prune(model.to(kind), task, MAGNITUDE, density=0.5, refit=refit)
    assert {parameter.dtype for parameter in model.parameters()} == {kind}
    found = run.report["evaluation"]
    assert found["pruned"]["loss"] < found["masked"]["loss"] - 0.1
    for name, mask in run.mask.items():
        assert not weights_of(run)[name][~mask].any()


@REFITS
def test_the_same_seed_gives_the_same_weights(refit):
    first, second = go(refit), go(refit)
    for name, weight in weights_of(first).items():
        assert torch.equal(weight, weights_of(second)[name])


@REFITS
def test_without_guard_samples_the_loss_falls_too(refit):
    from dataclasses import replace

    run = go(replace(refit, batches=Batches(guard=0)))
    found = run.report["evaluation"]
    assert found["pruned"]["loss"] < found["masked"]["loss"] - 0.05


class Crash(BaseException):
    """A stand-in for kill -9: nothing below handles it."""


@REFITS
def test_a_run_that_dies_in_the_refit_resumes_to_the_same_weights(tmp_path, refit, monkeypatch):
    whole = go(refit, tmp_path / "whole", AVERAGED, "4steps")

    def die(self, *_):
        raise Crash

    monkeypatch.setattr(RunFolder, "discard_unless_begun", lambda self: None)
    with monkeypatch.context() as broken:
        broken.setattr(Ending, "_refit", die)
        with pytest.raises(Crash):
            go(refit, tmp_path / "cut", AVERAGED, "4steps")
    assert not (tmp_path / "cut" / "weights.safetensors").exists()
    resumed = go(refit, tmp_path / "cut", AVERAGED, "4steps", resume=True)
    assert resumed.mask.same_as(whole.mask)
    assert resumed.report["evaluation"] == whole.report["evaluation"]
    for name, weight in weights_of(whole).items():
        assert torch.equal(weight, weights_of(resumed)[name])
    cut, other = (load_file(tmp_path / run / "weights.safetensors") for run in ("cut", "whole"))
    assert cut.keys() == other.keys() == set(whole.mask)
    assert all(torch.equal(cut[name], weight) for name, weight in other.items())


def test_a_run_with_another_refit_is_not_resumed(tmp_path):
    go(GRADIENT, tmp_path / "run", AVERAGED, "2steps")
    with pytest.raises(SecateurError, match="made with another setting"):
        go(FISHER_STEPS, tmp_path / "run", AVERAGED, "2steps", resume=True)


@pytest.mark.parametrize(
    "refit",
    [GradientSteps(time=0.5, samples=16, passes=float("inf")), FisherSteps(time=0.5, steps=10_000)],
    ids=["gradient", "fisher"],
)
def test_a_share_of_the_budget_is_held_back_and_the_budget_is_kept(refit):
    begin = time.monotonic()
    run = go(refit, pruner=AVERAGED, budget="2s")
    assert time.monotonic() - begin < 2.5
    assert run.report["seconds"]["total"] < 2.2
    # Of the second that is held back; Fisher steps end where nothing is gained any more.
    least = 0.5 if isinstance(refit, GradientSteps) else 0.05
    assert least < run.report["seconds"]["refit"] < 1.5
    assert run.report["steps"] > 0


@REFITS
def test_weights_that_are_not_finite_are_refused_and_the_mask_is_kept(refit, monkeypatch):
    monkeypatch.setattr(
        type(refit), "__call__", lambda self, s, mask, w: (mask, {n: m * torch.nan for n, m in mask.items()})
    )
    net = networks.mlp()
    before = {name: value.clone() for name, value in net.model.state_dict().items()}
    run = prune(net.model, net.task, MAGNITUDE, density=0.5, refit=refit)
    assert any("refit failed" in n and "layer '0' became NaN" in n for n in run.report["notices"])
    assert run.report["weights"] == "mask only"
    assert run.report["evaluation"]["pruned"] == run.report["evaluation"]["masked"]
    for name, mask in run.mask.items():  # the mask is not lost with it
        assert torch.equal(net.model.state_dict()[f"{name}.weight"], before[f"{name}.weight"] * mask)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: GradientSteps(rate=0.0), "rate of the refit must be positive and finite, not 0.0"),
        (lambda: GradientSteps(rate=float("inf")), "must be positive and finite, not inf"),
        (lambda: GradientSteps(steps=0), "steps of the refit must be positive, not 0"),
        (lambda: GradientSteps(passes=-1.0), "passes of the refit must be positive"),
        (lambda: GradientSteps(samples=0), "samples of the refit must be positive"),
        (lambda: GradientSteps(time=1.0), "time is a share of the budget from 0 to below 1, not 1.0"),
        (lambda: FisherSteps(damping=0.0), "damping of the refit must be positive, not 0.0"),
        (lambda: FisherSteps(draws=0), "draws of the refit must be positive, not 0"),
        (lambda: FisherSteps(time=-0.1), "time is a share"),
    ],
)
def test_settings_out_of_range(build, words):
    with pytest.raises(SecateurError, match=words):
        build()


# Steps of the gradient.


def begun(net, density=0.5):
    """Give a session whose model is pruned by magnitude, and the mask."""
    network = Network(net.model)
    session = Session(network, net.task, Uniform().budget(network.shapes, density, "layer"), 0)
    mask, _ = session.one_shot(Magnitude(), torch.arange(4))
    return session, mask


def test_one_step_is_that_of_adam():
    """With one step h is 1, and Adam's first move is e s times the sign of the gradient."""
    session, mask = begun(networks.mlp())
    refit = GradientSteps(rate=0.01, steps=1, samples=1000, batches=Batches(guard=0))
    pool = torch.arange(session.task.size("calibration"))
    _, gradients = session.gradient(pool)
    _, found = refit(session, mask, {})
    for name, kept in mask.items():
        before = session.network.reference[name] * kept
        size = before[kept].square().mean().sqrt()
        expected = before - 0.01 * size * gradients[name].sign() * kept
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-6)


def test_the_weights_with_the_lowest_guard_loss_are_returned():
    """A rate far too large makes the loss rise: what it began with is the best."""
    session, mask = begun(networks.mlp(samples=200))
    _, guard = session.divided(Batches())
    before = session.mean_loss(guard)
    _, found = GradientSteps(rate=30.0, steps=50, samples=8)(session, mask, {})
    session.network.write(mask, found)
    assert session.mean_loss(guard) == pytest.approx(before, rel=1e-12)


# The Fisher step.


def tape_of(net, session, samples=9, draws=2):
    """Record labels drawn from the model."""
    return session.record(session.batch(torch.arange(samples)), FISHER, 5, draws)


@pytest.mark.parametrize("make", [networks.mlp, networks.positions, networks.shared_weight])
@pytest.mark.parametrize("draws", [1, 3])
def test_push_is_the_adjoint_of_pullback_and_multiplies_with_the_rows(make, draws):
    net = make()
    network = Network(net.model)
    session = Session(network, net.task, Uniform().budget(network.shapes, 0.5, "layer"), 0)
    tape = tape_of(net, session, draws=draws)
    draw = torch.Generator().manual_seed(0)
    for layer in network.layers:
        one = tape.layers[layer.name]
        v = torch.randn(layer.shape, generator=draw, dtype=torch.float64)
        r = torch.randn(9 * draws, generator=draw, dtype=torch.float64)
        rows = one.factors(torch.arange(layer.size))  # G, one column a row
        torch.testing.assert_close(one.push(v), rows.T @ v.flatten(), rtol=1e-10, atol=1e-12)
        assert float(one.push(v) @ r) == pytest.approx(float((v * one.pullback(r)).sum()), rel=1e-10)


@pytest.mark.parametrize("damping", [0.03, 1.0])
def test_conjugate_gradients_solve_the_damped_system(damping):
    net = networks.mlp()
    session, mask = begun(net)
    layers = session.network.layers
    batch = session.batch(torch.arange(40))
    tape = session.record(batch, FISHER, 5)
    move = FisherSteps(iterations=400)._solve(tape, mask, damping, seed=0, step=5)
    # The same labels, and each sample's gradient by itself.
    with torch.no_grad():
        outputs = net.task.forward(net.model, batch)
    labels = net.task.redraw(outputs, batch.targets, generator(0, "labels", 5))
    rows = oracles.sample_gradients(net.model, net.task, batch, layers, labels)
    kept = oracles.flatten(mask.layers)
    factors = torch.stack([oracles.flatten({n: g[s] for n, g in rows.items()}) for s in range(40)])[:, kept]
    fisher = factors.T @ factors / 40
    truth = oracles.sample_gradients(net.model, net.task, batch, layers)
    gradient = oracles.flatten({n: g.mean(0) for n, g in truth.items()})[kept]
    found = oracles.flatten(move)
    assert not found[~kept].any()
    # t follows from the one equation, and must be the same number in all of them.
    rest = -gradient - fisher @ found[kept]
    t = float(rest @ found[kept] / found[kept].square().sum())
    expected = torch.linalg.solve(fisher + t * torch.eye(len(fisher), dtype=torch.float64), -gradient)
    torch.testing.assert_close(found[kept], expected, rtol=2e-3, atol=1e-3 * float(expected.abs().max()))
    # And it is the damping times the mean eigenvalue that is not 0, but for the noise of one probe.
    eigenvalues = torch.linalg.eigvalsh(fisher)
    assert 0.5 < t / (damping * float(eigenvalues[-40:].mean())) < 2


def test_a_refused_step_is_tried_again_with_more_damping_on_the_same_batch(monkeypatch):
    """From a damping far too small every step is refused, until the damping has been raised enough."""
    session, mask = begun(networks.mlp(samples=200), density=0.3)
    _, guard = session.divided(Batches())
    before = session.mean_loss(guard)
    asked, recorded = [], []
    solve, record = FisherSteps._solve, Session.record

    def hear(self, tape, mask, damping, seed, step, *_):
        asked.append((step, damping))
        move = solve(self, tape, mask, damping, seed, step)
        return {n: m * (100.0 if damping < 0.5 else 1.0) for n, m in move.items()}

    def count(self, *words, **more):
        recorded.append(words)
        return record(self, *words, **more)

    monkeypatch.setattr(FisherSteps, "_solve", hear)
    monkeypatch.setattr(Session, "record", count)
    _, found = FisherSteps(steps=1, damping=0.001)(session, mask, {})
    assert [step for step, _ in asked] == [0] * len(asked)
    assert [d for _, d in asked] == pytest.approx([0.001 * 8**n for n in range(len(asked))])
    assert asked[-1][1] >= 0.5
    assert len(recorded) == 1
    session.network.write(mask, found)
    assert session.mean_loss(guard) < before


def test_many_steps_in_a_row_do_not_wear_the_damping_out(monkeypatch):
    session, mask = begun(networks.mlp())
    asked = []

    def standing(self, tape, mask, damping, seed, step, *_):
        asked.append(damping)
        return {n: torch.zeros_like(tape.layers[n].gradient) for n in mask}

    monkeypatch.setattr(FisherSteps, "_solve", standing)
    losses = iter(range(10_000, 0, -1))
    monkeypatch.setattr(Session, "mean_loss", lambda *_: float(next(losses)))
    FisherSteps(steps=60)(session, mask, {})
    assert asked[:3] == [1.0, 0.5, 0.25]
    assert min(asked) == asked[-1] == fisher_steps._LEAST


def test_steps_that_never_help_end_and_change_nothing(monkeypatch):
    session, mask = begun(networks.mlp(samples=200))
    asked = []

    def uphill(self, tape, mask, damping, seed, step, *_):
        asked.append(step)
        return {n: tape.layers[n].gradient * m for n, m in mask.items()}

    monkeypatch.setattr(FisherSteps, "_solve", uphill)
    monkeypatch.setattr(fisher_steps, "_LENGTHS", (10.0, 1.0))
    _, found = FisherSteps(steps=2)(session, mask, {})
    assert asked == [0] * fisher_steps._ATTEMPTS + [1] * fisher_steps._ATTEMPTS
    for name, weight in found.items():
        assert torch.equal(weight, session.network.reference[name] * mask[name])
    assert session.network.holds(mask, found)


@pytest.mark.slow
@pytest.mark.assets
def test_far_from_a_minimum_the_fisher_steps_gain(assets):
    """Half of a language model cut by magnitude: the first steps used to be refused one after the other."""
    from secateur.pretrained import load_pretrained
    from secateur.tasks.text import Text

    pytest.importorskip("transformers", reason="language models need transformers")
    text = assets / "data" / "tinystories" / "tinystories_train_head_197k.txt"
    path = str(assets / "models" / "stories260K")
    task = Text(str(text), path, context=64, limit=80, evaluation_limit=20).task()
    model = load_pretrained(path, "float32")
    run = prune(model, task, MAGNITUDE, density=0.5, refit=FisherSteps(steps=2, iterations=10, samples=48))
    found = run.report["evaluation"]
    assert found["pruned"]["loss"] < found["masked"]["loss"] - 0.4
    assert isinstance(run.mask, Mask)


def test_a_state_comes_back_in_the_order_of_the_model():
    """A file sorts its tensors, and sums over layers in another order are not the same to the bit."""
    layers = {"b": torch.ones(1, 2, dtype=torch.bool), "a": torch.zeros(2, 1, dtype=torch.bool)}
    state = State(Mask(layers), Mask(layers), Mask(layers), scores={n: m.float() for n, m in layers.items()})
    tensors = dict(sorted(state.tensors().items()))
    numbers = json.loads(json.dumps(state.numbers()))
    back = State.rebuild(tensors, numbers, torch.device("cpu"))
    assert list(back.mask) == list(back.best) == list(back.scores) == ["b", "a"]


def test_a_refit_that_does_harm_is_said_to(monkeypatch):
    harm = FisherSteps()
    monkeypatch.setattr(
        FisherSteps, "__call__", lambda self, s, mask, w: (mask, {n: 50.0 * m for n, m in mask.items()})
    )
    net = networks.mlp()
    run = prune(net.model, net.task, MAGNITUDE, density=0.5, refit=harm)
    assert run.report["evaluation"]["pruned"]["loss"] > run.report["evaluation"]["masked"]["loss"]
    assert any("the refit made the loss larger" in notice for notice in run.report["notices"])


def test_fewer_positions_than_inputs_are_said_to_be_too_few():
    net = networks.mlp(samples=200)
    few = SparseGPT(samples=3)
    run = prune(net.model, net.task, few, density=0.5)
    assert any("is singular, as 3 calibration positions are fewer" in n for n in run.report["notices"])


# One after the other.


@dataclass(frozen=True)
class Scaled(Refit):
    """Multiplies the kept weights of the last layer, which is seldom a good idea."""

    part_name: ClassVar[str] = "scaled"
    factor: float = 10.0

    def __call__(self, session, mask, weights):
        last = list(mask)[-1]
        return mask, {last: self.factor * weights.get(last, session.network.reference[last])}


def test_a_second_refit_that_does_harm_is_undone():
    one, run = go(GRADIENT), go(Successive(GRADIENT, Scaled()))
    for name, weight in weights_of(one).items():
        assert torch.equal(weights_of(run)[name], weight)


def test_a_first_refit_that_raises_the_loss_may_be_made_up_for():
    one, run = go(GRADIENT), go(Successive(Scaled(), Successive(Scaled(0.1), GRADIENT)))
    for name, weight in weights_of(one).items():
        torch.testing.assert_close(weights_of(run)[name], weight, rtol=1e-6, atol=1e-9)


def test_refits_that_help_follow_on_one_another():
    first, both = go(LeastSquares()), go(Successive(LeastSquares(), GRADIENT))
    masked = first.report["evaluation"]["masked"]["loss"]
    assert first.report["evaluation"]["pruned"]["loss"] < masked
    assert both.report["evaluation"]["pruned"]["loss"] < first.report["evaluation"]["pruned"]["loss"]
    worse = go(Successive(Scaled(1e6), Scaled(-1e6)))
    assert worse.report["evaluation"]["pruned"] == worse.report["evaluation"]["masked"]
    assert any("refits were undone, as neither lowered" in notice for notice in worse.report["notices"])


@pytest.mark.parametrize(
    ("second", "taken"),
    [([0.4, 0.6, 0.3, 0.5], False), ([0.4, 0.5, 0.3, 0.4], True)],
    ids=["chance", "surely"],
)
def test_the_second_must_be_better_by_more_than_two_standard_errors(second, taken, monkeypatch):
    """Of the paired differences from the first: 0.05 and 0.05 nats in one case, 0.1 and 0.04 in the other."""
    session, mask = begun(networks.mlp())
    losses = iter(torch.tensor([[1.0] * 4, [0.5] * 4, second], dtype=torch.float64))
    monkeypatch.setattr(Session, "losses", lambda *_: next(losses))
    last = list(mask)[-1]
    _, found = Successive(Scaled(3.0), Scaled(2.0))(session, mask, {})
    factor = 6.0 if taken else 3.0
    assert torch.equal(found[last], factor * session.network.reference[last])


@dataclass(frozen=True)
class Watching(Refit):
    """Notes down how much time there is."""

    part_name: ClassVar[str] = "watching"
    share: float = 0.0
    seen: list[float] = field(default_factory=list)

    def __call__(self, session, mask, weights):
        self.seen.append(session.remaining())
        return mask, {}


def test_what_goes_by_the_time_that_remains_leaves_the_second_its_share():
    session, mask = begun(networks.mlp())
    session.remaining = lambda: 8.0
    first, second = Watching(0.2), Watching(0.6)
    Successive(first, second)(session, mask, {})
    assert (first.seen, second.seen, session.remaining()) == ([pytest.approx(2.0)], [8.0], 8.0)


@pytest.mark.parametrize("refit", [LeastSquares(samples=401), Successive(LeastSquares(samples=401))])
def test_more_samples_than_there_are_are_refused_at_once(refit, tmp_path):
    with pytest.raises(SecateurError, match="samples is 401, but there are only 320 calibration samples"):
        go(refit, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_refit_for_which_the_gpu_is_too_small_keeps_the_mask_and_says_what_to_do(monkeypatch):
    def fill(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.86 GiB.")

    monkeypatch.setattr(FisherSteps, "__call__", fill)
    run = go(FISHER_STEPS)
    assert run.mask.same_as(go().mask)
    assert any("the refit failed" in said and "--memory" in said for said in run.report["notices"])


def test_successive_refits_need_a_judge_and_leave_time():
    with pytest.raises(SecateurError, match="judged by guard samples"):
        Successive(batches=Batches(guard=0))
    with pytest.raises(SecateurError, match="hold back 140% of the budget"):
        Successive(GradientSteps(time=0.7), GradientSteps(time=0.7))
