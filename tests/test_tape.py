"""The tape against autograd, one sample at a time, in float64."""

import weakref

import pytest
import torch
import torch.utils.checkpoint

import secateur.capture.record as capture_module
from secateur.capture import capture
from secateur.core.block import Block
from secateur.core.errors import SecateurError
from secateur.core.layer import find_layers
from secateur.core.seeds import generator
from secateur.core.signal import Signal
from secateur.curvature import EmpiricalFisher, Fisher, GaussNewton, Hessian, MeanGradient
from secateur.testing import networks, oracles

WORKING = [
    networks.mlp,
    networks.shared_weight,
    networks.positions,
    networks.inplace_relu,
    networks.frozen,
    networks.keyword,
    networks.caching,
]
GRADIENT = frozenset({Signal.GRADIENT})


def recorded(make, needs, draws=1, seed=3, verify=False):
    """Record a batch of nine samples of a tiny network."""
    net = make()
    layers = find_layers(net.model)
    batch = net.task.batch("calibration", torch.arange(9), torch.device("cpu"))
    tape = capture(net.model, net.task, batch, layers, needs, generator(seed, "labels"), draws, verify=verify)
    for layer in layers:
        layer.weight.requires_grad_(True)  # so that the oracle works on the frozen network, too
    return net, layers, batch, tape


def everything(layers) -> Block:
    """Make a block of all weights, out of order within each layer."""
    return Block({layer.name: torch.arange(layer.size).flip(0) for layer in layers})


@pytest.mark.parametrize("make", WORKING)
def test_rows_and_gradient_are_those_of_autograd(make):
    net, layers, batch, tape = recorded(make, EmpiricalFisher.needs)
    truth = oracles.sample_gradients(net.model, net.task, batch, layers)
    factors = tape.factors(everything(layers))
    expected = torch.cat([truth[layer.name].reshape(9, -1).flip(1) for layer in layers], 1).T
    torch.testing.assert_close(factors, expected)
    for layer in layers:
        torch.testing.assert_close(tape.layers[layer.name].gradient, truth[layer.name].mean(0))


@pytest.mark.parametrize("make", WORKING)
def test_diagonal_and_pullback_are_sums_over_the_rows(make):
    _, layers, _, tape = recorded(make, Fisher.needs, draws=3)
    response = torch.randn(27, dtype=torch.float64)
    for layer in layers:
        record = tape.layers[layer.name]
        rows = record.factors(torch.arange(layer.size))
        assert rows.shape == (layer.size, 27)
        torch.testing.assert_close(record.pullback(response).reshape(-1), rows @ response)
        torch.testing.assert_close(record.diagonal().reshape(-1), rows.square().sum(1) / 9)


def test_chunking_changes_nothing(monkeypatch):
    _, _, _, tape = recorded(networks.positions, EmpiricalFisher.needs)
    whole = [(t.diagonal(), t.factors(torch.arange(t.gradient.numel()))) for t in tape.layers.values()]
    monkeypatch.setattr("secateur.core.linear.CHUNK", 40)
    for t, (diagonal, factors) in zip(tape.layers.values(), whole, strict=True):
        torch.testing.assert_close(t.diagonal(), diagonal)
        torch.testing.assert_close(t.factors(torch.arange(t.gradient.numel())), factors)


@pytest.mark.parametrize("make", [networks.mlp, networks.positions])
def test_sampled_rows_are_gradients_at_the_sampled_labels(make):
    net, layers, batch, tape = recorded(make, Fisher.needs, draws=2)
    labels = generator(3, "labels")
    outputs = net.task.forward(net.model, batch).detach()
    for draw in range(2):
        targets = net.task.sample_targets(outputs, labels)
        truth = oracles.sample_gradients(net.model, net.task, batch, layers, targets)
        for layer in layers:
            rows = tape.layers[layer.name].factors(torch.arange(layer.size)).reshape(-1, 2, 9)[:, draw]
            torch.testing.assert_close(rows * 2**0.5, truth[layer.name].reshape(9, -1).T)


