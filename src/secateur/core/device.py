"""Where a model computes: which device was meant, what it is called and what it is good at."""

from typing import Literal

import torch

from secateur.core.errors import SecateurError

Device = Literal["auto", "cpu", "cuda"]


def find_device(wanted: Device) -> str:
    """Say where to compute.

    Args:
        wanted: the device, or ``"auto"``, the GPU where torch sees one.

    Returns:
        The device.

    Raises:
        SecateurError: it is not there.
    """
    seen = torch.cuda.is_available()
    if wanted == "cuda" and not seen:
        raise SecateurError(
            "device is 'cuda', but torch sees no GPU: give --device cpu (run.device in a recipe), or see "
            "`secateur doctor`."
        )
    return ("cuda" if seen else "cpu") if wanted == "auto" else wanted


def device_name(device: torch.device) -> str:
    """Name the hardware.

    Args:
        device: where a model is.

    Returns:
        What the GPU is called, or ``"cpu"``.
    """
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def has_fast_bfloat16(device: torch.device) -> bool:
    """Say whether a device multiplies bfloat16 faster than float32.

    Args:
        device: the device.

    Returns:
        Whether it has instructions for that; False where torch cannot tell.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    ask = getattr(torch.cpu, "get_capabilities", dict) if device.type == "cpu" else dict
    abilities = ask()
    return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))
