"""Trained weights from files."""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from secateur.core.errors import SecateurError
from secateur.models.part import seeded

_WRAPPERS = ("state_dict", "model_state_dict", "model")
# Of batch normalisation: how many batches it has seen. Old files lack it, and evaluation needs it not.
_COUNTER = "num_batches_tracked"


def filled(make: Callable[[], nn.Module], weights: str | None, seed: int) -> nn.Module:
    """Make a network with weights from a file, or else drawn at random.

    Args:
        make: makes the network.
        weights: the file; None: there is none.
        seed: of the random weights.

    Returns:
        The network, in evaluation mode.
    """
    with seeded(seed, "initial weights"):
        model = make()
    if weights is not None:
        load_weights(model, weights)
    return model.eval()


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state_dict from a file written by torch.save or safetensors.

    Accepted are the state_dict itself and a checkpoint that holds it as ``state_dict``,
    ``model_state_dict`` or ``model``; a leading ``module.`` of every key (DataParallel) is dropped.

    Args:
        path: a .safetensors file, or one that torch.save wrote.

    Returns:
        The tensors by key, on the CPU.

    Raises:
        SecateurError: the file is missing, damaged, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise SecateurError(f"there is no file '{path}': give the path of the trained weights.")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SecateurError(
            f"'{path}' holds more than weights (or is damaged), and opening it could run any code: save the "
            "weights anew with torch.save(model.state_dict(), path)."
        ) from error
    except Exception as error:  # damaged files make torch raise errors of any kind
        reason = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
        raise SecateurError(
            f"cannot read the weights in '{path}' ({reason}): is the file damaged?"
        ) from error
    for name in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise SecateurError(
            f"'{path}' holds no state_dict: save the weights with torch.save(model.state_dict(), path)."
        )
    prefix = "module." if all(str(key).startswith("module.") for key in content) else ""
    return {str(key).removeprefix(prefix): value for key, value in content.items()}


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Fill a network with trained weights; every key must fit, and the weights must be finite.

    What batch normalisation counts (``num_batches_tracked``) may be missing.

    Args:
        model: the network.
        path: where the weights are.

    Raises:
        SecateurError: the weights do not fit the network, or some are NaN or infinite.
    """
    wanted = model.state_dict()
    counters = {key: value for key, value in wanted.items() if key.rpartition(".")[2] == _COUNTER}
    weights = counters | read_state_dict(path)
    faults = _faults(wanted, weights)
    if faults:
        raise SecateurError(f"the weights in '{path}' do not fit the model: {'; '.join(faults)}.")
    for key, value in weights.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            bad = int((~torch.isfinite(value)).sum())
            raise SecateurError(
                f"{bad} of the {value.numel()} numbers in '{key}' of '{path}' are NaN or infinite: train "
                "the model anew, or fetch another checkpoint."
            )
    model.load_state_dict(weights)


def _faults(wanted: Mapping[str, Any], weights: Mapping[str, Tensor]) -> list[str]:
    """Describe what does not fit, the first few keys of each kind."""
    missing = [key for key in wanted if key not in weights]
    unexpected = [key for key in weights if key not in wanted]
    shaped = [
        f"{key} is {list(weights[key].shape)} in the file but {list(value.shape)} in the model"
        for key, value in wanted.items()
        if key in weights and isinstance(value, Tensor) and value.shape != weights[key].shape
    ]
    kinds = (("the file lacks ", missing), ("the model lacks ", unexpected), ("", shaped))
    return [intro + _few(keys) for intro, keys in kinds if keys]


def _few(words: list[str], most: int = 3) -> str:
    """Join the first few words."""
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")
