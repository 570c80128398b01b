"""Annealing by random swaps, on a dense problem or by factors."""

# numba compiles for 64-bit scalars, which numpy's stubs tell apart from int and float.
# pyright: reportArgumentType=false, reportReturnType=false

import numpy as np
from jaxtyping import Float
from numba import njit

from secateur.solvers.kernels.instance import (
    Instance,
    Order,
    energy,
    exchange,
    state_of,
    swap_change,
)
from secateur.solvers.kernels.random import RandomState, draw, draw_below


@njit(cache=True)
def anneal(
    inst: Instance,
    order: Order,
    betas: Float[np.ndarray, " b"],
    restarts: int,
    sweeps: int,
    random: RandomState,
) -> int:
    """Anneal by random swaps, from a random assignment at each restart.

    Args:
        inst: the problem.
        order: x; becomes the best assignment seen, itself included.
        betas: inverse temperatures in the unit of the problem, in the order they are used.
        restarts: how often to anneal.
        sweeps: n proposals each, at each temperature.
        random: the generator's state; changed.

    Returns:
        How many swaps were evaluated.
    """
    n, best = order.size, energy(inst, order, state_of(inst, order))
    here = order.copy()
    for _ in range(restarts):
        for g in range(inst.counts.size):
            first, last = inst.starts[g], inst.starts[g + 1]
            for slot in range(last - 1, first, -1):
                other = first + draw_below(random, slot - first + 1)
                here[slot], here[other] = here[other], here[slot]
        state = state_of(inst, here)
        value = energy(inst, here, state)
        for beta in betas:
            for _ in range(sweeps * n):
                turn = draw_below(random, inst.kept_slots.size)
                kept, g = inst.kept_slots[turn], inst.kept_groups[turn]
                pruned = inst.starts[g] + draw_below(random, inst.counts[g])
                i, j = here[kept], here[pruned]
                change = swap_change(inst, state, i, j)
                if change > 0:
                    chance = np.float64(draw(random) >> np.uint64(11)) * 2.0**-53
                    if beta * change > 40 or chance >= np.exp(-beta * change):
                        continue
                exchange(inst, here, state, kept, pruned)
                value += change
                if value < best:
                    best = value
                    order[:] = here
    return restarts * betas.size * sweeps * n
