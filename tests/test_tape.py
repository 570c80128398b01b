"""The tape against autograd, one sample at a time, in float64."""

import pytest
import torch

from secateur.capture import capture
from secateur.core.block import Block
from secateur.core.errors import SecateurError
from secateur.core.layer import find_layers
from secateur.core.seeds import generator
from secateur.core.signal import Signal
from secateur.curvature import EmpiricalFisher, Fisher, GaussNewton
from secateur.testing import networks, oracles

WORKING = [networks.mlp, networks.shared_weight, networks.positions, networks.inplace_relu, networks.frozen]


def recorded(make, needs, draws=1, seed=3):
    """Record a batch of nine samples of a tiny network."""
    net = make()
    layers = find_layers(net.model)
    batch = net.task.batch("calibration", torch.arange(9), torch.device("cpu"))
    tape = capture(net.model, net.task, batch, layers, needs, generator(seed, "labels"), draws)
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
    monkeypatch.setattr("secateur.core.tape.CHUNK", 40)
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
        recorded(networks.dead_layer, frozenset({Signal.GRADIENT}))


def test_a_tape_without_rows_says_so():
    _, _, _, tape = recorded(networks.mlp, frozenset({Signal.GRADIENT}))
    with pytest.raises(RuntimeError, match="no rows"):
        next(iter(tape.layers.values())).diagonal()
