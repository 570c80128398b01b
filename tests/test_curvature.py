"""Curvatures and block problems against dense oracles on tiny networks, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.capture import capture
from secateur.core.block import Block
from secateur.core.errors import SecateurError
from secateur.core.layer import find_layers
from secateur.core.quadratic import QuadraticModel
from secateur.core.seeds import generator
from secateur.curvature import EmpiricalFisher, Fisher, GaussNewton, Hessian, MeanGradient
from secateur.testing import networks, oracles

ALL = [EmpiricalFisher(), Fisher(), Fisher(draws=3), GaussNewton(), MeanGradient(), Hessian()]
SEMIDEFINITE = ALL[:-1]


def linearised(curvature, make=networks.mlp, samples=11):
    """Record a tiny network and linearise it."""
    net = make()
    layers = find_layers(net.model)
    batch = net.task.batch("calibration", torch.arange(samples), torch.device("cpu"))
    tape = capture(
        net.model, net.task, batch, layers, curvature.needs, generator(0, "labels"), curvature.draws
    )
    return net, layers, batch, curvature.linearise(tape)


def some_block(layers, seed=0, size=7) -> Block:
    """Make a block across all layers."""
    draw = generator(seed, "block")
    return Block({layer.name: torch.randperm(layer.size, generator=draw)[:size] for layer in layers})


def dense(model: QuadraticModel):
    """Form the Hessian of a quadratic model."""
    return model.dense if model.dense is not None else model.factors @ model.factors.T


@pytest.mark.parametrize("make", [networks.mlp, networks.positions, networks.shared_weight])
def test_exact_hessian_is_that_of_autograd(make):
    net, layers, batch, linearisation = linearised(Hessian(), make)
    loss = oracles.mean_loss_of(net.model, net.task, batch, layers)
    if make is networks.shared_weight:  # functional_call replaces a tied weight everywhere, once
        layers = tuple(layer for layer in layers if len(layer.modules) == 1)
        loss = oracles.mean_loss_of(net.model, net.task, batch, layers)
    point = oracles.flatten({layer.name: layer.weight.detach() for layer in layers})
    block = Block({layer.name: torch.arange(layer.size) for layer in layers})
    model = linearisation.quadratic(block)
    torch.testing.assert_close(model.gradient, torch.func.grad(loss)(point))
    torch.testing.assert_close(dense(model), torch.func.hessian(loss)(point))


def test_empirical_fisher_is_the_mean_outer_product():
    net, layers, batch, linearisation = linearised(EmpiricalFisher())
    truth = oracles.sample_gradients(net.model, net.task, batch, layers)
    block = some_block(layers)
    rows = torch.cat([truth[n].reshape(11, -1)[:, index] for n, index in block.indices.items()], 1)
    torch.testing.assert_close(dense(linearisation.quadratic(block)), rows.T @ rows / 11)


def test_mean_gradient_is_the_outer_product_of_the_mean():
    _, layers, _, linearisation = linearised(MeanGradient())
    model = linearisation.quadratic(some_block(layers))
    torch.testing.assert_close(dense(model), torch.outer(model.gradient, model.gradient))


def test_fisher_tends_to_gauss_newton():
    _, layers, _, sampled = linearised(Fisher(draws=4000))
    _, _, _, exact = linearised(GaussNewton())
    block = some_block(layers)
    truth = dense(exact.quadratic(block))
    error = (dense(sampled.quadratic(block)) - truth).norm() / truth.norm()
    assert error < 0.05


@pytest.mark.parametrize("curvature", SEMIDEFINITE, ids=repr)
def test_semidefinite_and_diagonal(curvature):
    _, layers, _, linearisation = linearised(curvature)
    block = some_block(layers)
    matrix = dense(linearisation.quadratic(block))
    torch.testing.assert_close(matrix, matrix.T)
    assert torch.linalg.eigvalsh(matrix).min() > -1e-12
    diagonals = {layer.name: linearisation.diagonal(layer.name) for layer in layers}
    torch.testing.assert_close(matrix.diagonal(), block.gather(diagonals))


@pytest.mark.parametrize("curvature", ALL, ids=repr)
def test_the_response_carried_equals_recomputing_it(curvature):
    _, layers, _, linearisation = linearised(curvature)
    everything = Block({layer.name: torch.arange(layer.size) for layer in layers})
    start = linearisation.quadratic(everything)
    total = torch.zeros(everything.size, dtype=torch.float64)
    for seed in range(4):
        block = some_block(layers, seed)
        delta = torch.randn(block.size, dtype=torch.float64, generator=generator(seed, "move"))
        linearisation.move(block, linearisation.quadratic(block), delta)
        placed = {layer.name: torch.zeros(layer.size, dtype=torch.float64) for layer in layers}
        for name, piece in block.split(delta).items():
            placed[name][block.indices[name]] = piece
        total += torch.cat(list(placed.values()))
    expected = start.gradient + dense(start) @ total
    torch.testing.assert_close(linearisation.quadratic(everything).gradient, expected)
    gradients = {layer.name: linearisation.gradient(layer.name) for layer in layers}
    torch.testing.assert_close(oracles.flatten(gradients), expected)


@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 8),
    a=st.floats(0.1, 2),
    r=st.floats(0, 10),
    factored=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_problem_is_the_taylor_form(seed, n, a, r, factored):
    draw = generator(seed, "problem")

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    factors = normal(n, 3)
    symmetric = normal(n, n)
    symmetric = symmetric + symmetric.T
    hessian = factors @ factors.T if factored else symmetric
    g, w0 = normal(n), normal(n)
    pruned, anchor = normal(n) > 0, normal(n) > 0
    model = QuadraticModel(g, None if factored else symmetric, factors if factored else None)
    problem = model.problem(w0, pruned, torch.zeros(n, dtype=torch.int64), a, r)
    anchored = model.problem(w0, pruned, torch.zeros(n, dtype=torch.int64), a, r, anchor)
    assert abs(problem.value(pruned)) < 1e-9
    assert abs(anchored.value(pruned)) < 1e-9
    for _ in range(5):
        x = normal(n) > 0
        u = w0 * ~pruned - w0
        d = -(u + x * w0)
        truth = a * g @ d + 0.5 * d @ hessian @ d
        assert problem.value(x) == pytest.approx(float(truth + r * d @ d), rel=1e-9, abs=1e-9)
        far = (w0.square() * ((x != anchor).double() - (pruned != anchor).double())).sum()
        assert anchored.value(x) == pytest.approx(float(truth + r * far), rel=1e-9, abs=1e-9)
        assert model.change(d) == pytest.approx(float(g @ d + 0.5 * d @ hessian @ d), rel=1e-9, abs=1e-9)


def test_no_draws_are_refused():
    with pytest.raises(SecateurError, match="draws must be at least 1"):
        Fisher(draws=0)
