"""Memory: amounts in words, passes that give the same however they are divided, and a bound that holds."""

import json
import re

import pytest
import torch
from torch import nn

from secateur import ICBS, Classification, GradientSteps, OneShot, SecateurError, prune
from secateur.allocation import Uniform
from secateur.capture import footprint
from secateur.capture.live import LiveBytes
from secateur.cli.app import run as command
from secateur.core.records import SampleGradients
from secateur.core.sizes import in_words, parse_bytes
from secateur.core.tape import Tape
from secateur.curvature import EmpiricalFisher, Fisher, GaussNewton
from secateur.models import ViT
from secateur.pruners import Batches, Network, Session, Stage
from secateur.runs.memory import Needs, plan
from secateur.scores import Gradient, Magnitude, Wanda
from secateur.solvers import Swaps
from secateur.tasks.causal_lm import CausalLM
from secateur.testing import networks

STAGES = ICBS(solver=Swaps(), stage=Stage(blocks=3, block_size=16), batches=Batches(size=8), share=0.0)
SAMPLES = torch.tensor([0, 5, 3, 9, 1, 20, 30])


def session_of(net, **more) -> Session:
    network = Network(net.model)
    return Session(network, net.task, Uniform().budget(network.shapes, 0.5, "layer"), 0, **more)


def a_llama():
    transformers = pytest.importorskip("transformers", reason="language models need transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(
        **sizes, num_attention_heads=2, max_position_embeddings=64, initializer_range=0.3
    )
    ids = torch.randint(16, (16, 8), generator=torch.Generator().manual_seed(1))
    return transformers.LlamaForCausalLM(config).eval(), CausalLM.from_ids(ids)


