"""Random numbers for kernels."""

# numba compiles for 64-bit scalars, which numpy's stubs tell apart from int and float.
# pyright: reportArgumentType=false, reportReturnType=false

import numpy as np
from jaxtyping import Shaped
from numba import njit

RandomState = Shaped[np.ndarray, "1"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST_MIX = np.uint64(0xBF58476D1CE4E5B9)
_SECOND_MIX = np.uint64(0x94D049BB133111EB)


@njit(cache=True)
def draw(state: RandomState) -> np.uint64:
    """Draw 64 random bits (SplitMix64: Steele, Lea and Flood 2014).

    Args:
        state: one unsigned 64-bit integer; changed.

    Returns:
        The bits.
    """
    state[0] += _GOLDEN
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * _FIRST_MIX
    z = (z ^ (z >> np.uint64(27))) * _SECOND_MIX
    return z ^ (z >> np.uint64(31))


@njit(cache=True)
def draw_below(state: RandomState, bound: int) -> int:
    """Draw an integer from 0 to bound - 1.

    Args:
        state: the generator's state; changed.
        bound: at most 2^31.

    Returns:
        The integer.
    """
    return np.int64(((draw(state) >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32))
