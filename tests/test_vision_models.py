"""Networks of vision: that they compute what their papers say, take trained weights, and learn the digits."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.core.errors import SecateurError
from secateur.core.registry import names
from secateur.core.task import Split
from secateur.models import CNN, CifarResNet, Trained, ViT, fit, load_weights
from secateur.recipes import load, prepare, run_recipe
from secateur.tasks import Arrays, Classification, Digits, Division
from secateur.testing.convolutions import CONVOLUTIONS

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute on one thread: in networks so small, several wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stir(model: nn.Module) -> nn.Module:
    """Give every number of a network, statistics too, a value that nothing else has."""
    model = model.double()
    with torch.no_grad():
        for at, (name, tensor) in enumerate(model.state_dict().items()):
            if tensor.is_floating_point():
                noise = 0.2 * draw(*tensor.shape, seed=at)
                tensor.copy_(tensor + (noise.abs() if name.endswith("var") else noise))
    return model


def right(model: nn.Module, task: Classification, split: Split = "evaluation") -> float:
    """Give the share of samples that a network names right."""
    count = 0.0
    with torch.no_grad():
        for index in torch.arange(task.size(split)).split(500):
            batch = task.batch(split, index, CPU)
            count += float((task.forward(model, batch).argmax(1) == batch.targets).sum())
    return count / task.size(split)


def norm(x: Tensor, state: Mapping[str, Tensor], name: str) -> Tensor:
    """Normalise by running statistics, from the formula."""
    mean, var, weight, bias = (
        state[f"{name}.{kind}"].reshape(-1, 1, 1)
        for kind in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


# What the networks compute.


def test_every_network_is_registered() -> None:
    assert {"cifar-resnet", "cnn", "vit"} <= set(names("model"))


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_residual_networks_have_the_published_sizes(depth: int, millions: float) -> None:
    model = CifarResNet(depth).build()
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2 if depth < 110 else 1) == millions
    # Every layer with weights is a convolution but the last.
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == depth - 1


def test_residual_networks_compute_what_the_paper_says() -> None:
    model = stir(CifarResNet(14, classes=3).build())
    state, x = model.state_dict(), draw(2, 3, 12, 12)
    y = F.relu(norm(F.conv2d(x, state["conv1.weight"], padding=1), state, "bn1"))
    for stage, width in enumerate((16, 32, 64), start=1):
        for block in range(2):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            z = F.relu(
                norm(F.conv2d(y, state[f"{name}.conv1.weight"], None, stride, 1), state, f"{name}.bn1")
            )
            z = norm(F.conv2d(z, state[f"{name}.conv2.weight"], None, 1, 1), state, f"{name}.bn2")
            if stride == 2:
                shortcut = torch.zeros_like(z)
                quarter = width // 4
                shortcut[:, quarter : width - quarter] = y[..., ::2, ::2]
                y = shortcut
            y = F.relu(y + z)
    want = y.sum((2, 3)) / 9 @ state["linear.weight"].T + state["linear.bias"]
    torch.testing.assert_close(model(x), want)


@pytest.mark.parametrize("depthwise", [True, False])
def test_small_convolutional_networks_compute_what_they_say(depthwise: bool) -> None:
    model = stir(CNN(channels=2, widths=(4, 6), classes=3, depthwise=depthwise).build())
    state, x = model.state_dict(), draw(2, 2, 7, 5)
    y = x
    for stage in (1, 2):
        y = F.conv2d(y, state[f"stage{stage}.conv.weight"], None, stage, 1)
        y = F.relu(norm(y, state, f"stage{stage}.norm"))
        if depthwise:
            filters = state[f"stage{stage}.depthwise.weight"]
            each = [F.conv2d(y[:, [c]], filters[[c]], padding=1) for c in range(y.shape[1])]
            y = F.relu(norm(torch.cat(each, 1), state, f"stage{stage}.depthwise_norm"))
    want = y.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]
    torch.testing.assert_close(model(x), want)
    assert any("depthwise" in key for key in state) == depthwise


def test_vision_transformers_compute_what_torch_computes() -> None:
    part = ViT((4, 6), channels=3, patch=2, width=12, depth=2, heads=3, hidden=20, classes=5)
    model = stir(part.build())
    state, x = model.state_dict(), draw(2, 3, 4, 6)
    kernel = state["patches.weight"].flatten(1)
    tokens = F.unfold(x, 2, stride=2).mT @ kernel.T + state["patches.bias"]
    y = torch.cat([state["class_token"].repeat(2, 1, 1), tokens], 1) + state["positions"]
    for at in range(2):
        torchs = nn.TransformerEncoderLayer(
            12, 3, 20, 0.0, "gelu", batch_first=True, norm_first=True, dtype=torch.float64
        ).eval()
        ours = {
            "self_attn.in_proj_": "attention.qkv.", "self_attn.out_proj.": "attention.projection.",
            "linear1.": "fc1.", "linear2.": "fc2.", "norm1.": "norm1.", "norm2.": "norm2.",
        }  # fmt: skip
        torchs.load_state_dict(
            {
                theirs + kind: state[f"blocks.{at}.{name}{kind}"]
                for theirs, name in ours.items()
                for kind in ("weight", "bias")
            }
        )
        y = torchs(y)
    y = F.layer_norm(y[:, 0], (12,), state["norm.weight"], state["norm.bias"])
    torch.testing.assert_close(model(x), y @ state["head.weight"].T + state["head.bias"])


@pytest.mark.parametrize("part", [CifarResNet(8), CNN(), ViT()])
def test_random_weights_follow_from_the_seed(part: CifarResNet | CNN | ViT, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    first, again, other = (replace(part, seed=seed).build().state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)
    torch.save(first, tmp_path / "w.pt")
    loaded = replace(part, weights=str(tmp_path / "w.pt"), seed=2).build()
    assert not loaded.training
    assert all(torch.equal(first[key], value) for key, value in loaded.state_dict().items())


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: CifarResNet(21), r"depth is 21, .* 6n \+ 2 layers"),
        (lambda: CifarResNet(2), "depth is 2"),
        (lambda: CifarResNet(classes=0), "classes is 0"),
        (lambda: CNN(widths=()), "give the channels of each stage"),
        (lambda: CNN(widths=(4, 0)), "give the channels of each stage"),
        (lambda: CNN(channels=0), "channels is 0 .* at least 1"),
        (lambda: ViT((8, 9)), "patch is 2, but pictures have 8 x 9 pixels"),
        (lambda: ViT(heads=5), "heads is 5, but the width is 32"),
        (lambda: ViT(depth=0), "depth is 0: it must be at least 1"),
    ],
)
def test_shapes_that_cannot_be(build: Any, said: str) -> None:
    with pytest.raises(SecateurError, match=said):
        build()


# Weights.


def test_old_files_that_count_no_batches_are_read(tmp_path: Path) -> None:
    state = stir(CNN().build().float()).float().state_dict()
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    assert len(old) < len(state)
    torch.save(old, tmp_path / "old.pt")
    loaded = CNN(weights=str(tmp_path / "old.pt")).build().state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in old.items())
    del old["stage1.norm.running_var"]
    torch.save(old, tmp_path / "short.pt")
    with pytest.raises(SecateurError, match=r"the file lacks stage1\.norm\.running_var\."):
        load_weights(CNN().build(), tmp_path / "short.pt")


@pytest.mark.assets
def test_the_trained_residual_network_knows_cifar(assets: Path) -> None:
    path = assets / "models" / "resnet20-cifar10.th"
    keys = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    things = prepare(load("cifar-resnet20", assets=assets))
    state = things.model.state_dict()
    counted = [key for key in state if not key.endswith("num_batches_tracked")]
    assert counted == [key.removeprefix("module.") for key in keys]
    task = things.task
    assert isinstance(task, Classification)
    assert (task.size("calibration"), task.size("evaluation"), task.disjoint) == (3000, 1000, True)
    both = 3000 * right(things.model, task, "calibration") + 1000 * right(things.model, task)
    assert both / 4000 == pytest.approx(0.998, abs=0.0005)


@pytest.mark.assets
def test_the_recipe_of_cifar_divides_as_it_says(assets: Path) -> None:
    file = np.load(assets / "data" / "cifar10" / "cifar10_lossless.npz")
    pixels = torch.from_numpy(file["train_first4000_x"]).permute(0, 3, 1, 2)
    samples = load("cifar-resnet20", assets=assets).data.task().samples
    assert torch.equal(samples.calibration.inputs, pixels[:3000])
    assert torch.equal(samples.evaluation.inputs, pixels[3000:])
    others = {"evaluation-inputs": "test_first100_x", "evaluation-labels": "test_first100_y"}
    things = prepare(load("cifar-resnet20", others, assets=assets))
    assert isinstance(things.task, Classification)
    assert torch.equal(things.task.samples.calibration.inputs, pixels[:3000])
    assert things.task.size("evaluation") == 100
    assert right(things.model, things.task) == 0.94


# Dividing without drawing.


def test_ordered_divisions_take_the_first_and_the_last(tmp_path: Path) -> None:
    plan = Division(0.25, ordered=True).plan(12, None, "x")
    assert (plan.calibration.tolist(), plan.evaluation.tolist()) == (list(range(9)), [9, 10, 11])
    assert plan.disjoint
    plan = Division(0.25, limit=4, evaluation_limit=2, ordered=True, seed=7).plan(12, None, "x")
    assert (plan.calibration.tolist(), plan.evaluation.tolist()) == ([0, 1, 2, 3], [9, 10])
    plan = Division(limit=2, ordered=True).plan(5, 3, "x")
    assert (plan.calibration.tolist(), plan.evaluation.tolist()) == ([0, 1], [0, 1, 2])
    np.savez(tmp_path / "d.npz", x=np.arange(8.0)[:, None], y=np.arange(8) % 2)
    samples = Arrays(str(tmp_path / "d.npz"), division=Division(0.5, ordered=True)).load()
    assert samples.evaluation.inputs.flatten().tolist() == [4, 5, 6, 7]


# Learning.


@pytest.fixture(scope="module")
def digits() -> Classification:
    return Classification.from_source(Digits(flat=False))


@pytest.mark.parametrize("recipe", ["digits-cnn", "digits-vit"])
def test_recipes_of_vision_learn_the_digits(recipe: str) -> None:
    things = prepare(load(recipe))
    assert isinstance(things.task, Classification)
    assert right(things.model, things.task) > 0.95
    assert not any(module.training for module in things.model.modules())


def test_training_keeps_the_statistics_of_batch_normalisation(digits: Classification) -> None:
    model = Trained(CNN(widths=(8, 8)), epochs=4).build(digits)
    seen: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda m, x, name=name: seen.update({name: x[0]}))
    batch = digits.batch("calibration", torch.arange(digits.size("calibration")), CPU)
    with torch.no_grad():
        digits.forward(model, batch)
    assert len(seen) == 4
    for name, x in seen.items():
        module = model.get_submodule(name)
        assert isinstance(module, nn.BatchNorm2d)
        deviation = x.std((0, 2, 3))
        # Running averages over some ten mini-batches of a network that hardly changes any more.
        assert ((x.mean((0, 2, 3)) - module.running_mean).abs() < 0.1 * deviation).all()
        assert ((deviation**2 / module.running_var).log().abs() < 0.2).all()


def test_batch_normalisation_is_not_given_a_single_sample() -> None:
    inputs, labels = draw(5, 4).float(), torch.arange(5) % 2
    task = Classification.from_arrays(inputs, labels, evaluation=(inputs, labels))
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    fit(model, task, epochs=2, batch_size=2, learning_rate=0.01, seed=0)
    counter = model[1].num_batches_tracked
    assert isinstance(counter, Tensor)
    assert int(counter) == 4


# Transformers of others.


def test_the_recipe_of_deit_prunes_all_but_the_last_layer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.DeiTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=32,
        patch_size=8, num_labels=2,
    )  # fmt: skip
    transformers.DeiTForImageClassification(config).save_pretrained(tmp_path / "deit")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 40, 36, 3), dtype=np.uint8)
    for at, picture in enumerate(pixels):
        folder = tmp_path / "pictures" / ("val" if at % 4 == 0 else "train") / f"n{at // 2 % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{at}.png")
    settings = {
        "folder": str(tmp_path / "pictures"), "path": str(tmp_path / "deit"), "data.size": [32, 32],
        "limit": "none", "evaluation_limit": "none", "pruner": "one-shot", "density": 0.5,
    }  # fmt: skip
    recipe = load("deit", settings)
    things = prepare(recipe)
    assert (things.task.size("calibration"), things.task.size("evaluation")) == (6, 2)
    last = things.model.get_parameter("classifier.weight").clone()
    masks = run_recipe(recipe, ingredients=things).mask
    assert len(masks) > 12
    assert "classifier" not in masks
    assert torch.equal(things.model.get_parameter("classifier.weight"), last)


# The small networks for tests.


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_small_networks_are_whole(name: str) -> None:
    one, same, other = (CONVOLUTIONS[name](seed) for seed in (0, 0, 1))
    batch = one.task.batch("calibration", torch.arange(one.task.size("calibration")), CPU)
    logits = one.task.forward(one.model, batch)
    assert logits.dtype == torch.float64
    assert float(logits.detach().std(0).min()) > 1e-3, "samples are told apart"
    assert torch.equal(logits, same.task.forward(same.model, batch))
    assert not torch.equal(logits, other.task.forward(other.model, batch))
    one.task.losses(logits, batch.targets).mean().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in one.model.parameters())
