"""The walk through a branch and bound tree, depth first (`node.py` says what a node is)."""

# numba compiles for 64-bit scalars, which numpy's stubs tell apart from int and float.
# pyright: reportArgumentType=false, reportReturnType=false

from numba import njit

from secateur.solvers.kernels.node import FINISHED, FRESH, Path, Tree, relax, repair


@njit(cache=True)
def explore(tree: Tree, path: Path, limit: int) -> int:
    """Go on with a depth-first search.

    Args:
        tree: the problem.
        path: where the search is; written.
        limit: nodes to look at, at most.

    Returns:
        The nodes looked at; fewer than `limit` only where the search has ended.
    """
    seen, depth = 0, path.depth[0]
    while depth >= 0:
        if path.made[depth] == FRESH:
            if seen == limit:
                break
            seen += 1
            path.made[depth] = 0 if is_open(tree, path, depth) else FINISHED
        elif path.made[depth] == FINISHED:
            depth -= 1
        else:
            branch(tree, path, depth)
            depth += 1
    path.depth[0] = depth
    return seen


@njit(cache=True)
def is_open(tree: Tree, path: Path, depth: int) -> bool:
    """Look at a node: say whether something better may lie below it.

    Args:
        tree: the problem.
        path: the node's bound is written, and an assignment where it is the best so far.
        depth: that of the node.

    Returns:
        Whether it has to be branched on.
    """
    if not repair(tree, path, depth):
        return False
    cutoff = path.value[0] - tree.margin
    if depth == tree.groups.size:
        if path.constant[depth] < cutoff:
            path.value[0] = path.constant[depth]
            path.best[:] = path.values
        return False
    path.bound[depth] = max(path.bound[depth], relax(tree, path, depth, cutoff))
    return path.bound[depth] < cutoff


@njit(cache=True)
def branch(tree: Tree, path: Path, depth: int) -> None:
    """Make a node's next child: first the value that its relaxation is nearer to.

    Args:
        tree: the problem.
        path: written at the depth below.
        depth: that of the node.
    """
    below = depth + 1
    near = 1.0 if path.point[depth, depth] >= 0.5 else 0.0
    value = near if path.made[depth] == 0 else 1.0 - near
    path.made[depth] += 1
    path.made[below] = FRESH
    path.values[depth] = value
    path.bound[below] = path.bound[depth]
    path.point[below] = path.point[depth]
    path.need[below] = path.need[depth]
    path.need[below, tree.groups[depth]] -= value
    own = path.linear[depth, depth] + 0.5 * tree.matrix[depth, depth]
    path.constant[below] = path.constant[depth] + value * own
    path.linear[below] = path.linear[depth] + value * tree.matrix[depth]
