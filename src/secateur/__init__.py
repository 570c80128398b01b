"""Secateur prunes trained PyTorch networks, after training, by combinatorial optimisation.

    import secateur

    task = secateur.Classification.from_arrays(x, y)
    run = secateur.prune(model, task, secateur.ICBS(), density=0.1, budget="60s", seed=0)
    run.mask.save("mask.safetensors")

Names are imported when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secateur.core.errors import SecateurError as SecateurError
    from secateur.core.limit import Limit as Limit
    from secateur.core.mask import Mask as Mask
    from secateur.core.problem import BlockProblem as BlockProblem
    from secateur.core.solution import Solution as Solution
    from secateur.core.solver import Solver as Solver
    from secateur.core.task import Task as Task
    from secateur.evaluation import evaluate as evaluate
    from secateur.export import apply_mask as apply_mask
    from secateur.export import save_checkpoint as save_checkpoint
    from secateur.pruners import ADMM as ADMM
    from secateur.pruners import ICBS as ICBS
    from secateur.pruners import DSnoT as DSnoT
    from secateur.pruners import FisherSteps as FisherSteps
    from secateur.pruners import GradientSteps as GradientSteps
    from secateur.pruners import GramSwaps as GramSwaps
    from secateur.pruners import LearnedMask as LearnedMask
    from secateur.pruners import LeastSquares as LeastSquares
    from secateur.pruners import OneShot as OneShot
    from secateur.pruners import SparseGPT as SparseGPT
    from secateur.pruners import Successive as Successive
    from secateur.runs import Run as Run
    from secateur.runs import prune as prune
    from secateur.tasks import CausalLM as CausalLM
    from secateur.tasks import Classification as Classification

_HOMES = {
    "ADMM": "pruners",
    "BlockProblem": "core.problem",
    "ICBS": "pruners",
    "CausalLM": "tasks",
    "Classification": "tasks",
    "LearnedMask": "pruners",
    "SparseGPT": "pruners",
    "Successive": "pruners",
    "LeastSquares": "pruners",
    "GramSwaps": "pruners",
    "GradientSteps": "pruners",
    "FisherSteps": "pruners",
    "DSnoT": "pruners",
    "Limit": "core.limit",
    "Mask": "core.mask",
    "OneShot": "pruners",
    "Run": "runs",
    "SecateurError": "core.errors",
    "Solution": "core.solution",
    "Solver": "core.solver",
    "Task": "core.task",
    "apply_mask": "export",
    "evaluate": "evaluation",
    "prune": "runs",
    "save_checkpoint": "export",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name on first use.

    Args:
        name: the name.

    Returns:
        What it names.

    Raises:
        AttributeError: there is no such name.
    """
    if name not in _HOMES:
        raise AttributeError(f"module 'secateur' has no attribute '{name}'")
    found = getattr(import_module(f"secateur.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
