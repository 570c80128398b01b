"""The one exception that means: the user can mend this."""

import difflib
import textwrap
from collections.abc import Iterable


class SecateurError(Exception):
    """A mistake that the user can mend, said in one sentence that says what to do."""


FULL = (
    "the GPU is out of memory: bound the run by half of what is free (such as --memory 40GB, in Python "
    "memory='40GB'), so that passes and what is recorded of layers are cut to fit, evaluate with a smaller "
    "--batch-size, or compute with --device cpu. Nothing is lost: a run folder can be resumed so."
)


def nearest(word: str, words: Iterable[str]) -> str:
    """Give the tail of an error message: the nearest right word, or all of them.

    Args:
        word: what was typed.
        words: what could have been typed.

    Returns:
        ``"did you mean 'x'?"`` where one is near, else ``"choose from a, b, c"``.
    """
    known = sorted(set(words))
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(known)}"


def in_short(error: Exception) -> str:
    """Say what an error of another library says, on one line and not too long.

    Args:
        error: the error.

    Returns:
        At most 200 characters, cut at a word, without a full stop; the error's type where it says nothing.
    """
    said = textwrap.shorten(str(error), 200, placeholder=" ...").removesuffix(".")
    return said or type(error).__name__