def test_gauss_newton_rows_make_the_gauss_newton_matrix():
    net, layers, batch, tape = recorded(networks.mlp, GaussNewton.needs)
    block = Block({layer.name: torch.arange(layer.size) for layer in layers})
    factors = tape.factors(block)
    sizes = [layer.size for layer in layers]

    def outputs(vector):
        values = {
            layer.parameter_name: piece.reshape(layer.shape)
            for layer, piece in zip(layers, vector.split(sizes), strict=True)
        }
        return torch.func.functional_call(net.model, values, (batch.inputs,))

    point = oracles.flatten({layer.name: layer.weight.detach() for layer in layers})
    jacobian = torch.func.jacrev(outputs)(point)
    p = outputs(point).softmax(1).detach()
    hessians = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    truth = torch.einsum("scn,scd,sdm->nm", jacobian, hessians, jacobian) / 9
    torch.testing.assert_close(factors @ factors.T / 9, truth)


def test_capture_leaves_the_model_as_it_was():
    net = networks.frozen()
    net.model.train()
    before = {k: v.clone() for k, v in net.model.state_dict().items()}
    layers = find_layers(net.model)
    batch = net.task.batch("calibration", torch.arange(5), torch.device("cpu"))
    capture(net.model, net.task, batch, layers, Fisher.needs, generator(0, "labels"))
    assert all(module.training for module in net.model.modules())
    assert not any(p.requires_grad or p.grad is not None for p in net.model.parameters())
    assert not any(module._forward_hooks for module in net.model.modules())
    assert all(torch.equal(before[k], v) for k, v in net.model.state_dict().items())


def test_a_layer_that_no_data_reach_is_named():
    with pytest.raises(SecateurError, match=r"layer 'unused' is never reached.*exclude"):
        recorded(networks.dead_layer, GRADIENT)


def test_a_layer_that_does_not_affect_the_loss_is_named():
    with pytest.raises(SecateurError, match=r"layer 'unused' does not affect the loss.*exclude = \[\"unused"):
        recorded(networks.auxiliary, GRADIENT)


def test_detached_outputs_are_refused():
    net = networks.mlp()
    net.model.register_forward_hook(lambda module, args, output: output.detach())
    with pytest.raises(SecateurError, match=r"layer '0' does not affect the loss"):
        recorded(lambda: net, GRADIENT)


def test_a_use_that_does_not_affect_the_loss_counts_as_zero():
    net, layers, batch, tape = recorded(with_idle_use, EmpiricalFisher.needs, verify=True)
    truth = oracles.sample_gradients(net.model, net.task, batch, layers)
    for layer in layers:
        torch.testing.assert_close(tape.layers[layer.name].gradient, truth[layer.name].mean(0))
        rows = tape.layers[layer.name].factors(torch.arange(layer.size))
        torch.testing.assert_close(rows, truth[layer.name].reshape(9, -1).T)


def with_idle_use() -> networks.Network:
    """Make two modules share a weight, one of which comes to nothing."""
    net = networks.auxiliary()
    for name in ("first", "unused"):
        net.model.register_module(name, torch.nn.Linear(6, 6).double())
    net.model.last = torch.nn.Linear(6, 4).double()
    net.model.unused.weight = net.model.first.weight
    return net


def test_a_layer_that_is_run_without_gradients_is_named():
    with pytest.raises(SecateurError, match=r"layer 'first' is run without gradients.*exclude"):
        recorded(networks.backbone, GRADIENT)


def test_inputs_alone_need_no_gradients():
    _, layers, batch, tape = recorded(networks.backbone, frozenset({Signal.INPUTS}))
    record = tape.layers["first"]
    torch.testing.assert_close(record.inputs[:, :, 0], batch.inputs.T)
    assert all(tape.layers[layer.name].gradient.isnan().all() for layer in layers)
    assert all(tape.layers[layer.name].gradient.shape == layer.shape for layer in layers)
    assert not tape.losses.requires_grad
    assert record.rows is None


def test_samples_come_first():
    with pytest.raises(SecateurError, match=r"layer 'up' has inputs of the shape \[3, 9, 5\].*9 samples"):
        recorded(networks.sequence_first, GRADIENT)


