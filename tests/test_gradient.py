"""The mean gradient: as autograd gives it, in bfloat16 too, and for models that make it hard."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from secateur import ICBS, Classification, LearnedMask, SecateurError, prune
from secateur.capture import mean_gradient
from secateur.core.device import has_fast_bfloat16
from secateur.core.layer import find_layers
from secateur.pruners import Averaging
from secateur.testing import networks


@pytest.mark.parametrize(
    "make",
    [networks.mlp, networks.shared_weight, networks.positions, networks.frozen, networks.inplace_relu],
)
def test_the_mean_gradient_is_that_of_autograd_and_leaves_no_trace(make):
    net = make()
    layers = find_layers(net.model)
    index = torch.arange(20)
    batch = net.task.batch("calibration", index, torch.device("cpu"))
    before = [(p.requires_grad, p.grad) for p in net.model.parameters()]
    net.model.train()
    loss, gradients = mean_gradient(net.model, net.task, batch, layers)
    assert net.model.training
    assert [(p.requires_grad, p.grad) for p in net.model.parameters()] == before
    net.model.eval()
    for layer in layers:
        layer.weight.requires_grad_(True)
    truth = net.task.losses(net.task.forward(net.model, batch), batch.targets).mean()
    truths = torch.autograd.grad(truth, [layer.weight for layer in layers])
    assert loss == pytest.approx(float(truth.detach()))
    for layer, expected in zip(layers, truths, strict=True):
        assert torch.allclose(gradients[layer.name], expected, rtol=1e-12, atol=1e-15)


def test_bfloat16_changes_the_gradient_by_its_rounding_only():
    net = networks.mlp(samples=200)
    model = net.model.float()
    layers = find_layers(model)
    batch = net.task.batch("calibration", torch.arange(100), torch.device("cpu"))
    batch = replace(batch, inputs=batch.inputs.float())
    _, exact = mean_gradient(model, net.task, batch, layers)
    _, coarse = mean_gradient(model, net.task, batch, layers, bfloat16=True)
    for name, gradient in exact.items():
        assert coarse[name].dtype == torch.float32
        error = torch.linalg.vector_norm(coarse[name] - gradient)
        assert 0 < error < 0.05 * torch.linalg.vector_norm(gradient)


def test_fast_bfloat16_is_asked_of_the_hardware(monkeypatch):
    for said in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda s=said: {"avx512_bf16": s}, raising=False)
        assert has_fast_bfloat16(torch.device("cpu")) is said
    assert has_fast_bfloat16(torch.device("meta")) is False


def test_bfloat16_is_refused_where_weights_are_not_in_float32():
    net = networks.mlp()
    with pytest.raises(SecateurError, match="bfloat16 = true is for weights in float32"):
        prune(net.model, net.task, ICBS(averaging=Averaging(bfloat16=True)), density=0.5, budget="1steps")


@pytest.mark.parametrize("pruner", [ICBS(), LearnedMask()], ids=["icbs", "learned"])
def test_a_layer_that_does_not_matter_is_refused(pruner):
    net = networks.dead_layer()
    with pytest.raises(SecateurError, match=r"does not affect the loss: exclude it"):
        prune(net.model, net.task, pruner, density=0.5, budget="2steps")


def test_a_loss_without_gradients_and_one_that_is_nan_are_refused():
    net = networks.mlp()
    batch = net.task.batch("calibration", torch.arange(5), torch.device("cpu"))
    layers = find_layers(net.model)
    cut = replace(net, model=Detached(*net.model))
    with pytest.raises(SecateurError, match="depends on no layer"):
        mean_gradient(cut.model, net.task, batch, layers)
    with torch.no_grad():
        net.model[4].bias.fill_(torch.finfo(torch.float64).max)
        net.model[4].weight.fill_(torch.finfo(torch.float64).max)
    with pytest.raises(SecateurError, match="NaN or infinite"):
        mean_gradient(net.model, net.task, batch, layers)


class Detached(nn.Sequential):
    """A network whose outputs carry no gradients."""

    def forward(self, x):
        return super().forward(x).detach()


class Rare(nn.Module):
    """A layer that only a few samples go through."""

    def __init__(self) -> None:
        super().__init__()
        self.often, self.rare, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        h = self.often(x).relu()
        some = x[:, 0] > 1.5
        if bool(some.any()):
            h = torch.where(some[:, None], self.rare(h), h)
        return self.last(h)


def test_a_layer_that_some_mini_batches_miss_is_pruned_all_the_same():
    net = networks.mlp(samples=400)
    model = Rare().double()
    averaging = Averaging(samples=4, length=40)
    run = prune(model, net.task, ICBS(averaging=averaging), density=0.5, budget="2steps")
    assert run.mask.densities == {"often": 0.5, "rare": 0.5, "last": 0.5}


class Mixed(nn.Sequential):
    """A network that writes into a buffer in float32, which autocast's bfloat16 does not fit."""

    def forward(self, x):
        out = x.new_zeros(len(x), 4)
        out[torch.arange(len(x))] = super().forward(x)
        return out


def test_a_model_that_cannot_run_in_bfloat16_is_pruned_in_float32(monkeypatch):
    monkeypatch.setattr("secateur.pruners.session.has_fast_bfloat16", lambda _: True)
    masks = []
    for fast in (None, False):
        net = networks.mlp(samples=200)
        task = Classification.from_arrays(torch.randn(200, 6), torch.randint(4, (200,)))
        pruner = ICBS(averaging=Averaging(length=3, bfloat16=fast))
        run = prune(Mixed(*net.model).float(), task, pruner, density=0.5, budget="2steps")
        masks.append(run.mask)
        assert any("does not run in bfloat16" in n for n in run.report["notices"]) is (fast is None)


def test_a_surrounding_autocast_changes_nothing():
    losses = []
    for enabled in (False, True):
        net = networks.mlp(samples=200)
        task = Classification.from_arrays(torch.ones(200, 6).cumsum(0) / 100 - 1, torch.arange(200) % 4)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            run = prune(net.model.float(), task, ICBS(), density=0.3, budget="2steps")
        losses.append(run.report["evaluation"])
    assert losses[0] == losses[1]


class Root(nn.Module):
    """A network whose loss is finite and whose gradient is not: the root of a square at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4, bias=False)

    def forward(self, x):
        return self.layer(x).square().sqrt()


def test_gradients_that_are_not_finite_are_refused_and_the_model_restored():
    net = networks.mlp()
    model = Root().double()
    before = model.layer.weight.detach().clone()
    # Of a density that leaves some outputs without any weight.
    with pytest.raises(SecateurError, match="gradient of layer 'layer' is NaN or infinite"):
        prune(model, net.task, ICBS(), density=0.1, budget="2steps")
    assert torch.equal(model.layer.weight, before)
