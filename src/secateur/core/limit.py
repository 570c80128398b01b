"""How long a run may take: seconds or steps."""

import re
from dataclasses import dataclass

from secateur.core.errors import SecateurError

_SECONDS = {"s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Limit:
    """A bound on a run; None = no bound of that kind.

    Attributes:
        seconds: wall-clock time.
        steps: steps (one-block iCBS) or stages.
    """

    seconds: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            SecateurError: one is not positive.
        """
        for name, value in (("seconds", self.seconds), ("steps", self.steps)):
            if value is not None and not value > 0:
                raise SecateurError(f"a limit needs a positive number of {name}, not {value}.")

    @classmethod
    def parse(cls, text: "str | Limit | None") -> "Limit":
        """Read ``"60s"``, ``"10min"``, ``"1.5h"`` or ``"500steps"``.

        Args:
            text: what was typed; None or ``""`` for no bound.

        Returns:
            The limit.

        Raises:
            SecateurError: it is none of those.
        """
        if isinstance(text, Limit):
            return text
        if text is None or text == "":
            return cls()
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", str(text).lower())
        steps = match and match[2] in ("step", "steps", "stage", "stages") and match[1].isdigit()
        if match and steps and int(match[1]) > 0:
            return cls(steps=int(match[1]))
        if match and match[2] in _SECONDS and float(match[1]) > 0:
            return cls(seconds=float(match[1]) * _SECONDS[match[2]])
        raise SecateurError(
            f"cannot read the budget '{text}': write for example 60s, 10min, 1.5h or 500steps."
        )
