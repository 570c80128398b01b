"""Best swaps on a Gram matrix: the mask of each row of a layer, to keep the layer's output."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.matrices import symmetrised
from secateur.solvers.kernels.rows import refine_rows

# Kept and pruned weights among which a swap is looked for first.
WIDTH = 32
# Numbers that a tensor of swaps holds at most: 32 Mi, 256 MB in float64.
CHUNK = 1 << 25
# Weights after which a thread on the CPU looks at the clock.
_WEIGHTS = 1 << 16
_ROUNDING = 64 * torch.finfo(torch.float64).eps


def row_errors(
    reference: Float[Tensor, "o i"], mask: Bool[Tensor, "o i"], gram: Float[Tensor, "i i"]
) -> Float[Tensor, " o"]:
    """Compute (w - w0)' G (w - w0) of each row, with w = mask * w0.

    Args:
        reference: w0.
        mask: what is kept.
        gram: G, the sum of x x' over all positions.

    Returns:
        The summed squared error of each output, in float64.
    """
    d = torch.where(mask, 0.0, reference.double())
    return ((d @ gram.double()) * d).sum(1)


def best_swaps(
    reference: Float[Tensor, "o i"],
    mask: Bool[Tensor, "o i"],
    gram: Float[Tensor, "i i"],
    *,
    width: int | None = WIDTH,
    limit: int | None = None,
    out_of_time: Callable[[float], bool] = lambda _: False,
) -> Bool[Tensor, "o i"]:
    """Improve the mask of each row by swaps, each the best there is, until none improves.

    With d = w0 - w, which is w0 where pruned and 0 where kept, and r = G d, to prune p and restore q
    changes the row's error d'G d by

        2 w_p r_p + w_p^2 G_pp - 2 w_q r_q + w_q^2 G_qq - 2 w_p w_q G_pq

    A row is never worse than it was and keeps its count; unless time or the limit ends it, no swap of it
    improves at the end. Sums are in float64, whatever the weights are.

    To look at every swap for every swap made takes kept * pruned operations each time. So the best is
    looked for among the `width` kept and the `width` pruned weights whose flips gain most alone; where none
    of those improves, among four times as many, and in the end among all. On correlated inputs (512 and
    1,024 of them, density .5) that ends within 0.2 % of the error that looking at all of them each time
    ends with, in a quarter of the time or less.

    On the CPU rows are divided among threads (numba): a layer of 1,024 x 1,024 takes about a second of one
    core, 30 ms a row of 4,096 inputs. Elsewhere all rows make their next swap at the same time. Memory: a
    copy of G; off the CPU also G in float64 for a moment, and tensors of at most `CHUNK` numbers.

    Args:
        reference: w0.
        mask: what is kept at the start.
        gram: G, the sum of x x' over all positions.
        width: as above, at least 1; None: all weights, so that each swap is the best of all.
        limit: swaps to make in a row at most; None: no bound.
        out_of_time: says whether a further piece of work, of so many seconds, would take too long.

    Returns:
        The mask.

    Raises:
        SecateurError: the Gram matrix has NaN or infinite entries, or the width is less than 1.
    """
    if width is not None and width < 1:
        raise SecateurError(f"the width of swaps must be at least 1, not {width}.")
    if not bool(torch.isfinite(gram.sum())) and not bool(torch.isfinite(gram).all()):
        raise SecateurError(
            "a Gram matrix has NaN or infinite entries: check the calibration data and the weights before "
            "the layer, or load the model in float32 or bfloat16."
        )
    if gram.dtype not in (torch.float32, torch.float64):
        gram = gram.float()
    ins = mask.shape[1]
    run = _on_cpu if mask.device.type == "cpu" else swaps_at_once
    most = 2**62 if limit is None else limit
    matrix, near = symmetrised(gram.detach()), min(width or ins, ins)
    return run(reference.detach(), mask, matrix, near, most, out_of_time)


def _on_cpu(
    reference: Float[Tensor, "o i"],
    mask: Bool[Tensor, "o i"],
    gram: Float[Tensor, "i i"],
    width: int,
    limit: int,
    out_of_time: Callable[[float], bool],
) -> Bool[Tensor, "o i"]:
    """Give a few rows at a time to each thread; rows that time does not reach stay as they are."""
    kept = np.array(mask.numpy(), order="C")  # a copy
    weights, matrix = reference.double().contiguous().numpy(), gram.contiguous().numpy()
    peak = gram.abs().fill_diagonal_(0).amax(1).double().numpy()
    step = max(1, _WEIGHTS // mask.shape[1])

    def work(first: int) -> float:
        begin = time.perf_counter()
        part = slice(first, first + step)
        refine_rows(matrix, peak, weights[part], kept[part], width, limit)
        return time.perf_counter() - begin

    # Torch's own threads: the process may have been told to leave other cores alone.
    threads, longest = torch.get_num_threads(), 0.0
    starts = range(0, len(kept), step)
    with ThreadPoolExecutor(threads) as pool:
        for at in range(0, len(starts), threads):
            if out_of_time(longest):
                break
            longest = max(longest, *pool.map(work, starts[at : at + threads]))
    return torch.from_numpy(kept)


def swaps_at_once(
    reference: Float[Tensor, "o i"],
    mask: Bool[Tensor, "o i"],
    gram: Float[Tensor, "i i"],
    width: int,
    limit: int,
    out_of_time: Callable[[float], bool],
) -> Bool[Tensor, "o i"]:
    """Do what `best_swaps` does by tensors, on any device: each round makes a swap in every row that has one.

    Args:
        reference: w0.
        mask: what is kept at the start.
        gram: G, exactly symmetric.
        width: weights of each kind among which a swap is looked for first.
        limit: swaps to make in a row at most.
        out_of_time: says whether a further round, of so many seconds, would take too long.

    Returns:
        The mask.
    """
    w, kept, ins = reference.double(), mask.clone(), mask.shape[1]
    own = gram.diagonal().double().clamp(min=0) * w.square()
    bars = -_ROUNDING * own.sqrt().amax(1) * own.sqrt().sum(1)
    response = torch.where(kept, 0.0, w) @ gram.double()
    everything = torch.arange(len(w), device=w.device)
    rows, longest, fresh, made = everything, 0.0, True, 0
    while made < limit and not out_of_time(longest):
        begin = time.perf_counter()
        slope = 2 * w[rows] * response[rows]
        alone = own[rows] + torch.where(kept[rows], slope, -slope)
        prune, restore, change = _search(gram, w[rows], kept[rows], alone, width)
        better = change < bars[rows]
        rows, p, q = rows[better], prune[better], restore[better]  # the others wait for a wider search
        if rows.numel() > 0:
            kept[rows, p], kept[rows, q] = False, True
            response[rows] += w[rows, p][:, None] * gram[p].double()
            response[rows] -= w[rows, q][:, None] * gram[q].double()
            made, fresh = made + 1, False
        elif width < ins:
            width, rows = min(4 * width, ins), everything
        elif fresh:
            break
        else:  # what rounding left in the responses may hide a swap
            response, fresh, rows = torch.where(kept, 0.0, w) @ gram.double(), True, everything
        longest = max(longest, time.perf_counter() - begin)
    return kept


def _search(
    gram: Float[Tensor, "i i"],
    w: Float[Tensor, "o i"],
    kept: Bool[Tensor, "o i"],
    alone: Float[Tensor, "o i"],
    width: int,
) -> tuple[Int[Tensor, " o"], Int[Tensor, " o"], Float[Tensor, " o"]]:
    """Find each row's best swap between the weights of either kind that gain most alone, and its change."""
    counts = kept.count_nonzero(1)
    height, length = min(width, int(counts.max())), min(width, kept.shape[1] - int(counts.min()))
    best = alone.new_full((len(w),), torch.inf)
    prune, restore = counts.new_zeros(len(w)), counts.new_zeros(len(w))
    if height == 0 or length == 0:
        return prune, restore, best
    gain_p, ps = torch.where(kept, alone, torch.inf).topk(height, 1, largest=False)
    gain_q, qs = torch.where(kept, torch.inf, alone).topk(length, 1, largest=False)
    slab = min(height, max(1, CHUNK // length))  # candidates to prune that are looked at together
    for part in torch.arange(len(w), device=w.device).split(max(1, CHUNK // (slab * length))):
        q, w_q = qs[part], w[part].gather(1, qs[part])
        for top in range(0, height, slab):
            p = ps[part, top : top + slab]
            change = gram[p[:, :, None], q[:, None, :]].double()
            change.mul_(-2 * w[part].gather(1, p)[:, :, None]).mul_(w_q[:, None, :])
            change.add_(gain_p[part, top : top + slab, None]).add_(gain_q[part, None, :])
            least, at = change.flatten(1).min(1)
            lower = least < best[part]
            mine, at = part[lower], at[lower, None]
            best[mine] = least[lower]
            prune[mine] = p[lower].gather(1, at // length)[:, 0]
            restore[mine] = q[lower].gather(1, at % length)[:, 0]
    return prune, restore, best
