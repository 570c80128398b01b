"""Models that are not what their layers say: told apart, refused in a sentence, or put right."""

import pytest
import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from secateur import ICBS, GradientSteps, OneShot, SecateurError, SparseGPT, prune
from secateur.capture import check_used
from secateur.core.layer import find_layers
from secateur.core.task import Batch
from secateur.pruners import Averaging, Batches, Recalibration
from secateur.scores import Wanda
from secateur.tasks import Classification

CLASSES = 3
QUICK = ICBS(averaging=Averaging(samples=8, length=3))


def task(*shape: int) -> Classification:
    torch.manual_seed(0)
    x = torch.randn(40, *shape)
    return Classification.from_arrays(x, torch.arange(40) % CLASSES, raw=True)


class Standardised(nn.Conv2d):
    """Computes its weight in every pass."""

    def forward(self, x):
        weight = (self.weight - self.weight.mean()) / self.weight.std()
        return nn.functional.conv2d(x, weight, self.bias, self.stride, self.padding)


class Padded(nn.Conv2d):
    """Pads by itself, and is honest."""

    def forward(self, x):
        return self._conv_forward(nn.functional.pad(x, (1, 1, 1, 1)), self.weight, self.bias).relu()


class Cast(nn.Linear):
    """Computes in another precision, and is honest."""

    def forward(self, input):
        return nn.functional.linear(input.bfloat16(), self.weight.bfloat16()).float()


def network(conv: nn.Module, last: type[nn.Linear] = nn.Linear) -> nn.Module:
    torch.manual_seed(0)
    size = conv(torch.zeros(1, 1, 6, 6)).numel()
    return nn.Sequential(conv, nn.Flatten(), last(size, CLASSES))


@pytest.mark.parametrize(
    "pruner", [OneShot(), OneShot(Wanda()), SparseGPT(), QUICK], ids=["one", "wanda", "gpt", "icbs"]
)
def test_weights_that_are_computed_in_every_pass_are_refused(pruner):
    model = network(Standardised(1, 2, 3))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(SecateurError, match=r"layer '0' computes its weight anew in every pass.*exclude it"):
        prune(model, task(1, 6, 6), pruner, density=0.5, budget="2steps")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    run = prune(model, task(1, 6, 6), pruner, density=0.5, budget="2steps", exclude=["0"])
    assert list(run.mask) == ["2"]


def test_weight_standardisation_of_transformers_is_refused():
    config = transformers.BitConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_groups=2, num_labels=CLASSES
    )
    model = transformers.BitForImageClassification(config).eval()
    with pytest.raises(SecateurError, match="computes its weight anew in every pass"):
        prune(model, task(3, 32, 32), OneShot(), density=0.5)


def standard(weight):
    return (weight - weight.mean()) / weight.std()


class StandardisedLinear(nn.Linear):
    def forward(self, input):
        return nn.functional.linear(input, standard(self.weight), self.bias)


class StandardisedConv1D(Conv1D):
    def forward(self, x):
        return x @ standard(self.weight) + self.bias


class Transposes(nn.Linear):
    def forward(self, input):
        return input @ self.weight.T + self.bias


def settled():
    """Standardised already, so that to do it again changes only rounding."""
    linear = StandardisedLinear(6, 6)
    linear.weight.data.copy_(standard(linear.weight))
    return linear


def shared():
    """The first use of the weight is honest, the second not."""
    honest, other = Cast(6, 6), StandardisedLinear(6, 6)
    other.weight = honest.weight
    return nn.Sequential(honest, other)


def overridden():
    linear = nn.Linear(6, 6)
    linear.forward = lambda x: nn.functional.linear(x, standard(linear.weight))
    return linear


@pytest.mark.parametrize("make", [lambda: StandardisedConv1D(6, 6), settled, shared, overridden])
def test_every_way_to_compute_another_weight_is_refused(make):
    torch.manual_seed(0)
    model = nn.Sequential(make(), nn.Linear(6, CLASSES))
    with pytest.raises(SecateurError, match=r"layer '0(\.0)?' computes its weight anew in every pass"):
        prune(model, task(6), OneShot(), density=0.5)


def test_a_weight_may_be_used_transposed():
    model = nn.Sequential(Transposes(6, 6), Conv1D(6, 6), nn.Linear(6, CLASSES))
    assert list(prune(model, task(6), OneShot(), density=0.5).mask) == ["0", "1", "2"]


