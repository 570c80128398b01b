"""Vision models of many kinds: what is found, measured, pruned and saved of each.

All are tiny, random and in float64. Statistics of BatchNorm are random, too, and so are the scales that
some kinds begin with at 0.
"""

import copy
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForImageClassification

import secateur
from secateur import ICBS, SecateurError
from secateur.allocation import Global, Uniform
from secateur.capture import capture, mean_gradient, moments
from secateur.capture.replay import Replay
from secateur.core.convolution import ConvolutionTape
from secateur.core.layer import Layer, find_layers
from secateur.core.linear import LinearTape
from secateur.core.ranks import as_rows
from secateur.core.records import Records, SampleGradients
from secateur.core.sizes import parse_bytes
from secateur.core.tape import LayerTape
from secateur.core.task import Batch
from secateur.curvature import EmpiricalFisher, Fisher, Gram, Hessian
from secateur.export import apply_mask, save_checkpoint, save_pretrained
from secateur.pruners import (
    ADMM,
    Averaging,
    Batches,
    DSnoT,
    FisherSteps,
    GradientSteps,
    GramSwaps,
    LeastSquares,
    Network,
    OneShot,
    Pruner,
    Refit,
    Session,
    SparseGPT,
    Stage,
)
from secateur.runs.memory import plan
from secateur.scores import RIA, Gradient, Magnitude, Wanda
from secateur.solvers import Swaps
from secateur.tasks import Classification
from secateur.testing.oracles import sample_gradients

SIDE, CLASSES = 16, 3
LABELS = {"num_labels": CLASSES, "image_size": SIDE}
VIT = {
    **LABELS,
    "patch_size": 4,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
# Grids of 8 x 8 and 4 x 4 in windows of 3 x 3: padded, and shifted in every second layer.
SWIN = {**LABELS, "patch_size": 2, "embed_dim": 8, "depths": [2, 1], "num_heads": [1, 2], "window_size": 3}
NEXT = {**LABELS, "patch_size": 2, "num_stages": 2, "hidden_sizes": [6, 8], "depths": [1, 1]}
RESNET = {"num_labels": CLASSES, "embedding_size": 6, "hidden_sizes": [8, 12], "depths": [1, 2]}
# The type of the configuration, its values, and some of the layers' names.
KINDS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "vit": ("ViT", VIT, ["vit.embeddings.patch_embeddings.projection", "classifier"]),
    "deit": (
        "DeiT",
        {**VIT, "architectures": ["DeiTForImageClassification"]},
        ["deit.embeddings.patch_embeddings.projection", "classifier"],
    ),
    "beit": (
        "Beit",
        {**VIT, "use_relative_position_bias": True, "layer_scale_init_value": 0.5},
        ["beit.embeddings.patch_embeddings.projection", "classifier"],
    ),
    "swin": ("Swin", SWIN, ["swin.encoder.layers.0.downsample.reduction", "classifier"]),
    "swinv2": (
        "Swinv2",
        SWIN,
        ["swinv2.encoder.layers.0.blocks.0.attention.self.continuous_position_bias_mlp.0"],
    ),
    "convnext": ("ConvNext", NEXT, ["convnext.encoder.stages.0.layers.0.dwconv"]),
    "convnextv2": ("ConvNextV2", NEXT, ["convnextv2.encoder.stages.0.layers.0.dwconv"]),
    "resnet": ("ResNet", {**RESNET, "layer_type": "basic"}, ["resnet.embedder.embedder.convolution"]),
    "resnet, bottleneck": ("ResNet", {**RESNET, "layer_type": "bottleneck"}, ["classifier.1"]),
    "mobilenet": (
        "MobileNetV2",
        {**LABELS, "depth_multiplier": 0.05, "min_depth": 4, "depth_divisible_by": 2},
        ["mobilenet_v2.conv_stem.first_conv.convolution", "classifier"],
    ),
}
CONVOLUTIONAL = ["convnext", "resnet", "mobilenet"]


