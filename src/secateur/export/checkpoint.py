"""Save a model as an ordinary dense checkpoint, which loads without Secateur."""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from secateur.core.errors import SecateurError
from secateur.core.files import replacing
from secateur.core.mask import Mask


def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Give a state_dict as if no weight were parametrized: each key holds what the model computes with.

    Args:
        model: the network.

    Returns:
        Contiguous tensors on the CPU that share no memory with one another, so that each key
        stands on its own in the file.

    Raises:
        SecateurError: the model keeps something other than tensors in its state_dict.
    """
    state = dict(model.state_dict())
    for name, module in model.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        at = f"{name}." if name else ""
        state = {key: value for key, value in state.items() if not key.startswith(f"{at}parametrizations.")}
        assert isinstance(module.parametrizations, nn.ModuleDict)
        for parameter in module.parametrizations:
            state[f"{at}{parameter}"] = getattr(module, parameter).detach()
    seen: set[int] = set()
    plain: dict[str, Tensor] = {}
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise SecateurError(
                f"the model's state_dict holds a {type(value).__name__} under '{key}': a checkpoint holds "
                "tensors only, so save this model with torch.save."
            )
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
        _check_mask(state, mask)
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
            if key not in keys or not _same_bits(file.get_tensor(key), tensor):
                raise SecateurError(
                    f"after writing, '{key}' in the file differs from the model: save again, to another disk."
                )


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Compare tensors as bytes, so that NaN equals itself and -0 differs from 0."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def _check_mask(state: dict[str, Tensor], mask: Mask) -> None:
    """See that every pruned weight is 0 in what is about to be written."""
    for name, matrix in mask.items():
        key = f"{name}.weight" if name else "weight"
        if key not in state or state[key].shape != matrix.shape:
            raise SecateurError(
                f"the mask belongs to another model: the model has no '{key}' {list(matrix.shape)}."
            )
        alive = int(torch.count_nonzero(state[key][~matrix.cpu()]))
        if alive:
            raise SecateurError(
                f"{alive} pruned weights of layer '{name}' are not 0 in the model: apply the mask before "
                "saving."
            )
