"""Samplers of Ocean, OpenJij and simulated bifurcation as solvers."""

import warnings
from typing import ClassVar

import dimod
import numpy as np
import pytest
import torch
from dwave.samplers import SimulatedAnnealingSampler

from secateur.core.errors import SecateurError
from secateur.core.registry import lookup
from secateur.core.solution import Status
from secateur.solvers.samplers.bifurcation import SimulatedBifurcation
from secateur.solvers.samplers.dimod_solver import DimodSolver
from secateur.solvers.samplers.sampling import dimensionless
from secateur.testing.problems import brute_force, fisher_problem, indefinite_problem, scaled
from secateur.testing.solvers import SolverConformance, check_solution

# Enough for problems of a dozen variables; the tabu sampler would otherwise stop by the clock.
TABU = {"num_restarts": 1, "lower_bound_z": 200, "coefficient_z_first": 10, "timeout": 60_000}


class TestSimulatedAnnealing(SolverConformance):
    large = False
    solver = DimodSolver(reads=5, parameters={"num_sweeps": 50})


class TestTabuSampler(SolverConformance):
    large = False
    solver = DimodSolver("dwave.samplers:TabuSampler", reads=2, parameters=TABU)


class TestSteepestDescent(SolverConformance):
    large = False
    solver = DimodSolver("dwave.samplers:SteepestDescentSolver", reads=5)


class TestSamplerObject(SolverConformance):
    large = False
    solver = DimodSolver(SimulatedAnnealingSampler(), reads=2, penalty=2.0, polished=0)


class Guesses:
    """A sampler that knows constraints, as hybrid ones do, and guesses."""

    parameters: ClassVar = {"time_limit": []}

    def sample_cqm(self, cqm, num_reads=1, *, seed, time_limit=5):
        bits = np.random.RandomState(seed).randint(0, 2, (num_reads, len(cqm.variables)))
        return dimod.SampleSet.from_samples_cqm((bits, list(cqm.variables)), cqm)


class TestConstrained(SolverConformance):
    large = False
    solver = DimodSolver(Guesses(), reads=8, parameters={"time_limit": 3})


class TestOpenJij(SolverConformance):
    large = False
    solver = DimodSolver("openjij:SASampler", reads=2, parameters={"num_sweeps": 20})


class TestOpenJijQuantum(SolverConformance):
    large = False
    solver = DimodSolver("openjij:SQASampler", reads=2, parameters={"num_sweeps": 20, "trotter": 4})


class TestSimulatedBifurcation(SolverConformance):
    large = False
    solver = SimulatedBifurcation(reads=4, steps=50)


class Spins(dimod.Sampler):
    """A sampler with none of the usual parameters, which answers in spins and in disorder."""

    parameters: ClassVar = {"strength": []}
    properties: ClassVar = {}

    def sample(self, bqm, **parameters):
        self.given = parameters
        found = SimulatedAnnealingSampler().sample(bqm, num_reads=4, seed=1).change_vartype("SPIN")
        order = list(reversed(found.variables))
        columns = [found.variables.index(v) for v in order]
        return dimod.SampleSet.from_samples(
            (found.record.sample[:, columns], order), "SPIN", energy=found.record.energy
        )


class Constant(Spins):
    """A sampler that answers all ones, whatever it is asked."""

    def sample(self, bqm, **parameters):
        return dimod.SampleSet.from_samples_bqm(dict.fromkeys(bqm.variables, 1), bqm)


def test_it_assumes_no_parameter_and_no_order() -> None:
    problem = fisher_problem(10, 4, [3, 2], seed=2)
    sampler = Spins()
    solution = DimodSolver(sampler, parameters={"strength": 3}).solve(problem)
    assert sampler.given == {"strength": 3}
    check_solution(problem, solution)
    assert solution.value == pytest.approx(brute_force(problem)[1], abs=1e-12)


def test_a_sampler_that_knows_constraints_gets_them() -> None:
    """It enumerates, and so the best of its reads that keep the counts is the optimum."""
    for counts in ([4], [2, 1]):
        problem = indefinite_problem(9, counts, seed=3)
        solution = DimodSolver(dimod.ExactCQMSolver(), polished=0).solve(problem)
        assert solution.value == pytest.approx(brute_force(problem)[1], abs=1e-12)