@pytest.fixture(autouse=True)
def _quiet_and_alone() -> Iterator[None]:
    """Keep transformers from complaining, and several threads from tiny products."""
    transformers.logging.set_verbosity_error()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def _built(kind: str) -> nn.Module:
    name, values, _ = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(**values)
    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_config(config, dtype=torch.float64)
    with torch.no_grad():  # as random as trained weights are, also where they begin at 0 or 1
        for layer in find_layers(model):  # and large enough for pictures to matter behind fifty layers
            layer.write(torch.randn(layer.shape, dtype=torch.float64) * (2 / layer.shape[1]) ** 0.5)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for part, buffer in model.named_buffers():
            if part.endswith("running_mean"):
                buffer.add_(0.1 * torch.randn_like(buffer))
            elif part.endswith("running_var"):
                buffer.mul_(0.5 + torch.rand_like(buffer))
    return model.eval()


def build(kind: str) -> nn.Module:
    return copy.deepcopy(_built(kind))


def pictures(count: int = 24) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(count, 3, SIDE, SIDE, generator=draw, dtype=torch.float64)
    return x, torch.randint(CLASSES, (count,), generator=draw)


def task(count: int = 24) -> Classification:
    return Classification.from_arrays(*pictures(count), raw=True)


def batch(size: int = 3) -> Batch:
    return task().batch("calibration", torch.arange(size), torch.device("cpu"))


def layers_of(kind: str, model: nn.Module) -> tuple[Layer, ...]:
    """Find the layers whose first dimension counts samples."""
    return find_layers(model, exclude=EXCLUDED.get(kind, ()))


QUICK = ICBS(averaging=Averaging(samples=8, length=3))
BLOCKS = ICBS(
    share=0.0, solver=Swaps(), stage=Stage(blocks=3, block_size=32), batches=Batches(size=8, guard=4)
)
GRAM = replace(BLOCKS, curvature=Gram(), init=Wanda())
# The method, and whether it updates the weights that it keeps.
METHODS: dict[str, tuple[Pruner, bool]] = {
    "magnitude": (OneShot(Magnitude()), False),
    "gradient": (OneShot(Gradient()), False),
    "wanda": (OneShot(Wanda()), False),
    "ria": (OneShot(RIA()), False),
    "averaged": (QUICK, False),
    "blocks": (BLOCKS, False),
    "gram blocks": (GRAM, False),
    "gram swaps": (GramSwaps(), False),
    "dsnot": (DSnoT(), False),
    "sparsegpt": (SparseGPT(), True),
}
EXCLUDED = {"swinv2": ["*continuous_position_bias_mlp*"]}


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(pictures(3)[0]).logits