def test_modules_with_honest_forwards_of_their_own_pass():
    model = network(Padded(1, 2, 3), Cast)
    batch = Batch(torch.randn(2, 1, 6, 6), torch.tensor([0, 1]))
    check_used(model, task(1, 6, 6), batch, find_layers(model))
    run = prune(model, task(1, 6, 6), OneShot(), density=0.5)
    assert set(run.mask) == {"0", "2"}


class Trains(nn.Module):
    """Puts its normalisation into training mode in every pass."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(32, CLASSES)

    def forward(self, x):
        self.norm.train()
        return self.last(self.norm(self.conv(x)).flatten(1))


def test_statistics_that_a_forward_pass_changes_are_put_back():
    model = Trains()
    before = {key: value.clone() for key, value in model.norm.named_buffers()}
    assert set(before) == {"running_mean", "running_var", "num_batches_tracked"}
    run = prune(model, task(1, 6, 6), OneShot(), density=0.5)
    for key, value in before.items():
        assert torch.equal(getattr(model.norm, key), value)
    assert any("changes running statistics" in notice for notice in run.report["notices"])


def test_normalisation_by_the_batch_at_hand_is_said():
    norm = nn.BatchNorm2d(2, track_running_stats=False)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), norm, nn.Flatten(), nn.Linear(32, CLASSES))
    run = prune(model, task(1, 6, 6), OneShot(), density=0.5)
    assert any("'1' normalises by the batch at hand" in notice for notice in run.report["notices"])


def test_lazy_layers_are_refused():
    model = nn.Sequential(nn.LazyConv2d(2, 3), nn.Flatten(), nn.LazyLinear(CLASSES))
    with pytest.raises(SecateurError, match="layer '0' is lazy and has no weight yet"):
        prune(model, task(1, 6, 6), OneShot(), density=0.5)


class Attends(nn.Module):
    """Has torch's own attention, which calls no module for its projections."""

    def __init__(self):
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.last(self.attention(x, x, x, need_weights=False)[0].mean(1))


def test_projections_of_multihead_attention_are_named():
    for pruner in (OneShot(Wanda()), SparseGPT(), ICBS(share=0.0)):
        with pytest.raises(SecateurError, match=r"used by torch.nn.MultiheadAttention directly.*out_proj"):
            prune(Attends(), task(5, 4), pruner, density=0.5, budget="1steps")
    run = prune(Attends(), task(5, 4), QUICK, density=0.5, budget="2steps")
    assert set(run.mask) == {"attention.out_proj", "last"}


def test_gradient_steps_that_find_nothing_say_so():
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, CLASSES))
    run = prune(model, task(6), OneShot(), density=0.5, refit=GradientSteps(rate=1e4, steps=3))
    assert any("gradient steps found nothing better" in notice for notice in run.report["notices"])
    assert run.report["evaluation"]["pruned"] == run.report["evaluation"]["masked"]


@pytest.mark.parametrize("guard", [0, None])
def test_gradient_steps_without_time_say_so(guard, monkeypatch):
    monkeypatch.setattr(GradientSteps, "_draws", lambda *_: iter(()))
    refit = GradientSteps(batches=Batches(guard=guard))
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, CLASSES))
    run = prune(model, task(6), OneShot(), density=0.5, refit=refit)
    assert any("gradient steps found nothing better" in notice for notice in run.report["notices"])


@pytest.mark.parametrize("error", [ValueError, torch.linalg.LinAlgError, ZeroDivisionError])
@pytest.mark.parametrize("what", ["refit", "recalibration"])
def test_what_fails_after_the_mask_does_not_lose_it(error, what, monkeypatch):
    def fail(*_):
        raise error("no such luck")

    monkeypatch.setattr(GradientSteps if what == "refit" else Recalibration, "__call__", fail)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, CLASSES))
    weight = model[0].weight.detach().clone()
    after = {"refit": GradientSteps()} if what == "refit" else {"recalibrate": True}
    run = prune(model, task(1, 6, 6), OneShot(), density=0.5, **after)
    assert any(f"{what} failed" in x and "no such luck" in x for x in run.report["notices"])
    assert torch.equal(model[0].weight, torch.where(run.mask["0"].view_as(weight), weight, 0))
