"""Descents over swaps in rows of weights that share one Gram matrix."""

# numba compiles for 64-bit scalars, which numpy's stubs tell apart from int and float.
# pyright: reportArgumentType=false, reportReturnType=false

import numpy as np
from jaxtyping import Bool, Float, Int
from numba import njit

from secateur.solvers.kernels.instance import REFRESH, Vector
from secateur.solvers.kernels.row import Flags, Matrix, Row, exchange_in_row, lone_change, respond

Places = Int[np.ndarray, " i"]
Pair = Int[np.ndarray, "2 i"]

_EPS = float(np.finfo(np.float64).eps)


@njit(cache=True, nogil=True)
def shortlist(alone: Vector, flags: Flags, wanted: bool, width: int, places: Places) -> int:
    """List the flips that gain most alone.

    Args:
        alone: the change by each flip.
        flags: the row's mask.
        wanted: True to list kept weights, False to list pruned ones.
        width: how many are wanted; with ties there may be fewer, of equals.
        places: where to.

    Returns:
        How many there are.
    """
    count = 0
    for j in range(flags.size):
        if flags[j] == wanted:
            places[count] = j
            count += 1
    if count <= width:
        return count
    values = np.empty(count)
    for k in range(count):
        values[k] = alone[places[k]]
    bar = np.partition(values, width - 1)[width - 1]
    short = 0
    for k in range(count):
        if values[k] <= bar and short < width:
            places[short] = places[k]
            short += 1
    return short


@njit(cache=True, nogil=True)
def best_listed(
    gram: Matrix, w: Vector, alone: Vector, prunes: Places, height: int, restores: Places, length: int
) -> tuple[int, int, float]:
    """Find the best of the swaps between two lists.

    Args:
        gram: G.
        w: the row's weights.
        alone: the change a by each flip.
        prunes: p, what may be pruned.
        height: how many.
        restores: q, what may be restored.
        length: how many.

    Returns:
        The p and q with the least a_p + a_q - 2 w_p w_q G_pq, and that; -1 where a list is empty.
    """
    best, prune, restore = np.inf, -1, -1
    for u in range(height):
        p = prunes[u]
        row, base, twice = gram[p], alone[p], 2.0 * w[p]
        for v in range(length):
            q = restores[v]
            change = base + alone[q] - twice * w[q] * row[q]
            if change < best:
                best, prune, restore = change, p, q
    return prune, restore, best


@njit(cache=True, nogil=True)
def survey_row(row: Row, kept: Flags, r: Vector, alone: Vector, places: Places) -> tuple[int, float, float]:
    """List the pruned weights that may be in an improving swap, and give bounds for the kept ones.

    As |G_pq| is at most sqrt(G_pp G_qq) and at most the peak of either row of G, a swap gains nothing where
    a_p + a_q - 2 min(|w_p| peak_p max |w_q|, s_p max s_q) >= 0, or likewise with p and q exchanged.

    Args:
        row: the row.
        kept: its mask.
        r: G d.
        alone: where the change a by each flip goes.
        places: where the list goes.

    Returns:
        The length of the list, the largest |w_q| in it, and the largest s_q.
    """
    low, wide, long = np.inf, 0.0, 0.0
    for j in range(r.size):
        alone[j] = lone_change(row, kept, r, j)
        if kept[j]:
            low = min(low, alone[j])
            wide, long = max(wide, abs(row.w[j])), max(long, row.size[j])
    length, broad, far = 0, 0.0, 0.0
    for q in range(r.size):
        if not kept[q]:
            reach = 2.0 * min(abs(row.w[q]) * row.peak[q] * wide, row.size[q] * long)
            if alone[q] + low - reach < row.bar:
                places[length] = q
                length += 1
                broad, far = max(broad, abs(row.w[q])), max(far, row.size[q])
    return length, broad, far


