"""Export: zeros that stay zero in fine-tuning, and checkpoints that load without Secateur."""

import copy
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from secateur.core.errors import SecateurError
from secateur.core.layer import find_layers
from secateur.core.mask import Mask
from secateur.evaluation import evaluate
from secateur.export import apply_mask, checkpoint, plain_state_dict, save_checkpoint
from secateur.testing.networks import NETWORKS, Network, dead_layer, mlp, shared_weight

OPTIMISERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), 0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), 0.01, weight_decay=0.1),
}


def random_mask(model: nn.Module, seed: int = 0, density: float = 0.4) -> Mask:
    draw = torch.Generator().manual_seed(seed)
    return Mask(
        {layer.name: torch.rand(layer.shape, generator=draw) < density for layer in find_layers(model)}
    )


def train(network: Network, optimiser: torch.optim.Optimizer, steps: int = 5) -> None:
    batch = network.task.batch("calibration", torch.arange(30), torch.device("cpu"))
    for _ in range(steps):
        optimiser.zero_grad()
        network.task.losses(network.task.forward(network.model, batch), batch.targets).mean().backward()
        optimiser.step()


def weights(model: nn.Module, mask: Mask) -> dict[str, Tensor]:
    return {name: model.get_submodule(name).weight.detach().clone() for name in mask}  # type: ignore[union-attr]


def assert_zeros(model: nn.Module, mask: Mask) -> None:
    for name, weight in weights(model, mask).items():
        assert not weight[~mask[name]].any(), name


@pytest.mark.parametrize("keep", ["once", "parametrization", "hook"])
@pytest.mark.parametrize("name", NETWORKS)
def test_kept_weights_equal_the_reference(name: str, keep: str) -> None:
    network = NETWORKS[name]()
    mask, before = random_mask(network.model), copy.deepcopy(network.model)
    applied = apply_mask(network.model, mask, keep=keep)  # type: ignore[arg-type]
    assert applied.check() == mask.density
    for layer in find_layers(before):
        for module_name, module in before.named_modules():
            if module in layer.modules:
                now = network.model.get_submodule(module_name).weight
                keep_here = mask[layer.name]
                assert torch.equal(now, torch.where(keep_here, module.weight, 0.0))  # type: ignore[arg-type]
                assert not torch.signbit(now.detach()[~keep_here]).any()  # type: ignore[index]
    assert evaluate(network.model, network.task)["loss"] > 0


def test_the_mask_changes_the_output_as_zeros_do() -> None:
    networks = [mlp(), mlp(), mlp()]
    mask = random_mask(networks[0].model)
    for network, keep in zip(networks, ("once", "parametrization", "hook"), strict=True):
        apply_mask(network.model, mask, keep=keep)  # type: ignore[arg-type]
    losses = {evaluate(n.model, n.task)["loss"] for n in networks}
    assert len(losses) == 1


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("keep", ["parametrization", "hook"])
@pytest.mark.parametrize("build", [mlp, shared_weight])
def test_fine_tuning_keeps_zeros_zero(build: Callable[[], Network], keep: str, optimiser: str) -> None:
    network = build()
    mask = random_mask(network.model)
    applied = apply_mask(network.model, mask, keep=keep)  # type: ignore[arg-type]
    before = weights(network.model, mask)
    loss = evaluate(network.model, network.task, "calibration")["loss"]
    train(network, OPTIMISERS[optimiser](network.model))
    applied.check()
    assert_zeros(network.model, mask)
    for name, weight in weights(network.model, mask).items():
        assert (weight != before[name])[mask[name]].all()
    assert evaluate(network.model, network.task, "calibration")["loss"] < loss


def test_once_is_filled_again_by_training() -> None:
    network = mlp()
    applied = apply_mask(network.model, random_mask(network.model))
    train(network, OPTIMISERS["sgd"](network.model))
    with pytest.raises(SecateurError, match=r"pruned weights of layer '0' are not 0.*parametrization"):
        applied.check()


