"""The convex relaxation of many problems at once, and the lower bound that it proves."""

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.core.matrices import CONVEX_SHIFT
from secateur.core.problem import ROUNDINGS
from secateur.solvers.batched.groups import Groups
from secateur.solvers.batched.parts import EPS, pieces_of
from secateur.solvers.batched.stack import Stack

_POWER_STEPS = 8
_NEWTON_STEPS = 5


def relax(stack: Stack, iterations: int) -> Float[Tensor, "b n"]:
    """Minimise l.x + 1/2 x'B x over 0 <= x <= 1 with the sum of each group fixed.

    Accelerated projected gradient (Nesterov 1983; Beck and Teboulle 2009, doi:10.1137/080716542)
    with adaptive restart by the gradient scheme (O'Donoghue and Candes 2015, arXiv:1204.3982,
    section 3.2), in the metric D = diag(B) bounded from below, in which the projection is as
    simple as in the Euclidean one. The largest curvature of B in this metric is estimated by
    power steps, and raised wherever a step shows more. All problems step together, and none
    waits for the host: an iteration is one product with B and some 210 kernel launches. Where B
    is indefinite the end is a stationary point at best, of use as a start only. Memory: about
    20 vectors of n numbers a problem beside the stack, in the dtype of B.

    Args:
        stack: the problems.
        iterations: how many, at least 0; 60 to 100 are enough for rounding, and mostly for a bound.

    Returns:
        x, in the dtype of B; the sums are met up to the tolerance of the projection.
    """
    dtype, groups = stack.quadratic.dtype, stack.groups
    linear, metric = stack.linear.to(dtype), _metric(stack).to(dtype)
    x = groups.spread(groups.counts / groups.sizes.clamp(min=1)).to(dtype)
    bx, steep = stack.multiply(x), _steepness(stack, metric)
    y, by, t = x, bx, torch.ones_like(steep)
    shift = groups.total(x) * 0
    for _ in range(iterations):
        step = 1 / (steep * metric)
        new, shift = project(groups, y - step * (linear + by), 1 / metric, shift)
        b_new = stack.multiply(new)
        moved, carried = new - y, new - x
        size = (metric * moved * moved).sum(1, keepdim=True)
        seen = (moved * (b_new - by)).sum(1, keepdim=True) / size.clamp(min=torch.finfo(dtype).tiny)
        uphill = (metric * moved * carried).sum(1, keepdim=True) < 0
        fresh = uphill | (seen > steep)
        steep = torch.maximum(steep, seen)
        t_new = torch.where(fresh, 1.0, 0.5 + 0.5 * (1 + 4 * t * t).sqrt())
        momentum = torch.where(fresh, 0.0, (t - 1) / t_new)
        y, by = new + momentum * carried, b_new + momentum * (b_new - bx)
        x, bx, t = new, b_new, t_new
    return x


def project(
    groups: Groups,
    point: Float[Tensor, "b n"],
    loose: Float[Tensor, "b n"],
    shift: Float[Tensor, "b g"],
) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b g"]]:
    """Project onto 0 <= x <= 1 with the sum of each group fixed, in a diagonal metric.

    x = clip(y - tau w, 0, 1), where tau makes the sum of its group right: the root of a
    piecewise linear, falling function. Five steps of Newton's method, each of them a secant of
    the bracket where it would leave that: from the tau of a similar point they are enough.

    Args:
        groups: the groups, for the sums.
        point: y.
        loose: w, the inverse of the metric's diagonal; above 0.
        shift: where to begin the search for tau.

    Returns:
        x, and tau for the next search.
    """
    counts = groups.counts.to(point.dtype)
    low, high = groups.low((point - 1) / loose), -groups.low(-point / loose)
    over, under = groups.sizes - counts, -counts  # what the sums are off by at these ends
    shift = torch.where((shift < low) | (shift > high), 0.5 * (low + high), shift)
    shift = torch.where(under == 0, high, torch.where(over == 0, low, shift))
    for _ in range(_NEWTON_STEPS):
        x = point - groups.spread(shift) * loose
        free = (x > 0) & (x < 1)
        excess = groups.total(x.clamp(0, 1)) - counts
        left, right = excess > 0, excess < 0
        low, over = torch.where(left, shift, low), torch.where(left, excess, over)
        high, under = torch.where(right, shift, high), torch.where(right, excess, under)
        newton = shift + excess / groups.total(loose * free)
        secant = low + (high - low) * (over / (over - under))
        inside = (newton > low) & (newton < high)
        shift = torch.where(excess == 0, shift, torch.where(inside, newton, secant))
    return (point - groups.spread(shift) * loose).clamp(0, 1), shift


