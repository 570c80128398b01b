"""Random numbers that are a function of a key and a place: alike on any device, in any order."""

from jaxtyping import Float, Int
from torch import Tensor

# As signed numbers, which is what torch has: products wrap round all the same.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST_MIX = 0xBF58476D1CE4E5B9 - 2**64
_SECOND_MIX = 0x94D049BB133111EB - 2**64


def mix(keys: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Turn 64-bit numbers into random ones (the finaliser of SplitMix64: Steele, Lea and Flood 2014).

    Args:
        keys: any numbers; nearby ones give unrelated results.

    Returns:
        64 random bits each, as signed numbers.
    """
    z = (keys ^ _shift(keys, 30)) * _FIRST_MIX
    z = (z ^ _shift(z, 27)) * _SECOND_MIX
    return z ^ _shift(z, 31)


def bits(keys: Int[Tensor, "*shape"], places: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Draw 64 random bits at places of the sequences that keys begin.

    Args:
        keys: one for each sequence.
        places: which number of it; from 0.

    Returns:
        The bits, as signed numbers: what SplitMix64 seeded with the key draws there.
    """
    return mix(keys + (places + 1) * _GOLDEN)


def below(random: Int[Tensor, "*shape"], bounds: Int[Tensor, "*#shape"], low: bool) -> Int[Tensor, "*shape"]:
    """Turn half of random bits into integers from 0 to bound - 1.

    Args:
        random: 64 bits each.
        bounds: below 2^31.
        low: whether to use the lower 32 bits or the upper ones.

    Returns:
        The integers.
    """
    half = random & 0xFFFFFFFF if low else _shift(random, 32)
    return _shift(half * bounds, 32)


def chance(random: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Turn random bits into numbers from 0 up to, but not, 1.

    Args:
        random: 64 bits each.

    Returns:
        Multiples of 2^-53, in float64.
    """
    return _shift(random, 11).double() * 2.0**-53


def _shift(numbers: Tensor, places: int) -> Tensor:
    """Shift to the right, zeros coming in from the left."""
    return (numbers >> places) & ((1 << (64 - places)) - 1)