def same(one: nn.Module, other: nn.Module) -> None:
    """Check that two models have the same numbers, and give the same but for rounding.

    How torch adds up depends on where tensors lie in memory.
    """
    after, before = one.state_dict(), other.state_dict()
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value), name
        assert after[name].dtype == value.dtype
    torch.testing.assert_close(logits(one), logits(other), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_layers_found_are_all_linear_layers_and_convolutions(kind):
    model = build(kind)
    layers = {layer.name: layer for layer in find_layers(model)}
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    modules = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    assert layers.keys() == modules.keys()
    found = logits(model)
    assert not torch.allclose(found[0], found[1], rtol=1e-2)  # pictures matter
    assert set(KINDS[kind][2]) <= layers.keys()
    for name, layer in layers.items():
        weight = modules[name].weight
        assert layer.shape == (len(weight), weight[0].numel())
        assert torch.equal(layer.weight, weight.flatten(1))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_every_sample_are_those_of_autograd(kind, monkeypatch):
    model, sample = build(kind), batch()
    layers = layers_of(kind, model)
    truths = sample_gradients(model, task(), sample, layers)
    draw = torch.Generator().manual_seed(0)
    close: dict[str, Any] = {"rtol": 1e-7, "atol": 1e-11}
    loss, mean = mean_gradient(model, task(), sample, layers)
    needs = EmpiricalFisher.needs
    for folded in (True, False):
        if not folded:  # keep all as inputs and gradients of outputs
            monkeypatch.setattr(Records, "folded", lambda self, *, moments: self)
        tape = capture(model, task(), sample, layers, needs, draw, verify=True)
        assert tape.loss == pytest.approx(loss)
        for layer in layers:
            ours, truth = tape.layers[layer.name], truths[layer.name].flatten(1)
            torch.testing.assert_close(mean[layer.name], truths[layer.name].mean(0), **close)
            torch.testing.assert_close(ours.gradient, truths[layer.name].mean(0), **close)
            few = torch.randperm(layer.size, generator=draw)[:200]
            torch.testing.assert_close(ours.factors(few), truth.T[few], **close)
            torch.testing.assert_close(ours.diagonal().flatten(), truth.square().mean(0), **close)
            response = torch.randn(sample.size, generator=draw, dtype=torch.float64)
            torch.testing.assert_close(ours.pullback(response).flatten(), response @ truth, **close)
            direction = torch.randn(layer.shape, generator=draw, dtype=torch.float64)
            torch.testing.assert_close(ours.push(direction), truth @ direction.flatten(), **close)
            if not folded:
                convolution = not isinstance(layer.modules[0], nn.Linear)
                assert isinstance(ours, ConvolutionTape) == convolution


@pytest.mark.parametrize("kind", ["vit", "deit", "swin", "resnet"])
def test_products_with_the_exact_hessian_are_differences_of_gradients(kind):
    """Attention has kernels that can be differentiated once."""
    model = build(kind)
    layers, some = layers_of(kind, model), batch()
    tape = capture(model, task(), some, layers, Hessian.needs, torch.Generator())
    assert tape.hessian_product is not None
    direction = {layer.name: torch.randn(layer.shape, dtype=torch.float64) for layer in layers[:3]}
    step, sides = 1e-4, []
    for sign in (1, -1):
        moved = copy.deepcopy(model)
        for layer in layers_of(kind, moved)[:3]:
            layer.write(layer.weight.detach() + sign * step * direction[layer.name])
        sides.append(mean_gradient(moved, task(), some, layers_of(kind, moved))[1])
    product = tape.hessian_product(direction)
    for layer in layers:
        wanted = (sides[0][layer.name] - sides[1][layer.name]) / (2 * step)
        assert (product[layer.name] - wanted).norm() < 1e-3 * wanted.norm()  # softmax may be in float32


def inputs_of(module: nn.Module, x: Tensor) -> Tensor:
    """Unfold what a module was given to [groups, positions, in]."""
    if isinstance(module, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    assert isinstance(module, nn.Conv2d)
    assert isinstance(module.padding, tuple)
    pieces = [
        nn.functional.unfold(part, module.kernel_size, module.dilation, module.padding, module.stride)
        for part in x.chunk(module.groups, 1)
    ]
    return torch.stack([piece.transpose(1, 2).flatten(0, 1) for piece in pieces])


def truths_of(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Give what each layer is multiplied with, [groups, positions, in]."""
    found: dict[str, Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            hook = lambda m, args, n=name: found.update({n: inputs_of(m, args[0])})  # noqa: E731
            handles.append(module.register_forward_pre_hook(hook))
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_moments_are_sums_over_what_each_layer_is_multiplied_with(kind):
    model, sample = build(kind), batch(4)
    layers = layers_of(kind, model)
    found = moments(model, task(), sample.split(3), layers, gram=True)
    truths = truths_of(model, sample.inputs)
    for layer in layers:
        ours, x = found[layer.name], truths[layer.name]
        assert (ours.groups, ours.count) == x.shape[:2]
        torch.testing.assert_close(ours.total.reshape(len(x), -1), x.sum(1))
        torch.testing.assert_close(ours.squares.reshape(len(x), -1), x.square().sum(1))
        assert ours.gram is not None
        torch.testing.assert_close(ours.gram.reshape(len(x), x.shape[2], -1), x.mT @ x)
    tape = capture(model, task(), sample, layers, Gram.needs, torch.Generator())
    for layer in layers:
        x = truths[layer.name]
        records = tape.layers[layer.name]
        assert isinstance(records, Records)
        torch.testing.assert_close(records.gram(), x.mT @ x)


def test_layers_that_samples_share_are_refused_by_tapes_and_pruned_by_mean_gradients():
    model = build("swinv2")
    with pytest.raises(SecateurError, match=r"_mlp.0' has inputs of the shape .* does not count the 3"):
        capture(
            model, task(), batch(), find_layers(model), EmpiricalFisher.needs, torch.Generator(), verify=True
        )
    run = secateur.prune(model, task(), QUICK, density=0.5, budget="1steps")
    assert any("continuous_position_bias_mlp" in name for name in run.mask)


# Layer after layer.


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_behind_changed_layers_are_those_of_whole_passes(kind):
    model = build(kind)
    layers = find_layers(model)
    index = torch.arange(7)
    batches = [task().batch("calibration", part, torch.device("cpu")) for part in index.split(3)]
    replay = Replay(model, task(), batches, layers, gram=True)
    assert not replay.whole  # stages, or blocks where there are no stages, follow on one another
    assert sum(at is not None for at in replay._at) == (16 if kind == "mobilenet" else 2)
    assert sorted(layer.name for group in replay.groups for layer in group) == sorted(x.name for x in layers)
    for number, group in enumerate(replay.groups):
        expected = moments(model, task(), batches, group, gram=True)
        found = replay.moments(number)
        assert [layer.name for layer in group] == list(found)
        for name, sums in found.items():
            truth = expected[name]
            assert (sums.count, sums.groups) == (truth.count, truth.groups)
            for ours, theirs in (
                (sums.total, truth.total),
                (sums.squares, truth.squares),
                (sums.gram, truth.gram),
            ):
                torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
        with torch.no_grad():
            for layer in group:
                weight = layer.weight.clone()
                weight[:, ::2] *= 0.5
                layer.write(weight)


# Pruning.


def assert_pruned(
    model: nn.Module,
    before: dict[str, Tensor],
    run: secateur.Run,
    grouping: str,
    updated: bool | None = False,
) -> None:
    """Check that 40 % of each group are left, and that nothing else has changed by a bit."""
    if grouping == "global":
        sizes = [keep.numel() for _, keep in run.mask.items()]
        assert sum(int(keep.sum()) for _, keep in run.mask.items()) == round(0.4 * sum(sizes))
    after = model.state_dict()
    assert after.keys() == before.keys()
    expected = {name: value.clone() for name, value in before.items()}
    changed = 0
    for layer in find_layers(model):
        keep = run.mask[layer.name]
        if grouping != "global":
            rows = as_rows(keep, grouping)  # type: ignore[arg-type]
            assert (rows.sum(1) == round(0.4 * rows.shape[1])).all(), layer.name
        name = layer.parameter_name
        stored = keep.reshape(before[name].shape)
        if updated is not False:
            assert bool(torch.isfinite(after[name]).all())
            expected[name] = after[name].masked_fill(~stored, 0)
            changed += int((after[name] != before[name])[stored].sum())
        else:
            expected[name].masked_fill_(~stored, 0)
    assert updated is None or (changed > 0) == updated  # a refit may find nothing better
    for name, value in expected.items():
        assert torch.equal(after[name], value), name
        assert after[name].dtype == value.dtype
    assert math.isfinite(run.report["evaluation"]["pruned"]["loss"])


def pruned(kind: str, pruner: Pruner, grouping: str = "layer", **more: Any) -> tuple[nn.Module, secateur.Run]:
    """Prune a model of a kind, and check what is left of it."""
    model = build(kind)
    before = copy.deepcopy(model.state_dict())
    updated = more.pop("updated", False)
    run = secateur.prune(
        model,
        task(),
        pruner,
        density=0.4,
        grouping=grouping,
        allocation=Global() if grouping == "global" else None,
        **more,
    )
    assert_pruned(model, before, run, grouping, updated)
    return model, run


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["swin", *CONVOLUTIONAL])
def test_every_method_prunes_them(kind, method):
    pruner, updated = METHODS[method]
    steps = {"budget": "2steps"} if isinstance(pruner, ICBS) else {}
    deep = kind == "mobilenet" and not isinstance(pruner, OneShot)  # of which one run takes a second
    for grouping in ("output",) if deep else ("layer", "output"):
        pruned(kind, pruner, grouping, updated=updated, **steps)
    if deep:
        return
    if isinstance(pruner, ICBS | OneShot):
        pruned(kind, pruner, "global", **steps)
    else:
        with pytest.raises(SecateurError, match="layers cannot share one count"):
            pruned(kind, pruner, "global")


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"swin", *CONVOLUTIONAL}))
def test_other_kinds_are_pruned_too(kind):
    pruned(kind, QUICK, budget="1steps")
    pruned(kind, SparseGPT(), "output", updated=True)


REFITS: dict[str, Refit] = {
    "gradient": GradientSteps(steps=4, batches=Batches(guard=4)),
    "fisher": FisherSteps(steps=2, iterations=3, samples=8, batches=Batches(guard=4)),
    "least squares": LeastSquares(damping=0.1),
    "least squares by descent": LeastSquares(damping=0.1, direct=0),
    "ADMM": ADMM(damping=0.1),
}


@pytest.mark.parametrize("refit", REFITS)
@pytest.mark.parametrize("kind", ["vit", *CONVOLUTIONAL])
def test_kept_weights_are_refitted(kind, refit):
    model, run = pruned(kind, OneShot(Wanda()), updated=None, refit=REFITS[refit])
    assert {"masked", "pruned"} <= run.report["evaluation"].keys()
    measured = secateur.evaluate(model, task())["loss"]
    assert measured == pytest.approx(run.report["evaluation"]["pruned"]["loss"])


@pytest.mark.parametrize("kind", ["resnet", "convnext", "swin"])
@pytest.mark.parametrize("method", ["blocks", "gram swaps", "sparsegpt", "averaged"])
def test_models_are_restored_where_something_fails(kind, method):
    model = build(kind)
    before = copy.deepcopy(model.state_dict())
    pruner, _ = METHODS[method]
    seen: list[str] = []

    def fail(event: Any) -> None:
        seen.append(event.kind)
        if event.kind == "stepped":
            assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        secateur.prune(model, task(), pruner, density=0.4, budget="3steps", listeners=[fail])
    assert seen[-1] == "stepped"
    after = model.state_dict()
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any("forward" in module.__dict__ for module in model.modules())


# Files.


@pytest.mark.parametrize("kind", KINDS)
def test_pruned_models_are_saved_as_checkpoints(kind, tmp_path):
    model, run = pruned(kind, OneShot(Magnitude()), out=tmp_path / "run", save_model=True)
    folder = tmp_path / "run" / "model"
    loaded = AutoModelForImageClassification.from_pretrained(folder).eval()
    assert loaded.dtype == torch.float64
    same(loaded, model)
    file = save_checkpoint(model, tmp_path / "weights.safetensors", mask=run.mask)
    other = build(kind)
    other.load_state_dict(load_file(file))
    same(other, model)
    save_pretrained(model, tmp_path / "saved", mask=secateur.Mask.load(tmp_path / "run" / "mask.safetensors"))
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "saved").eval()
    same(again, model)


@pytest.mark.parametrize("keep", ["once", "parametrization", "hook"])
@pytest.mark.parametrize("kind", ["swin", *CONVOLUTIONAL])
def test_masks_are_applied_to_kernels(kind, keep, tmp_path):
    model = build(kind)
    before = copy.deepcopy(model.state_dict())
    layers = find_layers(model)[1:-1]
    draw = torch.Generator().manual_seed(0)
    mask = secateur.Mask({layer.name: torch.rand(layer.shape, generator=draw) < 0.4 for layer in layers})
    applied = apply_mask(model, mask, keep=keep)
    plain = build(kind)
    state = {name: value.clone() for name, value in before.items()}
    for layer in layers:
        state[layer.parameter_name][~mask[layer.name].reshape(state[layer.parameter_name].shape)] = 0
    plain.load_state_dict(state)
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-11, atol=1e-12)
    if keep != "once":
        optimiser = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1)
        x, y = pictures(4)
        for _ in range(3):
            optimiser.zero_grad()
            model(x, labels=y).loss.backward()
            optimiser.step()
    applied.check()
    trained = logits(model)
    save_pretrained(model, tmp_path / "saved", mask=mask)
    applied.remove()
    torch.testing.assert_close(logits(model), trained, rtol=1e-11, atol=1e-12)
    after = model.state_dict()
    assert after.keys() == before.keys()
    for layer in layers:
        kept = mask[layer.name].reshape(after[layer.parameter_name].shape)
        assert not after[layer.parameter_name][~kept].any()
    same(AutoModelForImageClassification.from_pretrained(tmp_path / "saved").eval(), model)


@pytest.mark.parametrize("method", ["averaged", "blocks", "gram blocks", "gram swaps", "sparsegpt"])
@pytest.mark.parametrize("kind", ["resnet", "convnext"])
def test_runs_that_are_stopped_go_on_to_the_same_mask(kind, method, tmp_path):
    pruner, _ = METHODS[method]
    settings: dict[str, Any] = {"density": 0.4}
    if method not in ("gram swaps", "sparsegpt"):
        settings["budget"] = "3steps"
    whole = build(kind)
    expected = secateur.prune(whole, task(), pruner, **settings)
    asked = iter([False, True])
    settings["out"] = tmp_path / "run"
    cut = secateur.prune(build(kind), task(), pruner, stop=lambda: next(asked), **settings)
    assert (cut.report["reason"], cut.report["steps"]) == ("interrupted", 1)
    model = build(kind)
    run = secateur.prune(model, task(), pruner, resume=True, **settings)
    assert run.mask.same_as(expected.mask)
    same(model, whole)


# A bound on memory.


@pytest.mark.parametrize("method", ["blocks", "gram blocks", "gram swaps", "sparsegpt", "averaged"])
@pytest.mark.parametrize("kind", ["resnet", "convnext"])
def test_a_bound_on_memory_holds_for_convolutions(kind, method):
    pruner, updated = METHODS[method]
    budget: dict[str, Any] = {} if method in ("gram swaps", "sparsegpt") else {"budget": "3steps"}
    with pytest.raises(SecateurError, match="of memory are not enough") as raised:
        secateur.prune(build(kind), task(), pruner, density=0.4, memory="1kB", **budget)
    found = re.search(r"--memory (\S+),", str(raised.value))
    assert found is not None
    steps: list[Any] = []
    _, run = pruned(kind, pruner, memory=found[1], updated=updated, listeners=[steps.append], **budget)
    held = run.report["memory"]
    assert held["total"] <= parse_bytes(found[1])
    if method in ("blocks", "gram blocks"):
        layers = [set(event.layers) for event in steps if event.kind == "stepped" and event.layers]
        assert max(len(found) for found in layers) < len(run.mask)


@pytest.mark.parametrize("kind", ["swin", *CONVOLUTIONAL])
def test_records_take_what_is_foreseen(kind):
    network = Network(build(kind).float())
    session = Session(network, task(), Uniform().budget(network.shapes, 0.5, "layer"), 0)
    plan(session, BLOCKS, None, None)
    for draws in (1, 2):
        tape = session.record(session.batch(torch.arange(5)), Fisher(draws=draws).needs, 0, draws)
        for layer in network.layers:
            held = numbers_of(tape.layers[layer.name])
            # Beside the tape: the mean gradient, that of the point reached, the diagonal, gains, their order.
            assert session.record_bytes(layer, 5, draws) == 4 * (held + 10 * layer.size)


def numbers_of(tape: LayerTape) -> int:
    """Count the numbers of a layer's records, or of the gradients in their place."""
    if isinstance(tape, SampleGradients):
        return tape.rows.numel()
    if isinstance(tape, LinearTape):
        assert tape.rows is not None
        return tape.inputs.numel() + tape.rows.numel()
    assert isinstance(tape, ConvolutionTape)
    return sum(use.inputs.numel() + use.rows.numel() for use in tape.uses if use.rows is not None)


# Other types of numbers, and layouts of memory.


@pytest.mark.parametrize("method", ["blocks", "averaged", "gram swaps", "dsnot", "sparsegpt", "ria"])
@pytest.mark.parametrize("kind", ["resnet", "convnext"])
@pytest.mark.parametrize("how", ["bfloat16", "channels last"])
def test_half_precision_and_layouts_stay_what_they_are(kind, method, how):
    pruner, updated = METHODS[method]
    model = build(kind)
    if how == "bfloat16":
        model.bfloat16()
    else:
        model.float().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    before = copy.deepcopy(model.state_dict())
    x, y = pictures()
    budget: dict[str, Any] = {"budget": "1steps"} if isinstance(pruner, ICBS) else {}
    run = secateur.prune(
        model, Classification.from_arrays(x.float(), y, raw=True), pruner, density=0.4, **budget
    )
    assert_pruned(model, before, run, "layer", updated)
    for name, value in model.state_dict().items():
        assert value.stride() == before[name].stride()