def test_both_ways_train_to_the_same_weights() -> None:
    networks = [mlp(), mlp()]
    mask = random_mask(networks[0].model)
    for network, keep in zip(networks, ("parametrization", "hook"), strict=True):
        apply_mask(network.model, mask, keep=keep)  # type: ignore[arg-type]
        train(network, torch.optim.SGD(network.model.parameters(), 0.1))
    left, right = (weights(network.model, mask) for network in networks)
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-12, atol=0)


def test_an_optimiser_with_old_momentum_cannot_fill_the_zeros() -> None:
    network = mlp()
    optimiser = torch.optim.Adam(network.model.parameters(), 0.01)
    train(network, optimiser)
    mask = random_mask(network.model)
    apply_mask(network.model, mask, keep="hook")
    train(network, optimiser, steps=1)
    state = network.model.state_dict()
    for name in mask:
        assert not state[f"{name}.weight"][~mask[name]].any()


@pytest.mark.parametrize("build", [mlp, shared_weight])
def test_removal_leaves_plain_parameters(build: Callable[[], Network]) -> None:
    for keep in ("parametrization", "hook"):
        network = build()
        keys, count = list(network.model.state_dict()), len(list(network.model.parameters()))
        mask = random_mask(network.model)
        applied = apply_mask(network.model, mask, keep=keep)  # type: ignore[arg-type]
        train(network, OPTIMISERS["sgd"](network.model))
        tuned = weights(network.model, mask)
        applied.remove()
        applied.remove()  # twice does no harm
        assert sorted(network.model.state_dict()) == sorted(keys)
        assert len(list(network.model.parameters())) == count
        assert all(torch.equal(w, tuned[name]) for name, w in weights(network.model, mask).items())
        assert not any(m._forward_pre_hooks or m._state_dict_pre_hooks for m in network.model.modules())
        apply_mask(network.model, mask)


def test_torch_alone_can_remove_the_parametrization() -> None:
    network = mlp()
    mask = random_mask(network.model)
    apply_mask(network.model, mask, keep="parametrization")
    assert "0.parametrizations.weight.original" in network.model.state_dict()
    for name in mask:
        module = network.model.get_submodule(name)
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    assert_zeros(network.model, mask)
    assert "0.weight" in network.model.state_dict()


def test_assigned_weights_are_masked_too() -> None:
    network = mlp()
    mask = random_mask(network.model)
    apply_mask(network.model, mask, keep="parametrization")
    module = network.model[0]  # type: ignore[index]
    module.weight = torch.where(mask["0"], 2.0, -torch.inf).double()
    assert torch.equal(module.weight, mask["0"] * 2.0)
    assert not torch.signbit(module.weight).any()


def test_masks_from_files_and_folders(tmp_path: Path) -> None:
    network = mlp()
    mask = random_mask(network.model)
    mask.save(tmp_path / "mask.safetensors")
    apply_mask(network.model, tmp_path)
    assert_zeros(network.model, mask)
    apply_mask(mlp().model, str(tmp_path / "mask.safetensors"))
    with pytest.raises(SecateurError, match=r"no mask '.*none'.*folder of a run"):
        apply_mask(network.model, tmp_path / "none")


def test_masks_of_other_models_change_nothing() -> None:
    network = mlp()
    before = copy.deepcopy(network.model.state_dict())
    mask = random_mask(network.model)
    others = [
        (random_mask(dead_layer().model), r"another model: it has a layer 'first' \(3 of its 3.*0, 2, 4"),
        (Mask({**mask.layers, "4": mask["2"]}), r"layer '4' is \[7, 8\], the model's \[4, 7\]"),
    ]
    for other, message in others:
        with pytest.raises(SecateurError, match=message):
            apply_mask(network.model, other)
    with pytest.raises(SecateurError, match="'hok': did you mean 'hook'"):
        getattr(apply_mask, "__wrapped__", apply_mask)(network.model, mask, keep="hok")  # type: ignore[arg-type]
    assert all(torch.equal(value, before[key]) for key, value in network.model.state_dict().items())
    apply_mask(network.model, mask, keep="parametrization")
    with pytest.raises(SecateurError, match="'0' is parametrized already: remove that first"):
        apply_mask(network.model, mask)