def test_what_is_sampled_is_the_problem_in_its_own_unit() -> None:
    """The mean |Q_ij| is 1, there is no constant, and the order of energies is that of the objective."""
    problem = scaled(fisher_problem(8, 4, [4], seed=1), 1e-9)
    form = dimensionless(problem, None)
    assert form.mean_size == pytest.approx(1.0)
    assert form.offset == 0
    x = torch.rand(20, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    values = torch.tensor([problem.value(row) for row in x], dtype=torch.float64)
    energies = form.energies(x)
    assert torch.allclose((energies - energies[0]) * problem.to_qubo(None).mean_size, values - values[0])
    assert dimensionless(problem, 2.5).penalty == pytest.approx(2.5)
    assert dimensionless(problem).penalty == pytest.approx(1.0)


def test_reads_that_break_every_count_are_repaired() -> None:
    problem = fisher_problem(12, 5, [2, 4, 0], seed=3)
    for polished in (0, 3):
        solution = DimodSolver(Constant(), polished=polished).solve(problem)
        check_solution(problem, solution)
        assert solution.status is not Status.OPTIMAL


def test_polishing_makes_a_local_optimum() -> None:
    problem = indefinite_problem(14, [7], seed=5)
    raw = DimodSolver(Constant(), polished=0).solve(problem)
    polished = DimodSolver(Constant(), polished=1).solve(problem)
    assert polished.value <= raw.value
    assert polished.status is Status.LOCAL_OPTIMUM
    assert raw.status in (Status.FEASIBLE, Status.INCUMBENT)


def test_a_seed_is_passed_where_it_is_taken() -> None:
    """Other seeds give other reads."""
    problem = indefinite_problem(40, [20], seed=0)
    solver = DimodSolver(reads=3, polished=0, parameters={"num_sweeps": 2})
    assert len({solver.solve(problem, seed).value for seed in range(5)}) > 1
    quick = SimulatedBifurcation(reads=2, steps=3, mode="discrete", heated=True, polished=0)
    assert len({tuple(quick.sample(problem, seed).flatten().tolist()) for seed in range(5)}) > 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DimodSolver(reads=0), "at least 1 read"),
        (lambda: DimodSolver(penalty=-1.0), "penalty is a number of at least 0"),
        (lambda: DimodSolver(penalty="large"), "not 'large'"),
        (lambda: DimodSolver("SimulatedAnnealingSampler"), "'module:Class'"),
        (lambda: DimodSolver(3), "sampler object"),
        (lambda: DimodSolver(SimulatedAnnealingSampler), "sampler object"),
        (lambda: DimodSolver(polished=-1), "polishes 0 reads or more"),
        (lambda: SimulatedBifurcation(reads=0), "at least 1 read"),
        (lambda: SimulatedBifurcation(steps=0), "1 step"),
        (lambda: SimulatedBifurcation(penalty=float("nan")), "penalty is a number"),
    ],
)
def test_settings_out_of_range_are_refused(make, words: str) -> None:
    with pytest.raises(SecateurError, match=words):
        make()


def test_an_unknown_mode_is_refused() -> None:
    """Past the run-time check of types, as a recipe would set it."""
    solver = SimulatedBifurcation()
    object.__setattr__(solver, "mode", "loud")
    with pytest.raises(SecateurError, match="'ballistic' and 'discrete', not 'loud'"):
        solver.__post_init__()


@pytest.mark.parametrize(
    "sampler", ["openjij:SASampler", "openjij:SQASampler", "dwave.samplers:SimulatedAnnealingSampler"]
)
def test_reads_differ(sampler: str) -> None:
    """OpenJij gives the same read again and again under one seed; it is asked read by read."""
    problem = indefinite_problem(40, [20], seed=0)
    solver = DimodSolver(sampler, reads=6, parameters={"num_sweeps": 5})
    reads = solver.sample(problem, 0)
    assert len(reads) == 6
    assert len(reads.unique(dim=0)) > 2
    assert torch.equal(solver.sample(problem, 0), reads)


def test_mistakes_are_sentences() -> None:
    problem = fisher_problem(6, 3, [3])
    with pytest.raises(SecateurError, match=r"no parameter 'num_sweep': did you mean 'num_sweeps'\?"):
        DimodSolver(parameters={"num_sweep": 3}).solve(problem)
    with pytest.raises(SecateurError, match=r"no 'Annealer' in dwave\.samplers"):
        DimodSolver("dwave.samplers:Annealer").solve(problem)
    with pytest.raises(SecateurError, match="cannot be imported"):
        DimodSolver("no_such_package:Sampler").solve(problem)
    with pytest.raises(SecateurError, match="SimulatedAnnealingSampler failed"):
        DimodSolver(parameters={"beta_range": "warm"}).solve(problem)


def test_recipes_find_them() -> None:
    assert lookup("solver", "dimod") is DimodSolver
    assert lookup("solver", "simulated-bifurcation") is SimulatedBifurcation


def test_recipes_name_a_sampler() -> None:
    """As a table of a TOML file, and back."""
    from secateur.recipes.builder import build_part
    from secateur.recipes.describe import describe

    table = {
        "name": "dimod",
        "sampler": "dwave.samplers:SteepestDescentSolver",
        "reads": 7,
        "parameters": {"large_sparse_opt": True},
    }
    solver = build_part("solver", table, "pruner.solver")
    assert solver == DimodSolver(
        "dwave.samplers:SteepestDescentSolver", reads=7, parameters={"large_sparse_opt": True}
    )
    assert build_part("solver", describe(solver), "pruner.solver") == solver


def test_nothing_is_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SimulatedBifurcation(reads=2, steps=2).solve(fisher_problem(8, 4, [4]))
