"""The checkpoint of a run: the pruner's state and what else a resume needs, in one file."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.files import replacing
from secateur.pruners import State

# The number rises whenever a checkpoint's content changes.
_FORMAT = "secateur-state-5"


def write_checkpoint(path: Path, state: State, facts: dict[str, Any]) -> None:
    """Replace the checkpoint as a whole.

    Args:
        path: where to.
        state: the pruner's state.
        facts: what else a resume needs, ready for JSON.
    """
    tensors, numbers = state.tensors(), json.dumps(state.numbers())
    header = {"format": _FORMAT, "numbers": numbers, "facts": json.dumps(facts)}
    header["digest"] = _digest(tensors, header)
    with replacing(path) as temporary:
        save_file(tensors, str(temporary), header)


def read_checkpoint(path: Path, device: torch.device) -> tuple[State, dict[str, Any]]:
    """Read what `write_checkpoint` wrote, and see that not a bit of it has changed.

    Args:
        path: where from.
        device: where the state's tensors go.

    Returns:
        The state and the facts.

    Raises:
        SecateurError: the checkpoint is damaged, or of another version of Secateur.
    """
    damaged = SecateurError(
        f"the checkpoint '{path}' is damaged and cannot be resumed: start again with another run folder."
    )
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        version = header.get("format", "")
        sound = header.get("digest") == _digest(tensors, header)
    except (OSError, SafetensorError, ValueError) as error:
        raise damaged from error
    if version.startswith("secateur-state-") and version != _FORMAT:
        raise SecateurError(
            f"the checkpoint '{path}' was written by another version of Secateur: resume it with that "
            "version, or start again with another run folder."
        )
    if not sound:
        raise damaged
    state = State.rebuild(tensors, json.loads(header["numbers"]), device)
    return state, json.loads(header["facts"])


def _digest(tensors: dict[str, Tensor], header: dict[str, str]) -> str:
    """Digest everything a checkpoint holds."""
    digest = hashlib.blake2b(digest_size=16)
    for key in ("format", "numbers", "facts"):
        digest.update(header.get(key, "").encode())
    for name in sorted(tensors):
        digest.update(f"{name}{tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
