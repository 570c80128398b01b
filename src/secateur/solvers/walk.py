"""A walk through a problem that is too large to be solved at once: fields, working sets, moves."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from secateur.core.matrices import gram
from secateur.core.problem import BlockProblem
from secateur.solvers.arrays import prepare
from secateur.solvers.kernels.instance import Instance
from secateur.solvers.kernels.search import improving_swaps

Indices = Int[np.ndarray, " m"]


def product(matrix: Float[np.ndarray, "m k"], vector: Float[np.ndarray, " k"]) -> Float[np.ndarray, " m"]:
    """Multiply by torch: two libraries' threads would wait for one another, and take twice as long.

    Args:
        matrix: a matrix.
        vector: a vector.

    Returns:
        Their product.
    """
    return (torch.from_numpy(matrix) @ torch.from_numpy(vector)).numpy()


@dataclass(eq=False)
class Walk:
    """A point x of a problem and what follows from it; x is 0 or 1, or between in a relaxation.

    Attributes:
        instance: the problem, dense or by factors.
        groups: the group of each variable.
        members: the variables group by group.
        x: the point.
        state: the fields l + B x where B is dense, the response U'x by factors.
    """

    instance: Instance
    groups: Int[np.ndarray, " n"]
    members: Int[np.ndarray, " n"]
    x: Float[np.ndarray, " n"]
    state: Float[np.ndarray, " d"]

    @classmethod
    def through(cls, problem: BlockProblem) -> "Walk":
        """Begin at the incumbent of a problem.

        Args:
            problem: the problem.

        Returns:
            The walk; by factors no n x n matrix is formed.
        """
        dense = problem.dense is not None
        instance, order = prepare(problem, dense=dense)
        x = problem.incumbent.cpu().numpy().astype(np.float64)
        walk = cls(instance, problem.groups.cpu().numpy(), order, x, np.zeros(0))
        walk.refresh()
        return walk

    def refresh(self) -> None:
        """Compute the state anew, without the rounding errors of all the moves."""
        if self.instance.matrix.size > 0:
            self.state = self.instance.linear + product(self.instance.matrix, self.x)
        else:
            self.state = product(self.instance.factors.T, self.x)

    def fields(self) -> Float[np.ndarray, " n"]:
        """Give f = l + B x.

        Returns:
            The fields: by factors one product, O(n s).
        """
        dense = self.instance.matrix.size > 0
        return self.state if dense else self.instance.linear + product(self.instance.factors, self.state)

    def couplings(self, chosen: Indices) -> Float[np.ndarray, "m m"]:
        """Give B between some variables.

        Args:
            chosen: the variables.

        Returns:
            The sub-matrix.
        """
        if self.instance.matrix.size > 0:
            return self.instance.matrix[np.ix_(chosen, chosen)]
        return gram(torch.from_numpy(self.instance.factors[chosen])).numpy()

    def move(self, chosen: Indices, values: Float[np.ndarray, " m"]) -> None:
        """Give some variables other values.

        Args:
            chosen: the variables.
            values: their new values.
        """
        dense = self.instance.matrix.size > 0
        rows = self.instance.matrix if dense else self.instance.factors
        change = values - self.x[chosen]
        moved = np.flatnonzero(change)
        self.state = self.state + product(rows[chosen[moved]].T, change[moved])
        self.x[chosen] = values

    def pose(self, chosen: Indices, f: Float[np.ndarray, " n"]) -> BlockProblem:
        """Pose the choice of some variables as a problem of its own, the others staying as they are.

        Args:
            chosen: the variables.
            f: the fields.

        Returns:
            The problem, whose value at x is 0.
        """
        matrix, here = self.couplings(chosen), self.x[chosen]
        pull = product(matrix, here)
        linear = f[chosen] - pull
        return BlockProblem(
            constant=-float(linear @ here + 0.5 * here @ pull),
            linear=torch.from_numpy(linear),
            groups=torch.from_numpy(np.unique(self.groups[chosen], return_inverse=True)[1]),
            incumbent=torch.from_numpy(here > 0.5),
            dense=torch.from_numpy(matrix),
            convex=True if self.instance.matrix.size == 0 else None,
        )

    def cheapest(self, size: int, f: Float[np.ndarray, " n"]) -> Indices:
        """Choose the variables whose swaps would cost least if none interacted.

        A kept i is ranked by p_i and the least q of its group, a pruned j by q_j and the least p.

        Args:
            size: variables to choose at most.
            f: the fields.

        Returns:
            Half of them kept, half pruned, where there are as many.
        """
        cost = self.instance.half + np.where(self.x > 0.5, -f, f)
        pruned = self.x > 0.5
        least = np.full((2, self.instance.counts.size), np.inf)
        np.minimum.at(least, (pruned.astype(np.int64), self.groups), cost)
        rank = cost + least[1 - pruned.astype(np.int64), self.groups]
        halves = []
        for side in (np.flatnonzero(~pruned), np.flatnonzero(pruned)):
            side = side[np.isfinite(rank[side])]
            most = min(size // 2, side.size)
            halves.append(np.sort(side[np.argpartition(rank[side], most - 1)[:most]]) if most else side)
        return np.concatenate(halves)

    def improving(self, size: int, f: Float[np.ndarray, " n"]) -> Indices:
        """Look through all swaps for those that improve.

        Args:
            size: variables to find at most.
            f: the fields.

        Returns:
            The variables of improving swaps; none where x is swap-optimal.
        """
        key = np.where(self.x > 0.5, -f, f)
        # Group by group, the pruned first; within each the most promising first.
        order = np.lexsort((key, self.x < 0.5, self.groups))
        found = improving_swaps(self.instance, order, f, max(1, size // 2))
        return np.unique(found)
