"""Save a model as an ordinary dense checkpoint, which loads without Secateur."""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from secateur.core.errors import SecateurError
from secateur.core.files import replacing
from secateur.core.layer import all_layers
from secateur.core.mask import Mask
from secateur.export.stored import check_state

DIFFERS = "after writing, '{}' in the file differs from the model: save again, to another disk."


def computed_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Give a state_dict as if no weight were parametrized: each key holds what the model computes with.

    Args:
        model: the network.

    Returns:
        Tensors where the model has them; those of shared weights share memory here, too.

    Raises:
        SecateurError: the model keeps something other than tensors in its state_dict.
    """
    state = dict(model.state_dict())
    computed: dict[int, Tensor] = {}
    for name, module in model.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        at = f"{name}." if name else ""
        state = {key: value for key, value in state.items() if not key.startswith(f"{at}parametrizations.")}
        assert isinstance(module.parametrizations, nn.ModuleDict)
        for parameter, parametrizations in module.parametrizations.items():
            original = id(getattr(parametrizations, "original", parametrizations))
            if original not in computed:
                computed[original] = getattr(module, parameter).detach()
            state[f"{at}{parameter}"] = computed[original]
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise SecateurError(
                f"the model's state_dict holds a {type(value).__name__} under '{key}': a checkpoint holds "
                "tensors only, so save this model with torch.save."
            )
    return state


def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Give the same with each key standing on its own, as in a file.

    Args:
        model: the network.

    Returns:
        Contiguous tensors on the CPU that share no memory with one another.
    """
    state = computed_state_dict(model)
    seen: set[int] = set()
    plain: dict[str, Tensor] = {}
    for key, value in state.items():
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        plain[key] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return plain


def save_checkpoint(model: nn.Module, path: str | Path, *, mask: Mask | None = None) -> Path:
    """Write a model's weights as a .safetensors file, and read them back to see that they are there.

    Load it with ``model.load_state_dict(safetensors.torch.load_file(path))``. The file takes as
    much room as before pruning: zeros are stored like any number.

    Args:
        model: the network, masked or not.
        path: where to; its name must end in .safetensors.
        mask: what the file is checked against; None: against the model only.

    Returns:
        The path.

    Raises:
        SecateurError: the mask does not hold in the model, the disk is full, or what was written
            is not what is in memory.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise SecateurError(f"'{path}' does not end in .safetensors: checkpoints are written in that format.")
    state = plain_state_dict(model)
    if mask is not None:
        check_state(state, mask, all_layers(model))
    with replacing(path) as temporary:
        save_file(state, temporary, {"format": "pt"})
        verify_checkpoint(temporary, state)
    return path


def verify_checkpoint(path: str | Path, state: dict[str, Tensor]) -> None:
    """Compare a file with the tensors in memory, bit by bit, one tensor at a time.

    Args:
        path: a .safetensors file.
        state: what it should hold.

    Raises:
        SecateurError: it holds something else.
    """
    with safe_open(str(path), framework="pt") as file:
        keys = set(file.keys())
        for key, tensor in state.items():
            if key not in keys or not same_bits(file.get_tensor(key), tensor):
                raise SecateurError(DIFFERS.format(key))


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Compare tensors as bytes, so that NaN equals itself and -0 differs from 0.

    Args:
        a: a tensor on the CPU.
        b: another.

    Returns:
        True where shape, type and every bit agree.
    """
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
