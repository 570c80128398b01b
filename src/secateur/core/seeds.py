"""Random draws that depend on nothing but the seed, what they are for, and the step."""

import hashlib

import torch


def derive_seed(seed: int, purpose: str, step: int = 0) -> int:
    """Derive a 63-bit seed for one purpose at one step.

    Nothing is carried from draw to draw, so a resumed run draws what an uninterrupted one
    draws, and adding a draw somewhere does not shift the draws elsewhere.

    Args:
        seed: the seed of the run.
        purpose: what is drawn, such as ``"batch"`` or ``"labels"``.
        step: the step, stage or epoch it is drawn in.

    Returns:
        The derived seed.
    """
    digest = hashlib.blake2b(f"{seed}/{purpose}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """Give a CPU generator seeded by `derive_seed`.

    Args:
        seed: the seed of the run.
        purpose: what is drawn.
        step: the step, stage or epoch it is drawn in.

    Returns:
        A fresh generator.
    """
    return torch.Generator().manual_seed(derive_seed(seed, purpose, step))