def test_as_many_positions_as_samples_are_told_apart():
    def make():
        return networks.sequence_first(positions=9)

    with pytest.raises(SecateurError, match=r"gradient of layer 'up' does not follow.*first dimension"):
        recorded(make, GRADIENT, verify=True)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_weight_that_is_used_outside_its_layer_is_found(kind):
    def make():
        net = networks.reused()
        net.model.to(kind)
        return net

    with pytest.raises(SecateurError, match=r"gradient of layer 'first' does not follow.*outside the layer"):
        recorded(make, GRADIENT, verify=True)


@pytest.mark.parametrize("needs", [GRADIENT, EmpiricalFisher.needs, GaussNewton.needs, Hessian.needs])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("make", WORKING)
def test_verification_passes_and_changes_nothing(make, kind, needs):
    def converted():
        net = make()
        net.model.to(kind)
        return net

    tapes = [recorded(converted, needs, verify=verify)[-1] for verify in (False, True)]
    for plain, verified in zip(*(tape.layers.values() for tape in tapes), strict=True):
        assert torch.equal(plain.gradient, verified.gradient)
        assert (plain.rows is None) == (verified.rows is None)
        assert plain.rows is None or torch.equal(plain.rows, verified.rows)


def test_half_precision_is_recorded_and_summed_in_single():
    def make():
        net = networks.positions()
        net.model.bfloat16()
        return net

    for curvature in (EmpiricalFisher(), Fisher(), GaussNewton()):
        _, _, _, tape = recorded(make, curvature.needs)
        for record in tape.layers.values():
            assert {record.rows.dtype, record.gradient.dtype} == {torch.float32}
            assert record.diagonal().dtype == torch.float32
    _, _, _, exact = recorded(networks.positions, GRADIENT)
    for name, gradient in exact.gradients.items():
        error = (tape.gradients[name] - gradient).norm() / gradient.norm()
        assert error < 0.05


def test_two_kinds_of_rows_are_a_mistake():
    with pytest.raises(ValueError, match="one kind of rows, not 2"):
        recorded(networks.mlp, EmpiricalFisher.needs | Fisher.needs)


def test_modules_that_run_again_in_the_backward_pass_are_recorded_once():
    def make():
        net = networks.mlp()
        first, rest = net.model[0], net.model[1:]
        inner = torch.nn.Sequential(first, rest)
        plain = rest.forward
        rest.forward = lambda x: torch.utils.checkpoint.checkpoint(plain, x, use_reentrant=False)
        return networks.Network(inner, net.task)

    tape = recorded(make, EmpiricalFisher.needs, verify=True)[-1]
    truth = recorded(networks.mlp, EmpiricalFisher.needs)[-1]
    for ours, theirs in zip(tape.layers.values(), truth.layers.values(), strict=True):
        torch.testing.assert_close(ours.gradient, theirs.gradient)
        torch.testing.assert_close(ours.rows, theirs.rows)


class Kept:
    """Something that autograd's graph keeps."""

    def __init__(self, value):
        self.value = value


# One backward pass each: torch loses boxes of a graph that it retains, if not the tensors themselves.
@pytest.mark.parametrize("curvature", [MeanGradient(), EmpiricalFisher(), Hessian()])
def test_the_graph_is_gone_before_inputs_are_laid_out(monkeypatch, curvature):
    kept, counts, lay = weakref.WeakSet(), [], capture_module.tape_of

    def pack(value):
        box = Kept(value)
        kept.add(box)
        most.append(len(kept))
        return box

    def watched(*args, **kwargs):
        counts.append(len(kept))
        return lay(*args, **kwargs)

    most = []
    monkeypatch.setattr(capture_module, "tape_of", watched)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.value):
        _, layers, _, _ = recorded(networks.mlp, curvature.needs)
    assert max(most) > 0
    assert counts[-len(layers) :] == [0] * len(layers)


def test_a_tape_without_rows_says_so():
    _, _, _, tape = recorded(networks.mlp, frozenset({Signal.GRADIENT}))
    with pytest.raises(RuntimeError, match="no rows"):
        next(iter(tape.layers.values())).diagonal()
