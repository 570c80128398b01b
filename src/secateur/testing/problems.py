"""A zoo of small block problems, and slow oracles that share no code with the solvers."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from secateur.core.matrices import gram
from secateur.core.problem import BlockProblem


def random_incumbent(
    groups: Int[Tensor, " n"], counts: Sequence[int], generator: torch.Generator
) -> Bool[Tensor, " n"]:
    """Draw an assignment with given counts.

    Args:
        groups: the group of each variable.
        counts: ones in each group, at most its size.
        generator: where randomness comes from.

    Returns:
        The assignment.
    """
    pruned = torch.zeros(groups.numel(), dtype=torch.bool)
    for group, count in enumerate(counts):
        members = torch.nonzero(groups == group).flatten()
        pruned[members[torch.randperm(members.numel(), generator=generator)[:count]]] = True
    return pruned


def fisher_problem(
    n: int, samples: int, counts: Sequence[int], seed: int = 0, groups: Int[Tensor, " n"] | None = None
) -> BlockProblem:
    """Draw a problem such as pruning poses: B = U U' of low rank, and value 0 at the incumbent.

    Args:
        n: variables.
        samples: columns of U.
        counts: ones in each group.
        seed: the seed.
        groups: the group of each variable; i mod (number of groups) where None.

    Returns:
        The problem, given dense in float64.
    """
    generator = torch.Generator().manual_seed(seed)
    groups = torch.arange(n) % len(counts) if groups is None else groups
    spread = torch.randn(n, 1, generator=generator, dtype=torch.float64).mul(0.5).exp()
    factors = spread * torch.randn(n, samples, generator=generator, dtype=torch.float64) / samples**0.5
    slope = 0.3 * torch.randn(n, generator=generator, dtype=torch.float64)
    incumbent = random_incumbent(groups, counts, generator)
    x, matrix = incumbent.double(), gram(factors)
    pull = matrix @ x
    return BlockProblem(float(0.5 * x @ pull + slope @ x), -slope - pull, groups, incumbent, dense=matrix)


def factored_problem(
    n: int, samples: int, count: int, group_size: int | None = None, seed: int = 0
) -> BlockProblem:
    """Draw a problem such as pruning poses, by factors in float32, of any size.

    Args:
        n: variables.
        samples: columns of U.
        count: ones in each group.
        group_size: variables in each group, the last may have fewer; None = one group.
        seed: the seed.

    Returns:
        The problem, with value 0 at the incumbent up to rounding in float32.
    """
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randn(n, 1, generator=generator).mul(0.5).exp()
    factors = spread * torch.randn(n, samples, generator=generator) / samples**0.5
    slope = 0.3 * torch.randn(n, generator=generator)
    groups = torch.arange(n) // (n if group_size is None else group_size)
    order = torch.randperm(n, generator=generator)
    order = order[groups[order].argsort(stable=True)]
    incumbent = torch.zeros(n, dtype=torch.bool)
    incumbent[order] = torch.arange(n) - torch.searchsorted(groups, groups) < count
    response = factors[incumbent].sum(0)
    constant = float(0.5 * response @ response + slope[incumbent].sum())
    return BlockProblem(constant, -slope - factors @ response, groups, incumbent, factors=factors)


def indefinite_problem(
    n: int, counts: Sequence[int], seed: int = 0, groups: Int[Tensor, " n"] | None = None
) -> BlockProblem:
    """Draw a problem with a dense symmetric Gaussian B, as an exact Hessian may pose.

    Args:
        n: variables.
        counts: ones in each group.
        seed: the seed.
        groups: the group of each variable; i mod (number of groups) where None.

    Returns:
        The problem, given dense in float64.
    """
    generator = torch.Generator().manual_seed(seed)
    groups = torch.arange(n) % len(counts) if groups is None else groups
    half = torch.randn(n, n, generator=generator, dtype=torch.float64)
    linear = torch.randn(n, generator=generator, dtype=torch.float64)
    return BlockProblem(0.5, linear, groups, random_incumbent(groups, counts, generator), dense=half + half.T)


def scaled(problem: BlockProblem, factor: float) -> BlockProblem:
    """Multiply the objective of a dense problem.

    Args:
        problem: the problem.
        factor: above 0.

    Returns:
        The same choice in another unit.
    """
    return replace(
        problem,
        constant=factor * problem.constant,
        linear=factor * problem.linear,
        dense=factor * problem.matrix,
    )


def permuted(problem: BlockProblem, permutation: Int[Tensor, " n"]) -> BlockProblem:
    """Number the variables of a dense problem otherwise.

    Args:
        problem: the problem.
        permutation: the old number of each new variable.

    Returns:
        The same choice; its x is the old one's x[permutation].
    """
    return replace(
        problem,
        linear=problem.linear[permutation],
        groups=problem.groups[permutation],
        incumbent=problem.incumbent[permutation],
        dense=problem.matrix[permutation][:, permutation],
    )


def zoo(seed: int = 0) -> dict[str, BlockProblem]:
    """Collect small problems of every kind, the degenerate ones included.

    Args:
        seed: the seed.

    Returns:
        Problems of at most 12 variables, by what is special about them.
    """
    fisher, wild = fisher_problem(12, 5, [6], seed), indefinite_problem(12, [6], seed)
    rows, uneven = torch.arange(12) // 3, torch.tensor([0, 0, 1, 1, 1, 1, 1, 3, 3, 3, 3, 3])
    zeros, ones = torch.zeros(12, dtype=torch.float64), torch.ones(12, 12, dtype=torch.float64)
    signs = wild.matrix.sign()
    rest = torch.arange(12) >= 4
    sizes = torch.logspace(-6, 6, 12, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(12, 4, generator=generator)
    empty = torch.zeros(0)
    return {
        "Fisher": fisher,
        "Fisher, few pruned": fisher_problem(12, 5, [2], seed),
        "Fisher, float32": replace(fisher, linear=fisher.linear.float(), dense=fisher.matrix.float()),
        "factors": replace(fisher, dense=None, factors=factors),
        "factors and diagonal": replace(fisher, dense=None, factors=factors, diagonal=factors[:, 0].square()),
        "indefinite": wild,
        "negative definite": replace(fisher, dense=-fisher.matrix),
        "three groups, interleaved": indefinite_problem(12, [1, 2, 3], seed),
        "a group a row": fisher_problem(12, 5, [1, 2, 1, 1], seed, rows),
        "uneven groups, one unused, one full, one empty": indefinite_problem(12, [2, 0, 0, 3], seed, uneven),
        "two of four": fisher_problem(12, 5, [2, 2, 2], seed, torch.arange(12) // 4),
        "pairs": fisher_problem(12, 3, [1] * 6, seed),
        "zero": replace(fisher, linear=zeros, dense=0 * ones),
        "no interactions": replace(fisher, dense=torch.diag(fisher.matrix.diagonal())),
        "linear": replace(fisher, dense=0 * ones),
        "all alike": replace(fisher, linear=zeros + 1, dense=ones),
        "ties": replace(wild, linear=zeros, dense=signs),
        "zero rows": replace(wild, linear=wild.linear * rest, dense=wild.matrix * rest * rest[:, None]),
        "huge": scaled(wild, 1e12),
        "tiny": scaled(fisher, 1e-12),
        "mixed sizes": replace(wild, linear=wild.linear * sizes, dense=wild.matrix * sizes * sizes[:, None]),
        "nothing pruned": fisher_problem(6, 3, [0], seed),
        "everything pruned": fisher_problem(6, 3, [6], seed),
        "one kept variable": fisher_problem(1, 1, [0], seed),
        "one pruned variable": fisher_problem(1, 1, [1], seed),
        "two variables": fisher_problem(2, 1, [1], seed),
        "empty": BlockProblem(0.25, empty, empty.long(), empty.bool(), dense=torch.zeros(0, 0)),
    }


def magnitude(problem: BlockProblem) -> float:
    """Bound the objective: the unit in which its rounding errors are small.

    Args:
        problem: the problem.

    Returns:
        |c| + sum |l_i| + sum |B_ij|.
    """
    return abs(problem.constant) + float(problem.linear.double().abs().sum() + problem.matrix.abs().sum())


def brute_force(problem: BlockProblem) -> tuple[Bool[Tensor, " n"], float]:
    """Evaluate every feasible assignment of a small problem.

    Args:
        problem: the problem, of at most some 10^5 feasible assignments.

    Returns:
        An optimal assignment and its value.
    """
    choices = []
    for group, count in enumerate(problem.counts.tolist()):
        members = torch.nonzero(problem.groups == group).flatten().tolist()
        choices.append(list(itertools.combinations(members, count)))
    chosen = [list(itertools.chain(*parts)) for parts in itertools.product(*choices)]
    x = torch.zeros(len(chosen), problem.size, dtype=torch.float64)
    x.scatter_(1, torch.tensor(chosen, dtype=torch.long), 1.0)
    values = x @ problem.linear.double() + 0.5 * ((x @ problem.matrix) * x).sum(1)
    best = int(values.argmin())
    return x[best].bool(), problem.constant + float(values[best])


def best_swap_change(problem: BlockProblem, assignment: Bool[Tensor, " n"]) -> float:
    """Evaluate every swap from an assignment, each by the whole objective.

    Args:
        problem: the problem, of at most some hundred variables.
        assignment: a feasible x.

    Returns:
        The most negative change of the objective, or the least positive; inf without a swap.
    """
    pairs = [
        (i, j)
        for i in torch.nonzero(~assignment).flatten().tolist()
        for j in torch.nonzero(assignment).flatten().tolist()
        if problem.groups[i] == problem.groups[j]
    ]
    if not pairs:
        return float("inf")
    x = assignment.double().repeat(len(pairs), 1)
    moved = torch.tensor(pairs)
    x.scatter_(1, moved[:, :1], 1.0).scatter_(1, moved[:, 1:], 0.0)
    values = x @ problem.linear.double() + 0.5 * ((x @ problem.matrix) * x).sum(1)
    return float(values.min()) + problem.constant - problem.value(assignment)