@njit(cache=True, nogil=True)
def sweep(gram: Matrix, row: Row, kept: Flags, r: Vector, most: int, alone: Vector, places: Places) -> int:
    """Look at every swap that may improve: for each kept weight make the best that prunes it, if it improves.

    Args:
        gram: G.
        row: the row.
        kept: its mask; changed.
        r: G d; changed.
        most: swaps to make at most.
        alone: room for numbers.
        places: room for the pruned weights.

    Returns:
        How many were made; 0 where no swap of the row beats the bar.
    """
    made, length, outdated = 0, 0, True
    low, wide, long = 0.0, 0.0, 0.0
    for p in range(r.size):
        if not kept[p]:
            continue
        if outdated:
            length, wide, long = survey_row(row, kept, r, alone, places)
            low = np.inf
            for v in range(length):
                low = min(low, alone[places[v]])
        reach = 2.0 * min(abs(row.w[p]) * row.peak[p] * wide, row.size[p] * long)
        outdated = False
        if alone[p] + low - reach >= row.bar:
            continue
        line, base, twice = gram[p], alone[p], 2.0 * row.w[p]
        best, restore = row.bar, -1
        for v in range(length):
            q = places[v]
            change = base + alone[q] - twice * row.w[q] * line[q]
            if change < best:
                best, restore = change, q
        if restore >= 0:
            exchange_in_row(gram, row.w, kept, r, p, restore)
            made, outdated = made + 1, True
            if made == most:
                break
    return made


@njit(cache=True, nogil=True)
def refine_row(
    gram: Matrix, row: Row, kept: Flags, width: int, limit: int, r: Vector, alone: Vector, places: Pair
) -> int:
    """Make the best swap in a row again and again until none lowers d'G d.

    Args:
        gram: G.
        row: the row.
        kept: its mask; changed.
        width: as in `refine_rows`.
        limit: swaps to make at most.
        r: room for numbers.
        alone: likewise.
        places: room for two lists.

    Returns:
        How many swaps were made.
    """
    ins, made, stale = r.size, 0, 0
    prunes, restores = places[0], places[1]
    respond(gram, row.w, kept, r)
    while made < limit:
        for j in range(ins):
            alone[j] = lone_change(row, kept, r, j)
        height = shortlist(alone, kept, True, width, prunes)
        length = shortlist(alone, kept, False, width, restores)
        p, q, change = best_listed(gram, row.w, alone, prunes, height, restores, length)
        if change < row.bar:
            exchange_in_row(gram, row.w, kept, r, p, q)
            swaps = 1
        elif 8 * width < ins:
            width *= 4
            continue
        else:
            swaps = sweep(gram, row, kept, r, limit - made, alone, restores)
        made, stale = made + swaps, stale + swaps
        if swaps == 0 and stale == 0:
            break
        if swaps == 0 or stale >= REFRESH:
            respond(gram, row.w, kept, r)
            stale = 0
    return made


@njit(cache=True, nogil=True)
def refine_rows(
    gram: Matrix,
    peak: Vector,
    weights: Float[np.ndarray, "o i"],
    kept: Bool[np.ndarray, "o i"],
    width: int,
    limit: int,
) -> int:
    """Make the best swap in each row again and again until none lowers d'G d.

    The best is looked for among the `width` kept and `width` pruned weights whose flips gain most alone;
    where none of those improves, among four times as many; in the end every swap is looked at (`sweep`), so
    that none is left that improves. With a width of the whole row each swap is the best of all.

    Args:
        gram: G, exactly symmetric, of either precision; the sums are in float64.
        peak: the largest |G_jk| of each row beside the diagonal.
        weights: the reference weights.
        kept: the masks of the rows; changed.
        width: as above.
        limit: swaps to make in a row at most.

    Returns:
        How many swaps were made.
    """
    ins = weights.shape[1]
    diagonal, own, size = np.empty(ins), np.empty(ins), np.empty(ins)
    r, alone, places = np.empty(ins), np.empty(ins), np.empty((2, ins), np.int64)
    for j in range(ins):
        diagonal[j] = max(0.0, gram[j, j])
    total = 0
    for o in range(len(weights)):
        w = weights[o]
        longest, together = 0.0, 0.0
        for j in range(ins):
            own[j] = diagonal[j] * w[j] * w[j]
            size[j] = own[j] ** 0.5
            longest, together = max(longest, size[j]), together + size[j]
        bar = -64.0 * _EPS * longest * together
        total += refine_row(gram, Row(w, own, size, peak, bar), kept[o], width, limit, r, alone, places)
    return total
