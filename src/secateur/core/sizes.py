"""Amounts of memory, read and written as people do."""

import re

from secateur.core.errors import SecateurError

_UNITS = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "KI": 2**10,
    "MI": 2**20,
    "GI": 2**30,
    "TI": 2**40,
}


def parse_bytes(words: str) -> int:
    """Read an amount of memory.

    Args:
        words: such as ``"8GB"``, ``"500 MB"`` or ``"1.5GiB"``.

    Returns:
        Bytes.

    Raises:
        SecateurError: it cannot be read.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*", str(words).upper())
    if found is None or not float(found[1]) > 0:
        raise SecateurError(f"memory is '{words}': give an amount such as 8GB or 500MB.")
    return int(float(found[1]) * _UNITS[found[2] or ""])


def in_words(amount: float | int) -> str:
    """Write an amount of memory.

    Args:
        amount: bytes.

    Returns:
        Such as ``"1.5 GB"``.
    """
    units = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 1000))
    unit, size = next((u for u in units if amount >= 0.9995 * u[1]), units[-1])
    shown = amount / size
    return f"{shown:.0f} {unit}" if shown >= 99.95 else f"{shown:.3g} {unit}"
