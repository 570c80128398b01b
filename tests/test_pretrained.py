"""Checkpoint folders of transformers: whole or not there, and what is in them is what was in memory."""

import errno
import os
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from secateur.core.errors import SecateurError
from secateur.core.layer import find_layers
from secateur.core.mask import Mask
from secateur.export import apply_mask, save_pretrained
from secateur.runs.folder import RunFolder


def llama(seed: int = 0, **changes) -> PreTrainedModel:
    torch.manual_seed(seed)
    small = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
    config = LlamaConfig(**{**small, "num_attention_heads": 2, **changes})
    return AutoModelForCausalLM.from_config(config).eval()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same(model: nn.Module, folder: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    state = model.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


class Tokenizer:
    """Stands in for one of transformers."""

    def save_pretrained(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")


def test_a_new_checkpoint_takes_the_place_of_an_old_one(tmp_path):
    folder = tmp_path / "new" / "model"
    save_pretrained(llama(), folder, tokenizer=Tokenizer())
    assert set(contents(folder)) == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"
    }  # fmt: skip
    second = llama(1)
    assert save_pretrained(second, str(folder)) == folder
    assert "tokenizer.json" not in contents(folder)
    assert_same(second, folder)
    assert [entry.name for entry in folder.parent.iterdir()] == ["model"]


def test_checkpoints_are_as_readable_as_any_folder(tmp_path):
    (tmp_path / "any").mkdir()
    folder = save_pretrained(llama(), tmp_path / "model")
    assert folder.stat().st_mode == (tmp_path / "any").stat().st_mode


def test_weights_in_several_files_are_verified_and_load(tmp_path, monkeypatch):
    model = llama()
    save_pretrained(model, tmp_path / "model", max_shard_size="2KB")
    files = sorted(tmp_path.glob("model/*.safetensors"))
    assert len(files) > 2
    assert (tmp_path / "model" / "model.safetensors.index.json").exists()
    assert_same(model, tmp_path / "model")
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", damaging(files[-1].name))
    with pytest.raises(SecateurError, match="in the file differs from the model"):
        save_pretrained(model, tmp_path / "model", max_shard_size="2KB")
    assert_same(model, tmp_path / "model")


def damaging(name: str):
    """Save as transformers does, and then flip a bit in a file."""
    real = PreTrainedModel.save_pretrained

    def save(self, folder, **settings):
        real(self, folder, **settings)
        tensors = load_file(Path(folder) / name)
        first = next(iter(tensors.values()))
        first.view(torch.int32).view(-1)[-1] ^= 1
        save_file(tensors, Path(folder) / name, {"format": "pt"})

    return save


def test_experts_that_are_divided_for_the_disk_are_verified_by_loading(tmp_path, monkeypatch):
    config = transformers.MixtralConfig(
        vocab_size=32, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=3,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    folder = save_pretrained(model, tmp_path / "model")
    assert "model.layers.0.block_sparse_moe.experts.2.w1.weight" in load_file(folder / "model.safetensors")
    assert_same(model, folder)
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", damaging("model.safetensors"))
    with pytest.raises(SecateurError, match="in the file differs from the model"):
        save_pretrained(model, folder)
    assert_same(model, folder)


@pytest.mark.parametrize("tie", [True, False])
def test_tied_weights_stay_tied(tmp_path, tie):
    model = llama(tie_word_embeddings=tie)
    folder = save_pretrained(model, tmp_path / "model")
    assert ("lm_head.weight" in load_file(folder / "model.safetensors")) is not tie
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is tie
    assert_same(model, folder)


def test_a_mask_must_hold_in_what_is_written(tmp_path):
    model = llama()
    mask = Mask({layer.name: torch.rand(layer.shape) < 0.5 for layer in find_layers(model)})
    with pytest.raises(SecateurError, match="apply the mask before saving"):
        save_pretrained(model, tmp_path / "model", mask=mask)
    with pytest.raises(SecateurError, match="another model"):
        save_pretrained(model, tmp_path / "model", mask=Mask({"first": torch.ones(2, 2, dtype=torch.bool)}))
    assert not list(tmp_path.iterdir())
    apply_mask(model, mask)
    folder = save_pretrained(model, tmp_path / "model", mask=mask)
    stored = load_file(folder / "model.safetensors")
    assert all(not stored[f"{name}.weight"][~keep].any() for name, keep in mask.items())


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    folder = save_pretrained(llama(), tmp_path / "model")
    before = contents(folder)

    def full(self, folder, **settings):
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with pytest.raises(SecateurError, match=r"no space left.*make room and try again; what was there before"):
        save_pretrained(llama(1), folder)
    assert contents(folder) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_an_interrupted_exchange_puts_the_old_folder_back(tmp_path, monkeypatch):
    folder = save_pretrained(llama(), tmp_path / "model")
    before, rename = contents(folder), Path.rename

    def interrupted(self, target):
        if Path(target) == folder and (self / "config.json").exists() and not contents(self) == before:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(llama(1), folder)
    assert contents(folder) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_run_folder_is_cleared_of_a_checkpoint_that_was_not_finished(tmp_path):
    (tmp_path / "events.jsonl").touch()
    (tmp_path / ".model.0123.part").mkdir()
    (tmp_path / ".model.0123.part" / "config.json").touch()
    RunFolder.open(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["events.jsonl"]


def test_folders_that_hold_something_else_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").touch()
    for place in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(SecateurError, match=r"is no earlier checkpoint \(it holds no config.json\)"):
            save_pretrained(llama(), place)
    with pytest.raises(SecateurError, match=r"cannot write .*give another place"):
        save_pretrained(llama(), tmp_path / "notes.txt" / "model")
    (tmp_path / "empty").mkdir()
    save_pretrained(llama(), tmp_path / "empty")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["empty", "notes.txt"]


def test_models_that_cannot_be_saved(tmp_path):
    with pytest.raises(SecateurError, match=r"Linear is no model of transformers: .*save_checkpoint"):
        save_pretrained(nn.Linear(2, 2), tmp_path / "model")
    with torch.device("meta"):
        model = llama()
    with pytest.raises(SecateurError, match=r"'model.embed_tokens.weight' is not in memory but offloaded"):
        save_pretrained(model, tmp_path / "model")
    model = llama()
    model.generation_config.temperature, model.generation_config.do_sample = 0.5, False
    with pytest.raises(SecateurError, match=r"transformers cannot save LlamaForC.* \(.*generation_config"):
        save_pretrained(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())
