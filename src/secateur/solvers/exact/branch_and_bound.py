"""Branch and bound: the proof that nothing better exists."""

import time
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from jaxtyping import Float, Int

from secateur.core.errors import SecateurError
from secateur.core.problem import BlockProblem
from secateur.core.registry import register
from secateur.core.solution import Status
from secateur.core.solver import Found, Solver
from secateur.solvers.best_of import BestOf
from secateur.solvers.exact.convexify import Quadratic, Tangent, diagonal_shift, quadratic, tangents
from secateur.solvers.greedy import Greedy
from secateur.solvers.kernels.node import FINISHED, Path, Tree, at_root
from secateur.solvers.kernels.tree import explore
from secateur.solvers.polish import Polish
from secateur.solvers.tabu import TabuSearch

LARGEST = 1000  # variables: beyond, even the relaxation at the root takes minutes
_ROUNDS = 6  # relaxations at the root
_FEWER = 0.05  # a shift is made anew where the free variables are fewer by this share
_CHUNK = 10_000_000  # entries of B that are read, about, between two looks at the clock


def first_guess() -> Solver:
    """Make the solver that gives exact solvers something to prove.

    Returns:
        The better of a tabu search and of a swap descent from a greedy construction.
    """
    return BestOf((Polish(Greedy()), TabuSearch(2000)))


def check_size(problem: BlockProblem, name: str) -> None:
    """Refuse what no exact solver could end.

    Args:
        problem: the problem.
        name: the solver's name.

    Raises:
        SecateurError: it has too many variables.
    """
    if problem.size > LARGEST:
        raise SecateurError(
            f"the solver '{name}' takes at most {LARGEST} variables, not {problem.size}: "
            "choose smaller blocks or another solver."
        )


@register("solver", "branch-and-bound")
@dataclass(frozen=True)
class BranchAndBound(Solver):
    """Proves its answer optimal by a tree of convex relaxations, for any symmetric B.

    Depth first, the variables in a fixed order. At each depth the diagonal of B is shifted so
    far that the objective is convex along the moves that keep the counts (quadratic convex
    reformulation: Billionnet, Elloumi and Plateau 2009, doi:10.1016/j.dam.2007.12.007), and
    made for just the variables that are left there, as a fixed order allows (Buchheim, Caprara
    and Lodi 2012, doi:10.1007/s10107-011-0475-x). The relaxation of a node starts from its
    parent's point and ends as soon as the node is decided: some microseconds for 40 variables.

    OPTIMAL means that the tree was searched to its end. Nodes are closed, and the bound is
    given, to within 1e-12 of the sum of |l_i| and |B_ij|. Cut short, it gives the least bound
    of the nodes left open. Where `nodes` cuts it short the answer is a function of problem
    and seed; where `seconds` does, of the machine too. Work counts nodes.

    Attributes:
        seconds: time to stop after, above 0; the relaxation at the root is always solved.
        nodes: nodes to look at, at least 1; None = no limit.
        start: the solver that gives the first assignment.
    """

    seconds: float = 20.0
    nodes: int | None = None
    start: Solver = field(default_factory=first_guess)

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            SecateurError: a setting is out of its range.
        """
        if not (self.seconds > 0 and (self.nodes is None or self.nodes >= 1)):
            raise SecateurError(
                "the solver 'branch-and-bound' needs seconds above 0 and at least 1 node, "
                f"not {self.seconds} and {self.nodes}."
            )
        if not isinstance(self.start, Solver):
            raise SecateurError("the solver 'branch-and-bound' needs a solver to start with.")

    def search(self, problem: BlockProblem, seed: int) -> Found:
        """Search the tree.

        Args:
            problem: a problem; one of more than 1,000 variables is refused.
            seed: for the solver that gives the first assignment.

        Returns:
            The best assignment seen, and a lower bound.
        """
        check_size(problem, self.part_name)
        end = time.monotonic() + self.seconds
        first = self.start.solve(problem, seed, certify=False)
        plain = quadratic(problem)
        order = _order(plain)
        ordered = plain.ordered(order)
        root = _root(ordered, end)
        path = at_root(ordered.linear, ordered.counts, order.size + 1)
        path.best[:] = first.assignment.cpu().numpy()[order]
        path.value[0] = first.value - problem.constant
        tree = Tree(ordered.matrix, np.tile(root.shift, (order.size, 1)), ordered.groups, ordered.margin)
        seen = explore(tree, path, 1)
        if path.depth[0] >= 0:
            _shift_all(tree, root.weights, end)
        limit = 2**62 if self.nodes is None else self.nodes
        chunk = 1 + _CHUNK // order.size**2
        while path.depth[0] >= 0 and seen < limit and time.monotonic() < end:
            seen += explore(tree, path, min(chunk, limit - seen))
        return _found(problem, order, path, root.bound, seen, ordered.margin)


def _order(problem: Quadratic) -> Int[np.ndarray, " n"]:
    """Branch first on the variable whose couplings to the rest weigh most along the moves."""
    left, order = np.argsort(problem.groups, kind="stable"), []
    while left.size:
        strength = _coupling(problem.matrix[np.ix_(left, left)], problem.groups[left])
        order.append(left[strength.argmax()])
        left = np.delete(left, strength.argmax())
    return np.array(order)


def _coupling(matrix: Float[np.ndarray, "n n"], groups: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Sum the squares off the diagonal of B less its means over groups, which count for nothing."""
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    sizes = np.diff(starts, append=groups.size)
    which = np.repeat(np.arange(starts.size), sizes)
    centred = matrix - (np.add.reduceat(matrix, starts, axis=1) / sizes)[:, which]
    centred = centred - (np.add.reduceat(centred, starts, axis=0) / sizes[:, None])[which]
    np.fill_diagonal(centred, 0.0)
    return np.square(centred).sum(1)


def _root(problem: Quadratic, end: float) -> Tangent:
    """Solve some relaxations of the root, and keep the best."""
    best = None
    for tangent in islice(tangents(problem), _ROUNDS):
        best = tangent if best is None or tangent.bound > best.bound else best
        if time.monotonic() > end:
            break
    assert best is not None
    return best


def _shift_all(tree: Tree, weights: Float[np.ndarray, " n"], end: float) -> None:
    """Make a shift for each depth; one made for more variables serves fewer as well."""
    n, last = tree.groups.size, 0
    for depth in range(1, n):
        if n - depth <= (1.0 - _FEWER) * (n - last) and time.monotonic() < end:
            last, free = depth, slice(depth, None)
            tree.shift[depth, free] = diagonal_shift(
                tree.matrix[free, free], tree.groups[free], weights[free]
            )
        elif last:
            tree.shift[depth] = tree.shift[last]


def _found(
    problem: BlockProblem, order: Int[np.ndarray, " n"], path: Path, root: float, seen: int, margin: float
) -> Found:
    """Gather what the search found; the nodes left open are the lowest that the bound has to go."""
    pruned = np.empty(order.size, dtype=np.bool_)
    pruned[order] = path.best > 0.5
    best = torch.from_numpy(pruned).to(problem.incumbent.device)
    here = slice(int(path.depth[0]) + 1)
    left = path.bound[here][path.made[here] < FINISHED]
    least = min(path.value[0], max(root, left.min(initial=np.inf))) if left.size else path.value[0]
    bound = problem.value(best) - float(path.value[0] - least) - 2.0 * margin
    return Found(best, Status.FEASIBLE if left.size else Status.OPTIMAL, seen, bound)