@pytest.mark.parametrize("keep", ["once", "parametrization", "hook"])
@pytest.mark.parametrize("build", [mlp, shared_weight])
def test_checkpoints_load_with_plain_torch(tmp_path: Path, build: Callable[[], Network], keep: str) -> None:
    network, fresh = build(), build(1)  # type: ignore[call-arg]
    mask = random_mask(network.model)
    apply_mask(network.model, mask, keep=keep)  # type: ignore[arg-type]
    path = save_checkpoint(network.model, tmp_path / "new" / "model.safetensors", mask=mask)
    fresh.model.load_state_dict(load_file(path))
    assert_zeros(fresh.model, mask)
    assert evaluate(fresh.model, network.task)["loss"] == evaluate(network.model, network.task)["loss"]
    assert [entry.name for entry in path.parent.iterdir()] == ["model.safetensors"]


def test_checkpoints_are_as_readable_as_any_file(tmp_path: Path) -> None:
    (tmp_path / "any").touch()
    path = save_checkpoint(mlp().model, tmp_path / "model.safetensors")
    assert path.stat().st_mode == (tmp_path / "any").stat().st_mode


def test_views_of_one_tensor_are_saved_apart() -> None:
    model = nn.Module()
    whole = torch.arange(6.0)
    model.register_buffer("left", whole[:3])
    model.register_buffer("right", whole[3:])
    state = plain_state_dict(model)
    assert state["right"].tolist() == [3, 4, 5]
    assert state["right"].untyped_storage().data_ptr() != state["left"].untyped_storage().data_ptr()


def test_a_mask_that_does_not_hold_is_not_saved(tmp_path: Path) -> None:
    network = mlp()
    mask = random_mask(network.model)
    with pytest.raises(SecateurError, match="apply the mask before saving"):
        save_checkpoint(network.model, tmp_path / "m.safetensors", mask=mask)
    with pytest.raises(SecateurError, match="another model"):
        save_checkpoint(network.model, tmp_path / "m.safetensors", mask=random_mask(dead_layer().model))
    with pytest.raises(SecateurError, match=r"does not end in .safetensors"):
        save_checkpoint(network.model, tmp_path / "m.pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        # What safetensors 0.8 raises on a full disk.
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    path = save_checkpoint(mlp().model, tmp_path / "m.safetensors")
    before = path.read_bytes()

    def full(tensors: dict[str, Tensor], target: Path, metadata: dict[str, str]) -> None:
        Path(target).write_bytes(b"half")
        raise error

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(SecateurError, match=r"no space left.*make room and try again; what was there before"):
        save_checkpoint(mlp(1).model, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_file_that_differs_from_memory_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = checkpoint.save_file

    def damaging(tensors: dict[str, Tensor], target: Path, metadata: dict[str, str]) -> None:
        changed = {key: value.clone() for key, value in tensors.items()}
        changed["0.weight"][0, 0] += 1
        real(changed, target, metadata)

    monkeypatch.setattr(checkpoint, "save_file", damaging)
    with pytest.raises(SecateurError, match=r"'0.weight' in the file differs"):
        save_checkpoint(mlp().model, tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SecateurError, match=r"cannot write .*give another place"):
        save_checkpoint(mlp().model, tmp_path / "file" / "m.safetensors")
    (tmp_path / "m.safetensors").mkdir()
    with pytest.raises(SecateurError, match="is a folder"):
        save_checkpoint(mlp().model, tmp_path / "m.safetensors")