def dual_bound(stack: Stack, x: Float[Tensor, "b n"], certify: bool = True) -> Float[Tensor, " b"]:
    """Bound the objective from below by its tangent at x, which is below it where it is convex.

        q(x) + min over feasible s of grad q(x).(s - x)

    (Frank and Wolfe 1956; Jaggi 2013.) It holds at every x, feasible or not, and is the best
    there is of this kind at the minimum of the relaxation. Evaluated in float64; what rounding
    could feign is taken off.

    Args:
        stack: the problems.
        x: where; the nearer to the minimum of the relaxation, the higher the bound.
        certify: whether to find out, where it is not known, if B is positive semi-definite.

    Returns:
        The bounds; -inf where B is not known to be positive semi-definite, or not held as given.
    """
    x = x.double()
    shift = convex_shift(stack) if certify else stack.shift
    known = shift.isfinite() & stack.faithful
    more = torch.where(known, shift, 0.0)[:, None] * stack.diagonal.clamp(min=0)
    # For binary s, l.s + 1/2 s'B s = (l - more/2).s + 1/2 s'(B + diag(more)) s.
    linear = stack.linear - 0.5 * more
    pull = stack.products(torch.arange(x.shape[0], device=x.device), x) + more * x
    slope = linear + pull
    lowest = stack.groups.largest(-slope).double()
    terms = torch.stack([linear * x, 0.5 * pull * x, slope * lowest, -slope * x])
    sizes = stack.constant.abs() + (terms.abs().sum(0) + stack.weight * x).sum(1)
    bound = stack.constant + terms.sum((0, 2)) - ROUNDINGS * EPS * sizes
    return torch.where(known, bound, -torch.inf)


def convex_shift(stack: Stack) -> Float[Tensor, " b"]:
    """Find out which dense B are positive semi-definite up to rounding.

    As `BlockProblem.convexifier` does: scaled to a diagonal of ones and shifted by 1e-5, B must
    have a Cholesky factorisation.

    Args:
        stack: the problems.

    Returns:
        The share of its diagonal with which each B is positive semi-definite; inf where there
        is none. n^3/3 operations in float64 for each problem where it was not known.
    """
    n, shift = stack.shape[1], stack.shift.clone()
    unknown = shift.isnan().nonzero()[:, 0]
    for part in pieces_of(unknown.numel(), n * n):
        which = unknown[part]
        dead = stack.weight[which] == 0
        diagonal = torch.where(dead, 1.0, stack.diagonal[which])
        scale = diagonal.clamp(min=torch.finfo(torch.float64).tiny).rsqrt()
        scaled = stack.quadratic[which].double() * scale[:, :, None] * scale[:, None, :]
        scaled.diagonal(dim1=1, dim2=2).add_(CONVEX_SHIFT)
        fine = (torch.linalg.cholesky_ex(scaled).info == 0) & (diagonal > 0).all(1)
        shift[which] = shift.new_full(fine.shape, CONVEX_SHIFT).masked_fill(~fine, torch.inf)
    return shift


def _metric(stack: Stack) -> Float[Tensor, "b n"]:
    """Give D: the diagonal of B, none of it below a hundredth of its mean."""
    size = stack.diagonal.abs()
    floor = 0.01 * size.mean(1, keepdim=True)
    return torch.maximum(size, torch.where(floor > 0, floor, 1.0))


def _steepness(stack: Stack, metric: Float[Tensor, "b n"]) -> Float[Tensor, "b 1"]:
    """Estimate the largest eigenvalue of D^-1/2 B D^-1/2 from below, by power steps."""
    root = metric.sqrt()
    vector = torch.cos(torch.arange(metric.shape[1], device=metric.device)).to(metric.dtype).expand_as(metric)
    size = torch.ones_like(metric[:, :1])
    for _ in range(_POWER_STEPS):
        vector = stack.multiply(vector / root / size) / root
        size = vector.norm(dim=1, keepdim=True).clamp(min=torch.finfo(metric.dtype).tiny)
    # Where B is next to nothing, steps that cross the box many times over are long enough.
    least = 1e-6 * (stack.linear.to(metric.dtype).abs() / metric).amax(1, keepdim=True)
    steep = torch.maximum(size, least)
    return torch.where(steep > 0, steep, 1.0)
