"""HiGHS: the same proof by a mixed-integer linear program."""

import sys
import time
from dataclasses import dataclass, field
from itertools import islice
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from secateur.core.errors import SecateurError
from secateur.core.extras import need
from secateur.core.problem import BlockProblem
from secateur.core.registry import register
from secateur.core.solution import Status
from secateur.core.solver import Found, Solver
from secateur.solvers.exact.branch_and_bound import check_size, first_guess
from secateur.solvers.exact.convexify import quadratic, tangents
from secateur.solvers.exact.linearised import Program, linearise

_TANGENTS = 8  # convex relaxations whose tangents the program gets
_TOLERANCE = 1e-7  # how far HiGHS may break a row; with less it has called optimal what was not


@register("solver", "highs")
@dataclass(frozen=True)
class Highs(Solver):
    """Has HiGHS prove its answer optimal, as a mixed-integer linear program (an extra).

    (Huangfu and Hall 2018, doi:10.1007/s12532-017-0130-5.) HiGHS takes no integers beside a
    quadratic objective. So every product x_i x_j becomes a variable y_ij between 0 and 1, held
    by the counts, multiplied by x_i (Adams and Sherali 1986, doi:10.1287/mnsc.32.10.1274),

        sum over j in group g, j not i, of y_ij  =  (k_g - [i in g]) x_i

    by y_ij <= x_i and y_ij <= x_j where B_ij < 0, and by y_ij >= x_i + x_j - 1 where B_ij > 0.
    Tangents of convex relaxations bound the objective below as well. With its n (n - 1) / 2
    products this is for tens of variables. The solver `branch-and-bound` is faster by far; this
    is an independent check of it.

    HiGHS may break a row by 1e-7, so its bound is lowered by 1e-7 of the sum of |l_i| and
    |B_ij|, and OPTIMAL means: to within twice that, as far as the floating-point arithmetic of
    a linear program can be trusted. At the end of its time it gives the best assignment it
    found and its bound, or the convex relaxations' where that is higher. HiGHS and OR-Tools
    cannot be loaded in one process. Work counts nodes.

    Attributes:
        seconds: time to stop after, above 0; one convex relaxation is always solved.
        gap: the gap at which to stop, relative to l.x + 1/2 x'B x; at least 0 = a proof.
        start: the solver that gives the first assignment.
    """

    seconds: float = 20.0
    gap: float = 0.0
    start: Solver = field(default_factory=first_guess)

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            SecateurError: a setting is out of its range.
        """
        if not (self.seconds > 0 and self.gap >= 0):
            raise SecateurError(
                "the solver 'highs' needs seconds above 0 and a gap of at least 0, "
                f"not {self.seconds} and {self.gap}."
            )
        if not isinstance(self.start, Solver):
            raise SecateurError("the solver 'highs' needs a solver to start with.")

    def search(self, problem: BlockProblem, seed: int) -> Found:
        """Pose the program, and have it solved.

        Args:
            problem: a problem; one of more than 1,000 variables is refused.
            seed: for the first assignment, and for HiGHS.

        Returns:
            The best assignment found, and a lower bound.
        """
        highspy = load()
        check_size(problem, self.part_name)
        end = time.monotonic() + self.seconds
        first = self.start.solve(problem, seed, certify=False)
        plain, touching = quadratic(problem), []
        for tangent in islice(tangents(plain), _TANGENTS):
            touching.append(tangent)
            if time.monotonic() > end:
                break
        program, tolerance = linearise(plain, touching), _TOLERANCE * plain.size
        guess = program.extend(first.assignment.cpu().numpy(), first.value - problem.constant)
        options = {
            "time_limit": max(0.0, end - time.monotonic()),
            "mip_rel_gap": self.gap,
            "mip_abs_gap": 0.0,
            "random_seed": seed % 2**31,
        }
        columns, dual, nodes, finished = _run(highspy, program, guess, options)
        best = (torch.from_numpy(columns[: problem.size]) > 0.5).to(problem.incumbent.device)
        if not problem.is_feasible(best) or problem.value(best) > first.value:
            best = first.assignment
        relaxed = max(tangent.bound for tangent in touching) - 2.0 * plain.margin
        value, bound = problem.value(best), problem.constant + max(dual * program.unit - tolerance, relaxed)
        proven = finished and value - bound <= 3.0 * tolerance
        status = Status.OPTIMAL if proven else Status.FEASIBLE
        return Found(best, status, nodes, min(value, bound))


def load() -> ModuleType:
    """Import highspy.

    Returns:
        The module.

    Raises:
        SecateurError: it is not installed, or OR-Tools is loaded.
    """
    if "ortools" in sys.modules:
        raise SecateurError(
            "HiGHS and OR-Tools cannot be loaded in one process: solve where ortools is not imported."
        )
    return need("highspy", "highs")


def _run(
    highspy: ModuleType, program: Program, guess: Float[np.ndarray, " columns"], options: dict[str, float]
) -> tuple[Float[np.ndarray, " columns"], float, int, bool]:
    """Have HiGHS solve a program on one core: best columns, lower bound, nodes, and whether it is done."""
    solver = highspy.Highs()
    tolerances = ("mip_feasibility_tolerance", "primal_feasibility_tolerance", "dual_feasibility_tolerance")
    fixed = {"output_flag": False, "parallel": "off"} | dict.fromkeys(tolerances, _TOLERANCE)
    for name, value in (fixed | options).items():
        solver.setOptionValue(name, value)
    solver.passModel(_model(highspy, program, guess.size))
    start = highspy.HighsSolution()
    start.col_value = guess
    solver.setSolution(start)
    ran = solver.run() != highspy.HighsStatus.kError
    info, columns = solver.getInfo(), solver.getSolution().col_value
    if not ran or not columns:
        return guess, -np.inf, 0, False
    finished = solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
    return np.array(columns), info.mip_dual_bound, max(0, info.mip_node_count), finished


def _model(highspy: ModuleType, program: Program, columns: int) -> Any:
    """Write a program the way HiGHS reads it."""
    model, binary = highspy.HighsLp(), columns - 1 - program.first.size
    model.num_col_, model.num_row_ = columns, program.lower.size
    model.col_cost_ = np.append(np.zeros(columns - 1), 1.0)
    model.col_lower_ = np.append(np.zeros(columns - 1), -np.inf)
    model.col_upper_ = np.append(np.ones(columns - 1), np.inf)
    model.row_lower_, model.row_upper_ = program.lower, program.upper
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_ = program.starts
    model.a_matrix_.index_ = program.columns
    model.a_matrix_.value_ = program.entries
    kinds = highspy.HighsVarType
    model.integrality_ = [kinds.kInteger] * binary + [kinds.kContinuous] * (columns - binary)
    return model
