"""Distillation: the distance from the trained network against autograd by hand, and what runs make of it."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from secateur import ICBS, GradientSteps, LearnedMask, SecateurError, prune
from secateur.allocation import Uniform
from secateur.capture.inputs import listening
from secateur.capture.replay import Replay
from secateur.core.layer import find_layers
from secateur.core.task import Task
from secateur.pruners import Averaging, Batches, Network, Session
from secateur.runs.memory import plan
from secateur.runs.prune import _settings
from secateur.tasks.causal_lm import IGNORED, CausalLM
from secateur.tasks.classification import Classification
from secateur.tasks.divergence import softened_divergence
from secateur.testing import networks

AVERAGING = Averaging(length=3, samples=8)
WARM = replace(AVERAGING, temperature=4.0)
# Without a guard the last mask is the result, whatever it is worth.
LAST = Batches(guard=0)
REFIT = GradientSteps(steps=6, samples=8)


def with_norms():
    """A perceptron with BatchNorm, in float64."""
    parts = (nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    return networks.furnish(nn.Sequential(*parts), (6,), 0, 60)


def session_of(model, task, **more) -> Session:
    network = Network(model)
    return Session(network, task, Uniform().budget(network.shapes, 0.5, "layer"), 0, **more)


def halved(session) -> dict[str, torch.Tensor]:
    """Write half the weights to the model; give the whole ones."""
    reference = session.network.reference
    session.network.write(session.network.dense_mask(), {n: 0.5 * w for n, w in reference.items()})
    return reference


class Bigrams(nn.Module):
    """A language model: the next token by the one before."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.embed = nn.Embedding.from_pretrained(torch.randn(7, 5, generator=draw, dtype=torch.float64))
        self.head = nn.Linear(5, 7).double()

    def forward(self, input_ids, **_):
        return self.head(self.embed(input_ids))


# The distance.


@settings(deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.5, 1.0, 4.0]))
def test_divergence_is_that_of_the_softened_distributions(seed, temperature):
    draw = torch.Generator().manual_seed(seed)
    logits, trained = torch.randn(2, 3, 5, generator=draw, dtype=torch.float64)
    p, q = (torch.distributions.Categorical(logits=x / temperature) for x in (logits, trained))
    expected = temperature**2 * torch.distributions.kl_divergence(q, p)
    torch.testing.assert_close(softened_divergence(logits, trained, temperature), expected)
    assert (softened_divergence(logits, trained, temperature) >= 0).all()
    assert softened_divergence(trained, trained + 3.0, temperature).abs().max() < 1e-12


def test_at_high_temperatures_it_is_half_the_variance_of_the_differences():
    draw = torch.Generator().manual_seed(0)
    logits, trained = torch.randn(2, 4, 6, generator=draw, dtype=torch.float64)
    expected = (logits - trained).var(-1, correction=0) / 2
    torch.testing.assert_close(softened_divergence(logits, trained, 1e4), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.1, 4.0])
def test_masked_labels_add_nothing_and_have_no_gradient(kind, temperature):
    draw = torch.Generator().manual_seed(0)
    logits, trained = torch.randn(2, 3, 5, generator=draw).to(kind)
    for each in (logits, trained):
        each[:, 2] = -torch.inf
    logits.requires_grad_()
    found = softened_divergence(logits, trained, temperature)
    others = [0, 1, 3, 4]
    torch.testing.assert_close(found, softened_divergence(logits[:, others], trained[:, others], temperature))
    found.sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[:, 2].any()
    assert logits.grad[:, others].any()


def test_half_precision_is_widened():
    logits, trained = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(0)).half()
    found = softened_divergence(logits, trained, 2.0)
    torch.testing.assert_close(found, softened_divergence(logits.float(), trained.float(), 2.0))