def a_vit():
    pictures = torch.randn(20, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = ViT(channels=3, size=(16, 16), patch=4, width=32, depth=2, heads=2, classes=4).build()
    return model.eval(), Classification.from_arrays(pictures, torch.arange(20) % 4)


# Amounts in words.


@pytest.mark.parametrize(
    ("words", "amount"),
    [
        ("8GB", 8e9), ("500 MB", 5e8), ("1.5GiB", 1.5 * 2**30), ("10k", 1e4), ("2 kib", 2048), ("3T", 3e12),
        ("123", 123), ("7B", 7), (" 1 gb ", 1e9), ("2TiB", 2 * 2**40),
    ],
)  # fmt: skip
def test_amounts_are_read(words, amount):
    assert parse_bytes(words) == int(amount)


@pytest.mark.parametrize("words", ["", "much", "-3GB", "0", "0.0GB", "8 GBs", "1e9", "GB", "8,5GB"])
def test_amounts_that_cannot_be_read(words):
    with pytest.raises(SecateurError, match=rf"memory is '{re.escape(words)}': give an amount such as 8GB"):
        parse_bytes(words)


def test_amounts_are_written_and_read_back():
    assert [in_words(x) for x in (12, 1500, 2.5e6, 8e9, 1.25e12)] == [
        "0.012 kB", "1.5 kB", "2.5 MB", "8 GB", "1.25 TB"
    ]  # fmt: skip
    for amount in (999, 4321, 10**6, 123_456_789, 7 * 10**11, 5 * 10**14):
        assert parse_bytes(in_words(amount)) == pytest.approx(amount, rel=0.006)


# Passes of a few samples.


@pytest.mark.parametrize("make", [networks.mlp, networks.positions, networks.shared_weight, networks.frozen])
@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_losses_and_gradients_do_not_depend_on_the_passes(make, chunk):
    whole, parts = session_of(make()), session_of(make(), chunk=chunk)
    torch.testing.assert_close(parts.losses(SAMPLES), whole.losses(SAMPLES), rtol=1e-10, atol=1e-12)
    loss, gradients = whole.gradient(SAMPLES)
    other, found = parts.gradient(SAMPLES)
    assert other == pytest.approx(loss, rel=1e-10)
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("make", [networks.mlp, networks.positions, networks.shared_weight])
@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("curvature", [EmpiricalFisher(), GaussNewton()], ids=["empirical", "gauss-newton"])
def test_records_do_not_depend_on_the_passes(make, chunk, curvature):
    whole, parts = session_of(make()), session_of(make(), chunk=chunk)
    one = whole.record(whole.batch(SAMPLES), curvature.needs, 2)
    other = parts.record(parts.batch(SAMPLES), curvature.needs, 2)
    torch.testing.assert_close(other.losses, one.losses, rtol=1e-10, atol=1e-12)
    for name, tape in one.layers.items():
        joined = other.layers[name]
        torch.testing.assert_close(joined.gradient, tape.gradient, rtol=1e-10, atol=1e-12)
        assert joined.rows.shape == tape.rows.shape
        everything = torch.arange(tape.gradient.numel())
        products = [x.factors(everything) @ x.factors(everything).T for x in (joined, tape)]
        torch.testing.assert_close(*products, rtol=1e-9, atol=1e-12)
        if curvature.draws == 1:
            torch.testing.assert_close(joined.rows, tape.rows, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("draws", [1, 2])
def test_drawn_labels_stay_with_their_samples(draws):
    """Rows are numbered draw by draw, also where a batch is passed in parts: the diagonal says so."""
    curvature = Fisher(draws=draws)
    session = session_of(networks.positions(), chunk=3)
    tape = session.record(session.batch(SAMPLES), curvature.needs, 2, draws)
    for name, layer in tape.layers.items():
        assert layer.rows.shape[1:3] == (draws, 7), name
        rows = layer.factors(torch.arange(layer.gradient.numel()))
        assert rows.shape[1] == 7 * draws
        squares = rows.square().sum(1).reshape(layer.gradient.shape) / 7
        torch.testing.assert_close(layer.diagonal(), squares, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(layer.pullback(torch.ones(7 * draws)).flatten(), rows.sum(1))


def test_joined_tapes_are_given_away():
    session = session_of(networks.mlp())
    tapes = [session.record(session.batch(part), EmpiricalFisher().needs, 0) for part in SAMPLES.split(2)]
    assert Tape.join(tapes).samples == 7
    assert not tapes


@pytest.mark.parametrize("score", [Gradient(), Wanda()], ids=["gradient", "wanda"])
def test_the_one_shot_mask_does_not_depend_on_the_passes(score):
    whole, parts = session_of(networks.positions()), session_of(networks.positions(), chunk=2)
    assert parts.one_shot(score, SAMPLES)[0].same_as(whole.one_shot(score, SAMPLES)[0])


def test_a_language_model_is_passed_in_parts():
    model, task = a_llama()
    network = Network.of(model.double(), task, None)
    budget = Uniform().budget(network.shapes, 0.5, "layer")
    index = torch.arange(10)
    (loss, whole), (other, parts) = (
        Session(network, task, budget, 0, chunk=chunk).gradient(index) for chunk in (None, 4)
    )
    assert other == pytest.approx(loss, rel=1e-6)  # Llama normalises in float32, whatever its weights
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-7)


# Records of some layers at a time.


@pytest.mark.parametrize("layers", [1, 1.7, 3, 1000])
def test_groups_of_layers_cover_all_and_respect_the_room(layers):
    model, task = a_llama()
    network = Network.of(model, task, None)
    session = Session(network, task, Uniform().budget(network.shapes, 0.5, "layer"), 0)
    plan(session, STAGES, None, None)
    assert set(session.positions.values()) == {8}
    assert session.recorded(0, 8, 1) == network.layers  # without a bound
    largest = max(session.record_bytes(layer, 8, 1) for layer in network.layers)
    session.room = int(layers * largest)
    groups = []
    while len(groups) < 2 or groups[-1] != groups[0]:
        groups.append(session.recorded(len(groups), 8, 1))
        assert len(groups) < 100
        if layers == 1000:
            break
    for group in groups:
        assert sum(session.record_bytes(layer, 8, 1) for layer in group) <= session.room
    seen = [layer.name for group in groups[: max(1, len(groups) - 1)] for layer in group]
    assert seen == [layer.name for layer in network.layers]
    assert (len(groups) == 1) == (layers == 1000)


@pytest.mark.parametrize("draws", [1, 2])
def test_records_take_what_is_foreseen(draws):
    model, task = a_llama()
    network = Network.of(model, task, None)
    session = Session(network, task, Uniform().budget(network.shapes, 0.5, "layer"), 0)
    plan(session, STAGES, None, None)
    tape = session.record(session.batch(torch.arange(5)), Fisher(draws=draws).needs, 0, draws)
    for layer in network.layers:
        one = tape.layers[layer.name]
        assert isinstance(one, SampleGradients) == (
            8 * (layer.shape[1] + draws * layer.shape[0]) >= draws * layer.size
        )
        inputs = [] if isinstance(one, SampleGradients) else [one.inputs]
        held = sum(4 * tensor.numel() for tensor in (*inputs, one.gradient, one.rows))
        # Beside the tape: the gradient of the point reached, the diagonal, the gains, and sorting them.
        assert session.record_bytes(layer, 5, draws) == held + 9 * 4 * layer.size


def test_the_footprint_grows_with_the_sample_and_leaves_weights_out():
    model, task = a_llama()
    network = Network.of(model, task, None)
    batch = task.batch("calibration", torch.arange(1), torch.device("cpu"))
    one = footprint(model, task, batch, network.layers)
    two = footprint(
        model, task, task.batch("calibration", torch.arange(2), torch.device("cpu")), network.layers
    )
    assert two.graph == pytest.approx(one.graph, rel=0.1)  # bytes a sample
    assert one.positions == dict.fromkeys(network.shapes, 8)
    # At the least, the input of each layer is kept.
    assert one.graph > 4 * 8 * (16 + 16 + 24)
    assert not any(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(("inplace", "most"), [(False, 8000), (True, 4016)])
def test_live_bytes_are_those_of_what_is_held_at_the_same_time(inplace, most):
    model = nn.Sequential(nn.Linear(4, 1000), nn.ReLU(inplace), nn.Flatten(), nn.Linear(1000, 4))
    inputs = torch.ones(1, 4)
    with torch.no_grad(), LiveBytes() as live:
        outputs = model(inputs)
        model[0].weight.zero_()  # was there before
        inputs.add_(1)
    assert live.peak == most
    assert live.now == 16
    del outputs
    assert live.now == 0


class Graph(nn.Module):
    """Multiplies with a sparse matrix, which has no storage of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 4)
        self.register_buffer("edges", torch.eye(6).to_sparse())

    def forward(self, x):
        return self.last(torch.sparse.mm(self.edges, self.first(x.float()).T).T)


def test_networks_with_sparse_matrices_are_measured_too():
    net = networks.mlp()
    batch = net.task.batch("calibration", torch.arange(1), torch.device("cpu"))
    model = Graph()
    found = footprint(model, net.task, batch, Network(model).layers)
    assert found.forward > 4 * 6
    assert found.graph > 4 * 6


@pytest.mark.parametrize("make", [a_llama, lambda: (networks.mlp().model, networks.mlp().task), a_vit])
def test_passes_take_what_is_foreseen(make):
    model, task = make()
    session = Session(
        network := Network.of(model, task, None), task, Uniform().budget(network.shapes, 0.5, "layer"), 0
    )
    one = footprint(model, task, session.batch(torch.tensor([0])), network.layers)
    with LiveBytes() as live:
        session.losses(torch.arange(8))
    assert 0.7 * 8 * one.forward < live.peak <= 1.1 * 8 * one.forward


# A bound on the run.


def named(error: SecateurError) -> str:
    """Give the amount that a refusal names."""
    return re.search(r"--memory (\S+),", str(error))[1]


@pytest.mark.parametrize("pruner", [STAGES, OneShot(Magnitude())], ids=["stages", "one-shot"])
@pytest.mark.parametrize("refit", [None, GradientSteps(steps=2)], ids=["mask", "refit"])
def test_too_little_is_refused_and_the_amount_named_works(pruner, refit):
    model, task = a_llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(SecateurError, match=r"1 kB of memory are not enough: the run will need") as raised:
        prune(model, task, pruner, density=0.5, budget="1steps", refit=refit, memory="1kB")
    assert "\n" not in str(raised.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    amount = named(raised.value)
    run = prune(model, task, pruner, density=0.5, budget="1steps", refit=refit, memory=amount)
    held = run.report["memory"]
    assert held["total"] <= parse_bytes(amount)
    assert held["chunk"] >= 1
    less = f"{int(0.9 * parse_bytes(amount))}"
    with pytest.raises(SecateurError, match="are not enough"):
        prune(a_llama()[0], task, pruner, density=0.5, budget="1steps", refit=refit, memory=less)


def test_the_report_says_what_memory_was_for():
    model, task = a_llama()
    run = prune(model, task, STAGES, density=0.5, budget="2steps", memory="50MB")
    held = run.report["memory"]
    parts = ("model", "reference", "pruner", "passes", "records", "chunk")
    assert set(held) == {*parts, "total", "peak"}
    assert held["model"] == sum(4 * p.numel() for p in model.parameters()) + sum(
        buffer.numel() * buffer.element_size() for buffer in model.buffers()
    )
    assert held["reference"] == sum(4 * mask.numel() for mask in run.mask.values())
    assert held["total"] == Needs(*(held[part] for part in parts)).total <= 50e6
    assert held["peak"] > held["model"]
    assert any("the run will need about" in notice for notice in run.report["notices"])


def test_a_tight_bound_divides_passes_and_stages_and_more_room_does_not():
    model, task = a_llama()
    with pytest.raises(SecateurError) as raised:
        prune(model, task, STAGES, density=0.5, budget="1steps", memory="1kB")
    few = []
    tight = prune(
        model, task, STAGES, density=0.5, budget="3steps", memory=named(raised.value), listeners=[few.append]
    )
    steps = [event for event in few if type(event).__name__ == "Stepped"]
    layers = [set(event.layers) for event in steps if event.layers]
    assert not all(found & layers[0] for found in layers)  # not one and the same group all the time
    assert tight.mask.density == pytest.approx(0.5, abs=1e-3)
    wide = prune(a_llama()[0], task, STAGES, density=0.5, budget="3steps", memory="1GB").report["memory"]
    assert wide["chunk"] > tight.report["memory"]["chunk"] == 1


def test_a_classifier_gets_a_bound_only_where_asked():
    free = networks.mlp(samples=200)
    run = prune(free.model, free.task, STAGES, density=0.5, budget="4steps")
    assert set(run.report["memory"]) == {"peak"}
    bound = networks.mlp(samples=200)
    bounded = prune(bound.model, bound.task, STAGES, density=0.5, budget="4steps", memory="1MB")
    assert bounded.report["memory"]["total"] <= 1e6
    assert bounded.mask.same_as(run.mask)  # room for everything: nothing changes


def test_memory_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["prune", "digits", "--budget", "1steps", "--epochs", "1", "--quiet", "--share", "0"]
    assert command([*words, "--memory", "lots", "--out", "a"]) == 2
    assert "memory is 'lots': give an amount such as 8GB or 500MB." in capsys.readouterr().err
    assert command([*words, "--memory", "10kB", "--out", "a"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "10 kB of memory are not enough" in said
    amount = re.search(r"--memory (\S+),", said)[1]
    assert not (tmp_path / "a").exists()
    assert command([*words, "--memory", amount, "--out", "a"]) == 0
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert 0 < report["memory"]["total"] <= parse_bytes(amount)
    assert f'memory = "{amount}"' in (tmp_path / "a" / "recipe.toml").read_text()
