"""Save a model of transformers as an ordinary checkpoint folder, which loads without Secateur."""

import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from secateur.core.errors import SecateurError
from secateur.core.files import replacing_folder
from secateur.core.layer import all_layers
from secateur.core.mask import Mask
from secateur.export.checkpoint import DIFFERS, computed_state_dict, same_bits
from secateur.export.stored import check_state


def is_pretrained(model: nn.Module) -> bool:
    """Say whether a model is one of transformers.

    Args:
        model: the network.

    Returns:
        True for every PreTrainedModel.
    """
    known = sys.modules.get("transformers.modeling_utils")  # a model of it has imported it
    return known is not None and isinstance(model, known.PreTrainedModel)


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    tokenizer: Any = None,
    processor: Any = None,
    mask: Mask | None = None,
    max_shard_size: str = "50GB",
) -> Path:
    """Write a model of transformers as it writes them itself, and read it back to see that it is there.

    Load it with ``AutoModelForCausalLM.from_pretrained(folder)``, or the Auto class of what it is. The
    files take as much room as before pruning: zeros are stored like any number, and the type of the
    weights stays. What is written is compared with the model bit by bit; where transformers renames or
    divides tensors for the disk (the experts of some mixtures), the folder is loaded for that, which needs
    memory for a second copy.

    Args:
        model: the network, masked or not.
        folder: where to; a folder that holds a checkpoint is replaced as soon as the new one is whole.
        tokenizer: saved beside it; None: none.
        processor: of a model that takes pictures: its image processor, likewise.
        mask: what the zeros are checked against; None: they are not.
        max_shard_size: the size above which weights are divided into several files.

    Returns:
        The folder.

    Raises:
        SecateurError: the model is none of transformers or cannot be saved by it, the mask does not hold,
            the disk is full, or what was written is not what is in memory.
    """
    if not is_pretrained(model):
        raise SecateurError(
            f"{type(model).__name__} is no model of transformers: save it with "
            "secateur.export.save_checkpoint."
        )
    state = computed_state_dict(model)
    away = next((key for key, tensor in state.items() if tensor.is_meta), None)
    if away is not None:
        raise SecateurError(
            f"the weight '{away}' is not in memory but offloaded: load the model whole to save it."
        )
    if mask is not None:
        check_state(state, mask, all_layers(model))
    with replacing_folder(folder, "config.json") as temporary, _quiet():
        _write(model, state, temporary, (tokenizer, processor), max_shard_size)
        _verify(model, state, temporary)
    return Path(folder)


def _write(
    model: Any, state: Mapping[str, Tensor], folder: Path, companions: Iterable[Any], max_shard_size: str
) -> None:
    """Have transformers write everything."""
    try:
        model.save_pretrained(folder, state_dict=dict(state), max_shard_size=max_shard_size)
        for companion in companions:
            if companion is not None:
                companion.save_pretrained(folder)
    except (ValueError, RuntimeError, TypeError, AttributeError, NotImplementedError) as error:
        said = " ".join(str(error).split())
        raise SecateurError(
            f"transformers cannot save {type(model).__name__} ({said}): change what it complains of "
            "(the model's config, generation_config, tokenizer or image processor) and save again."
        ) from error


def _verify(model: Any, state: Mapping[str, Tensor], folder: Path) -> None:
    """Compare what was written with the model in memory, bit by bit, one tensor at a time."""
    files = sorted(folder.glob("*.safetensors"))
    places: dict[str, Path] = {}
    for file in files:
        with safe_open(str(file), framework="pt") as opened:
            places |= dict.fromkeys(opened.keys(), file)
    written = {_place(state[key]) for key in places if key in state}
    tied = {key for key in state if key not in places and _place(state[key]) in written}
    left_out = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    if places.keys() | tied | left_out >= state.keys() >= places.keys():
        for file in files:
            with safe_open(str(file), framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118
                    if not same_bits(opened.get_tensor(key), state[key].cpu()):
                        raise SecateurError(DIFFERS.format(key))
        return
    loaded = type(model).from_pretrained(folder, dtype=model.dtype, local_files_only=True).state_dict()
    for key in state.keys() - left_out:
        if key not in loaded or not same_bits(loaded[key], state[key].cpu()):
            raise SecateurError(DIFFERS.format(key))


def _place(tensor: Tensor) -> tuple[int, int, tuple[int, ...]]:
    """Tell tensors that are the same memory from others."""
    return tensor.data_ptr(), tensor.numel(), tuple(tensor.stride())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from drawing progress bars, and from warning of offloading that there is none of."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*with offloaded modules")
            yield
    finally:
        if shown:
            logging.enable_progress_bar()