def test_positions_that_do_not_count_are_left_out_of_a_sequences_mean():
    task = CausalLM.from_ids(torch.randint(7, (4, 5), generator=torch.Generator().manual_seed(0)))
    logits, trained = torch.randn(2, 2, 5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    targets = torch.tensor([[1, IGNORED, 2, IGNORED, IGNORED], [1, 2, 3, 4, IGNORED]])
    each = softened_divergence(logits, trained, 2.0)
    expected = torch.stack([each[0, [0, 2]].mean(), each[1, :4].mean()])
    torch.testing.assert_close(task.divergences(logits, trained, targets, 2.0), expected)


# Its gradient.


def bigrams():
    ids = torch.randint(7, (30, 6), generator=torch.Generator().manual_seed(0))
    return Bigrams(), CausalLM.from_ids(ids)


def classifier():
    net = networks.mlp()
    return net.model.double(), net.task


@pytest.mark.parametrize("make", [classifier, bigrams])
@pytest.mark.parametrize("chunk", [None, 3])
def test_gradient_is_autograds(make, chunk):
    model, task = make()
    session = session_of(model, task, chunk=chunk)
    index = torch.arange(8)
    batch = session.batch(index)
    trained = task.forward(model, batch).detach()
    halved(session)
    loss, found = session.gradient(index, temperature=3.0)
    weights = [layer.parameter for layer in session.network.layers]
    for weight in weights:
        weight.requires_grad_(True)
    outputs = task.forward(model, batch)
    own = task.divergences(outputs, trained, batch.targets, 3.0).mean()
    # What is given beside the gradient is the loss all the same, as in every log.
    assert loss == pytest.approx(float(task.losses(outputs, batch.targets).mean().detach()), rel=1e-9)
    for layer, expected in zip(session.network.layers, torch.autograd.grad(own, weights), strict=True):
        torch.testing.assert_close(found[layer.name], layer.view(expected), rtol=1e-7, atol=1e-10)


def test_the_trained_network_is_no_distance_from_itself():
    model, task = classifier()
    _, gradients = session_of(model, task).gradient(torch.arange(8), temperature=4.0)
    assert max(float(g.abs().max()) for g in gradients.values()) < 1e-9


def test_variants_are_compared_with_variants():
    pictures = torch.randn(20, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    task = Classification.from_arrays(pictures, torch.arange(20) % 4).augmented(flip=True, shift=2)
    torch.manual_seed(0)
    session = session_of(nn.Sequential(nn.Flatten(), nn.Linear(36, 4)), task)
    _, gradients = session.gradient(torch.arange(8), variant=3, temperature=2.0)
    assert max(float(g.abs().max()) for g in gradients.values()) < 1e-6


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_holds_what_it_held(fails, monkeypatch):
    net = with_norms()
    session = session_of(net.model, net.task)
    halved(session)
    net.model[1].running_mean += 1
    before = {name: value.clone() for name, value in net.model.state_dict().items()}
    if fails:
        monkeypatch.setattr(type(net.task), "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            session.gradient(torch.arange(8), temperature=2.0)
    else:
        session.gradient(torch.arange(8), temperature=2.0)
    assert all(torch.equal(value, before[name]) for name, value in net.model.state_dict().items())


def test_statistics_that_were_estimated_anew_are_not_the_trained_networks():
    net = with_norms()
    session = session_of(net.model, net.task)
    index = torch.arange(8)
    trained = net.task.forward(net.model.eval(), session.batch(index)).detach()
    net.model[1].running_mean += 1
    _, found = session.gradient(index, temperature=2.0)
    weight = net.model[3].weight.requires_grad_()
    own = softened_divergence(net.task.forward(net.model, session.batch(index)), trained, 2.0).mean()
    torch.testing.assert_close(found["3"], torch.autograd.grad(own, weight)[0], rtol=1e-7, atol=1e-10)
    assert own > 1e-3


def test_nor_are_they_in_what_least_squares_aim_at():
    net = with_norms()
    layers = find_layers(net.model)
    network = Network(net.model)
    batches = [net.task.batch("calibration", torch.arange(20), torch.device("cpu"))]
    rows = []
    with torch.no_grad(), listening(layers, lambda name, x: rows.append(x.tensor.clone())):
        net.task.forward(net.model.eval(), batches[0])
    net.model[1].running_mean += 1
    replay = Replay(net.model, net.task, batches, layers, gram=True, trained=network.trained)
    with torch.no_grad(), listening(layers, lambda name, x: rows.append(x.tensor.clone())):
        net.task.forward(net.model, batches[0])
    cross = [replay.moments(number)[layer.name].cross for number, layer in enumerate(layers)]
    torch.testing.assert_close(cross[1], rows[1].T @ rows[3])
    assert not torch.allclose(rows[1], rows[3])


# Runs.


def distance(run, task, dense) -> float:
    """How far a pruned network is from the trained one, nats a sample."""
    batch = task.batch("calibration", torch.arange(task.size("calibration")), torch.device("cpu"))
    with torch.no_grad():
        outputs, trained = (task.forward(model.eval(), batch) for model in (run.model, dense))
    return float(task.divergences(outputs, trained, batch.targets, 1.0).mean())


@pytest.mark.parametrize("pruner", [ICBS, LearnedMask])
def test_masks_come_closer_to_the_trained_network(pruner):
    more = {"batches": LAST} if pruner is ICBS else {"guard": 0}
    far = {}
    for temperature in (None, 1.0):
        net = networks.mlp(samples=200)
        averaging = Averaging(length=20, samples=50, rate=0.1, temperature=temperature)
        run = prune(net.model, net.task, pruner(averaging=averaging, **more), density=0.5, budget="5steps")
        assert run.report["weights"] == "mask only"
        far[temperature] = distance(run, net.task, networks.mlp(samples=200).model)
    assert far[1.0] < 0.7 * far[None]


def test_a_refit_comes_closer_to_the_trained_network_than_the_loss_leads():
    far = {}
    for temperature in (None, 1.0):
        net = networks.mlp(samples=200)
        refit = GradientSteps(steps=200, samples=50, passes=float("inf"), batches=LAST)
        refit = replace(refit, temperature=temperature)
        pruner = ICBS(averaging=AVERAGING, batches=LAST)
        run = prune(net.model, net.task, pruner, density=0.5, budget="1steps", refit=refit)
        far[temperature] = distance(run, net.task, networks.mlp(samples=200).model)
    assert far[1.0] < 0.5 * far[None]


def test_a_resumed_run_is_the_same_and_another_temperature_is_refused(tmp_path):
    def go(out, temperature, **more):
        net = networks.mlp(samples=60)
        pruner = ICBS(averaging=replace(AVERAGING, temperature=temperature), batches=LAST)
        return prune(net.model, net.task, pruner, density=0.5, out=tmp_path / out, budget="6steps", **more)

    def stopped():
        return (tmp_path / "cut/state.safetensors").exists()

    whole = go("whole", 2.0)
    assert go("cut", 2.0, stop=stopped).report["steps"] < 6
    with pytest.raises(SecateurError, match="made with another setting"):
        go("cut", 3.0, resume=True)
    assert go("cut", 2.0, resume=True).mask.same_as(whole.mask)


@pytest.mark.parametrize("value", [0.0, -1.0, 101.0, float("inf"), float("nan")])
@pytest.mark.parametrize("part", [Averaging, GradientSteps])
def test_temperatures_out_of_range_are_refused(part, value):
    with pytest.raises(SecateurError, match=r"temperature of .* must be above 0 and at most 100, not"):
        part(temperature=value)


class Regression(Classification):
    """A task that does not say how outputs are compared."""

    divergences = Task.divergences


@pytest.mark.parametrize(
    ("averaging", "refit"),
    [(WARM, None), (AVERAGING, replace(REFIT, temperature=2.0))],
    ids=["mask", "refit"],
)
def test_a_task_that_cannot_compare_outputs_is_refused_at_once(averaging, refit):
    net = networks.mlp()
    task = object.__new__(Regression)
    task.__dict__.update(net.task.__dict__)
    heard = []
    with pytest.raises(SecateurError, match=r"^Regression does not say how outputs are compared .*: leave"):
        prune(
            net.model, task, ICBS(averaging=averaging), density=0.5, budget="2steps", refit=refit,
            listeners=[heard.append],
        )  # fmt: skip
    assert not heard
    assert ICBS(averaging=WARM).distils
    with pytest.raises(SecateurError, match="share = 0 leaves it no time"):
        ICBS(averaging=WARM, share=0.0)


def test_folders_that_are_older_than_temperatures_are_gone_on_with():
    for plain, warm in ((ICBS(), ICBS(averaging=WARM)), (REFIT, replace(REFIT, temperature=2.0))):
        assert "temperature" not in _settings(plain)
        assert _settings(plain) == repr(plain).replace(", temperature=None", "")
        assert _settings(warm) == repr(warm)


def test_memory_that_is_foreseen_has_the_weights_put_aside():
    needs = {}
    for temperature in (None, 2.0):
        net = networks.mlp()
        averaging = replace(AVERAGING, temperature=temperature)
        refit = replace(REFIT, temperature=temperature)
        session = session_of(net.model, net.task)
        needs[temperature] = [
            plan(session, part, after, None)
            for part, after in ((ICBS(averaging=averaging), None), (ICBS(averaging=AVERAGING), refit))
        ]
    weights = sum(layer.size for layer in find_layers(networks.mlp().model))
    graded = ICBS(averaging=AVERAGING).gradient_samples(session)
    for plain, warm in zip(needs[None], needs[2.0], strict=True):
        assert warm.pruner - plain.pruner == pytest.approx(1.1 * 4 * weights, abs=2)
        # Three times four outputs in float64, for each of the samples that gradients are taken of.
        assert warm.passes - plain.passes == pytest.approx(1.1 * 8 * 3 * 4 * graded, abs=2)
