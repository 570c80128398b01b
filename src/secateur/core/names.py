"""What the variables of a block problem are called outside: 0 ... n-1, or x0 ... x(n-1)."""

import re
from typing import Any

from secateur.core.errors import SecateurError

_NAME = re.compile(r"x?(\d+)")


def position(label: Any, size: int) -> int:
    """Find the variable that a label stands for.

    Args:
        label: its number, or a name such as ``"x12"``.
        size: n, how many variables there are.

    Returns:
        Its number.

    Raises:
        SecateurError: there is no such variable.
    """
    found = _NAME.fullmatch(str(label))
    if found is None or int(found[1]) >= size:
        raise SecateurError(
            f"there is no variable '{label}' in a problem of {size} variables, whose names are x0, x1 and so "
            "on: this is the answer to another problem."
        )
    return int(found[1])
