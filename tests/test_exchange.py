"""Problem files: what they hold comes back, and others read them."""

import json
from dataclasses import replace

import dimod
import numpy as np
import pytest
import torch
from dimod.serialization import coo
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.core.errors import SecateurError
from secateur.core.problem import BlockProblem
from secateur.exchange import SUFFIXES, load_indices, load_problem, save_problem
from secateur.testing.problems import fisher_problem, indefinite_problem, magnitude, scaled, zoo

TEXT = [suffix for suffix in SUFFIXES if suffix != ".npz"]


def values(problem: BlockProblem, x: torch.Tensor) -> torch.Tensor:
    return torch.tensor([problem.value(row) for row in x], dtype=torch.float64)


def some(n: int, m: int = 20) -> torch.Tensor:
    return torch.rand(m, n, generator=torch.Generator().manual_seed(n)) < 0.5


def same_tensor(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and torch.equal(a, b)


# Round trips.


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", zoo())
def test_the_problem_comes_back(tmp_path, kind: str, suffix: str) -> None:
    """The same groups, counts, incumbent and constant; the same objective everywhere."""
    problem = zoo(1)[kind]
    save_problem(problem, tmp_path / f"block{suffix}")
    again = load_problem(tmp_path / f"block{suffix}")
    assert torch.equal(again.groups, problem.groups)
    assert torch.equal(again.counts, problem.counts)
    assert torch.equal(again.incumbent, problem.incumbent)
    assert again.constant == problem.constant
    x = some(problem.size)
    assert (values(again, x) - values(problem, x)).abs().max() <= 1e-13 * magnitude(problem)
    assert load_indices(tmp_path / f"block{suffix}") is None


@pytest.mark.parametrize("kind", [*zoo(), "convex"])
def test_npz_is_bit_for_bit(tmp_path, kind: str) -> None:
    problem = replace(fisher_problem(6, 3, [3]), convex=True) if kind == "convex" else zoo(2)[kind]
    save_problem(problem, tmp_path / "block.npz")
    (tmp_path / "block.json").unlink()  # it holds all by itself
    again = load_problem(tmp_path / "block.npz")
    for part in ("linear", "groups", "incumbent", "dense", "factors", "diagonal"):
        assert same_tensor(getattr(again, part), getattr(problem, part)), part
    assert (again.constant, again.convex) == (problem.constant, problem.convex)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 9),
    seed=st.integers(0, 10**6),
    exponent=st.sampled_from([-12, -3, 0, 9]),
    groups=st.integers(1, 3),
)
def test_lp_is_exact(tmp_path_factory, n: int, seed: int, exponent: int, groups: int) -> None:
    """Every coefficient of a symmetric B, whatever its size."""
    generator = torch.Generator().manual_seed(seed)
    half = torch.randn(n, n, generator=generator, dtype=torch.float64) * 10.0**exponent
    problem = BlockProblem(
        0.1,
        torch.randn(n, generator=generator, dtype=torch.float64) * 10.0**exponent,
        torch.arange(n) % groups,
        torch.rand(n, generator=generator) < 0.5,
        dense=half + half.T,
    )
    path = tmp_path_factory.mktemp("lp") / "block.lp"
    save_problem(problem, path)
    again = load_problem(path)
    assert torch.equal(again.linear, problem.linear)
    assert again.dense is not None
    assert torch.equal(again.dense, problem.matrix)


def test_indices_come_back(tmp_path) -> None:
    problem = fisher_problem(6, 3, [3])
    indices = {"layers.0": torch.tensor([5, 17, 400]), "layers.1": torch.tensor([2, 3, 9])}
    for suffix in SUFFIXES:
        path = tmp_path / f"b-{suffix[1:]}{suffix}"
        save_problem(problem, path, indices)
        found = load_indices(path)
        assert found is not None
        assert list(found) == list(indices)
        assert all(torch.equal(found[name], indices[name]) for name in indices)
    with pytest.raises(SecateurError, match="name 3 weights, but the problem has 6"):
        save_problem(problem, tmp_path / "b.lp", {"layers.0": torch.tensor([1, 2, 3])})


# What others read.


@pytest.mark.parametrize("kind", ["Fisher", "indefinite", "huge", "tiny", "factors and diagonal", "pairs"])
def test_what_the_side_car_says_is_so(tmp_path, kind: str) -> None:
    """scale x value of the file + offset is the objective and the penalty; by others' readers."""
    problem = zoo(3)[kind]
    x = some(12)
    off = torch.zeros(len(x), dtype=torch.float64)
    for group, count in enumerate(problem.counts.tolist()):
        off += (x[:, problem.groups == group].sum(1) - count).double() ** 2
    for suffix in TEXT:
        path = tmp_path / f"block-{suffix[1:]}{suffix}"
        save_problem(problem, path)
        car = json.loads(path.with_suffix(".json").read_text())
        assert car["sense"] == ("maximise" if suffix == ".ubqp" else "minimise")
        assert car["file"] == path.name
        wanted = values(problem, x) + (car["penalty"] or 0.0) * off
        found = car["scale"] * torch.from_numpy(OTHERS[suffix](path, x)) + car["offset"]
        unit = magnitude(problem) + (car["penalty"] or 0.0) * 144
        assert (found - wanted).abs().max() <= 1e-12 * unit, suffix


def by_dimods_lp(path, x: torch.Tensor) -> np.ndarray:
    model = dimod.lp.load(str(path))
    labels = [f"x{i}" for i in range(x.shape[1])]
    assert set(model.variables) == set(labels)
    assert all(model.vartype(label) is dimod.BINARY for label in labels)
    return model.objective.energies((x.numpy().astype(np.int8), labels))


def by_dimods_coo(path, x: torch.Tensor) -> np.ndarray:
    model = coo.loads(path.read_text())
    assert model.vartype is dimod.BINARY
    return model.energies((x.numpy().astype(np.int8), list(range(x.shape[1]))))


def by_the_definition(path, x: torch.Tensor) -> np.ndarray:
    """As the OR-Library says: sum over all ordered pairs, q(i, j) = q(j, i)."""
    head, *lines = path.read_text().split("\n")
    n, entries = map(int, head.split())
    matrix = np.zeros((n, n))
    for line in lines[:entries]:
        i, j, value = line.split()
        matrix[int(i) - 1, int(j) - 1] = matrix[int(j) - 1, int(i) - 1] = float(value)
    bits = x.double().numpy()
    return np.einsum("mi,ij,mj->m", bits, matrix, bits)


OTHERS = {".lp": by_dimods_lp, ".coo": by_dimods_coo, ".ubqp": by_the_definition}


def test_dimod_reads_the_counts(tmp_path) -> None:
    problem = fisher_problem(9, 4, [1, 2, 3], seed=1)
    save_problem(problem, tmp_path / "block.lp")
    model = dimod.lp.load(str(tmp_path / "block.lp"))
    for x in some(9, 60):
        sample = {f"x{i}": int(bit) for i, bit in enumerate(x)}
        assert model.check_feasible(sample) == problem.is_feasible(x)
    assert model.check_feasible({f"x{i}": int(bit) for i, bit in enumerate(problem.incumbent)})


def test_highs_reads_it(tmp_path) -> None:
    """Variables, rows and Hessian; solving it as a mixed-integer problem is beyond HiGHS."""
    highspy = pytest.importorskip("highspy")
    problem = fisher_problem(8, 4, [2, 2], seed=2)
    save_problem(problem, tmp_path / "block.lp")
    scale = json.loads((tmp_path / "block.json").read_text())["scale"]
    model = highspy.Highs()
    model.setOptionValue("output_flag", False)
    assert model.readModel(str(tmp_path / "block.lp")) == highspy.HighsStatus.kOk
    program, hessian = model.getLp(), model.getModel().hessian_
    assert (program.num_col_, program.num_row_, hessian.dim_) == (8, 2, 8)
    assert list(program.row_upper_) == [2, 2]
    order = [program.col_names_.index(f"x{i}") for i in range(8)]
    dense = np.zeros((8, 8))
    for column in range(8):
        for at in range(hessian.start_[column], hessian.start_[column + 1]):
            dense[hessian.index_[at], column] = dense[column, hessian.index_[at]] = hessian.value_[at]
    assert np.allclose(scale * dense[order][:, order], problem.matrix.numpy(), rtol=1e-12)
    assert np.allclose(scale * np.array(program.col_cost_)[order], problem.linear.numpy(), rtol=1e-12)


def test_coefficients_have_the_size_of_one(tmp_path) -> None:
    """Solvers have absolute tolerances: a loss of 1e-9 must not vanish in them."""
    for factor in (1e-12, 1e9):
        save_problem(scaled(fisher_problem(12, 5, [6]), factor), tmp_path / "block.coo")
        numbers = [abs(float(line.split()[2])) for line in (tmp_path / "block.coo").open() if line[0] != "#"]
        assert 0.5 < np.mean(numbers) < 4


def test_lines_are_short(tmp_path) -> None:
    """CPLEX and others cut lines of more than 255 characters."""
    save_problem(indefinite_problem(40, [20]), tmp_path / "block.lp")
    assert max(map(len, (tmp_path / "block.lp").open())) < 255


# An .lp file from elsewhere.

FOREIGN = """\\ from elsewhere
Maximize
 obj: - 2 b + 3.5 a + 4 - c + [ 2 a ^ 2 - 6 a * b + 1e1 d*c ] / 2
 + 1
Subject To
 first: a + b = 1
 second:
  c + d
  + e = 2
Bounds
 0 <= a <= 1
Binaries
 a b
 c d e
End
"""


def test_an_lp_file_from_elsewhere(tmp_path) -> None:
    (tmp_path / "foreign.lp").write_text(FOREIGN)
    problem = load_problem(tmp_path / "foreign.lp")
    for bits in np.ndindex(2, 2, 2, 2, 2):
        a, b, c, d, _ = bits
        wanted = -(-2 * b + 3.5 * a + 5 - c + a * a - 3 * a * b + 5 * d * c)
        assert problem.value(torch.tensor(bits).bool()) == pytest.approx(wanted)
    assert problem.groups.tolist() == [0, 0, 1, 1, 1]
    assert problem.incumbent.tolist() == [True, False, True, True, False]


def test_what_dimod_writes_is_read(tmp_path) -> None:
    """Its own LP writer, from our CQM: another order of variables, other labels, no side-car."""
    problem = indefinite_problem(12, [3, 2], seed=5)
    model = problem.to_cqm()
    model.relabel_variables({i: f"x{i}" for i in range(12)})
    model.relabel_constraints({"group 0": "g0", "group 1": "g1"})
    (tmp_path / "theirs.lp").write_text(dimod.lp.dumps(model))
    again = load_problem(tmp_path / "theirs.lp")
    x = some(12)
    assert torch.allclose(values(again, x), values(problem, x), atol=1e-12)
    assert [again.is_feasible(row) for row in x] == [problem.is_feasible(row) for row in x]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (" first: a + b = 1", " first: a + b <= 1", "constraint 'first' is not of the form"),
        (" first: a + b = 1", " first: 2 a + b = 1", "constraint 'first' is not of the form"),
        (" first: a + b = 1", " first: a + b = 3", "constraint 'first' is not of the form"),
        (" first: a + b = 1", " first: a + b + c = 1", "has a variable that another one has"),
        (" first: a + b = 1\n", "", "not every variable is in a constraint"),
        (" first: a + b = 1", " first: a + b", "constraint"),
        ("Binaries\n a b", "Binaries\n a", "variable 'b' is not among its Binaries"),
        ("Binaries\n a b", "Generals\n f\nBinaries\n a b", "not binary"),
        ("Maximize", "Mximize", "does not begin with"),
        ("3.5 a", "3.5 a ! 7", "neither a term nor a number"),
        ("2 a ^ 2", "2 a ^ 3", "not quadratic"),
        (" a b\n", " a b b\n", "twice"),
    ],
)
def test_other_problems_are_refused(tmp_path, old: str, new: str, words: str) -> None:
    assert old in FOREIGN
    (tmp_path / "foreign.lp").write_text(FOREIGN.replace(old, new))
    with pytest.raises(SecateurError, match=words) as caught:
        load_problem(tmp_path / "foreign.lp")
    assert "foreign.lp" in str(caught.value)
    assert "\n" not in str(caught.value)


# Mistakes.


@pytest.fixture
def saved(tmp_path):
    problem = fisher_problem(8, 4, [2, 2], seed=3)
    for suffix in SUFFIXES:
        save_problem(problem, tmp_path / suffix[1:] / f"block{suffix}")
    return tmp_path


@pytest.mark.parametrize("suffix", [".coo", ".ubqp"])
def test_a_missing_side_car_is_said(saved, suffix: str) -> None:
    path = saved / suffix[1:] / f"block{suffix}"
    path.with_suffix(".json").unlink()
    with pytest.raises(SecateurError, match=r"needs block\.json beside it"):
        load_problem(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda car: "{", "damaged"),
        (lambda car: "[]", "damaged"),
        (lambda car: json.dumps({**car, "format": "other"}), "no side-car of a problem file"),
        (lambda car: json.dumps({**car, "version": 99}), "update Secateur"),
        (lambda car: json.dumps({**car, "file": "block.xyz"}), "not of block"),
        (lambda car: json.dumps({k: v for k, v in car.items() if k != "groups"}), "damaged"),
        (lambda car: json.dumps({**car, "groups": car["groups"][:-1]}), "different lengths"),
        (lambda car: json.dumps({**car, "incumbent": [2] * 8}), "not 0 and 1"),
        (lambda car: json.dumps({**car, "counts": [1, 3]}), "does not have the counts"),
        (lambda car: json.dumps({**car, "scale": 0}), "scale"),
        (lambda car: json.dumps({**car, "scale": "much"}), "damaged"),
    ],
)
def test_a_damaged_side_car_is_said(saved, suffix: str, change, words: str) -> None:
    path = saved / suffix[1:] / f"block{suffix}"
    side = path.with_suffix(".json")
    side.write_text(change(json.loads(side.read_text())))
    with pytest.raises(SecateurError, match=words) as caught:
        load_problem(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_of_different_problems_are_told_apart(saved, suffix: str) -> None:
    for other in (fisher_problem(9, 4, [3, 2]), replace(fisher_problem(8, 4, [1, 2]), constant=0.0)):
        save_problem(other, saved / f"block{suffix}")
        path = saved / suffix[1:] / f"block{suffix}"
        path.write_bytes((saved / f"block{suffix}").read_bytes())
        if suffix in (".lp", ".npz") or other.size == 9:
            with pytest.raises(SecateurError):
                load_problem(path)


@pytest.mark.parametrize(
    ("suffix", "content", "words"),
    [
        (".coo", "# vartype=BINARY\n0 0\n", "not all 'i j value'"),
        (".coo", "0 8 1.5\n", "not among the 8"),
        (".coo", "0 0.5 1.5\n", "not among the 8"),
        (".ubqp", "7 1\n1 1 2\n", "first line '7 1'"),
        (".ubqp", "8 2\n1 1 2\n", "first line '8 2'"),
        (".ubqp", "", "first line ''"),
        (".ubqp", "8 1\n0 1 2\n", "not among the 8"),
        (".npz", "no zip", "not those of a block problem"),
        (".lp", "", "does not begin with"),
        (".lp", "Minimize\n obj: x0\nSubject To\nBinaries\nEnd\n", "not among its Binaries"),
    ],
)
def test_damaged_files_are_one_sentence(saved, suffix: str, content: str, words: str) -> None:
    path = saved / suffix[1:] / f"block{suffix}"
    path.write_text(content)
    with pytest.raises(SecateurError, match=words) as caught:
        load_problem(path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_that_are_no_format(tmp_path) -> None:
    problem = fisher_problem(4, 2, [2])
    with pytest.raises(SecateurError, match=r"not 'block\.mps'\."):
        save_problem(problem, tmp_path / "block.mps")
    with pytest.raises(SecateurError, match=r"ends in \.lp, \.coo, \.ubqp or \.npz"):
        load_problem(tmp_path / "block")
    with pytest.raises(SecateurError, match="no problem file"):
        load_problem(tmp_path / "block.lp")
    (tmp_path / "file").write_text("")
    with pytest.raises(SecateurError, match="cannot write"):
        save_problem(problem, tmp_path / "file" / "block.lp")


@pytest.mark.parametrize("bound", ["x0 = 1", "1 <= x0", "x1 <= 0", "x0 free", "-1 <= x0 <= 1"])
def test_a_bound_that_says_more_is_refused(tmp_path, bound: str) -> None:
    """A variable that is fixed in the file must not be free in the problem."""
    save_problem(fisher_problem(4, 2, [2]), tmp_path / "b.lp")
    (tmp_path / "b.json").unlink()
    text = (tmp_path / "b.lp").read_text()
    (tmp_path / "b.lp").write_text(text.replace("Binar", f"Bounds\n {bound}\nBinar", 1))
    with pytest.raises(SecateurError, match="bound"):
        load_problem(tmp_path / "b.lp")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_is_not_its_side_cars_is_refused(tmp_path, suffix: str) -> None:
    """Cut off, or another problem's: nothing of it is solved."""
    one, other = tmp_path / f"one{suffix}", tmp_path / f"other{suffix}"
    save_problem(fisher_problem(8, 3, [4], 0), one)
    save_problem(fisher_problem(8, 3, [4], 1), other)
    whole = one.read_bytes()
    for content in (b"", whole[: len(whole) // 2], other.read_bytes()):
        one.write_bytes(content)
        with pytest.raises(SecateurError):
            load_problem(one)
    one.write_bytes(whole)
    assert load_problem(one).size == 8


def test_a_foreign_file_is_not_overwritten(tmp_path) -> None:
    """What has the side-car's name and is none, or another problem's, stays."""
    problem, path = fisher_problem(8, 3, [4]), tmp_path / "block.lp"
    (tmp_path / "block.json").write_text('{"my": "precious"}')
    with pytest.raises(SecateurError, match="another name"):
        save_problem(problem, path)
    assert (tmp_path / "block.json").read_text() == '{"my": "precious"}'
    assert not path.exists()
    (tmp_path / "block.json").unlink()
    save_problem(problem, path)
    save_problem(problem, path)
    with pytest.raises(SecateurError, match="another name"):
        save_problem(problem, tmp_path / "block.npz")
    assert load_problem(path).size == 8


def test_a_large_block_comes_back(tmp_path) -> None:
    """Half as large as the usual one."""
    problem = fisher_problem(512, 100, [256], seed=1)
    save_problem(problem, tmp_path / "block.lp")
    again = load_problem(tmp_path / "block.lp")
    assert torch.equal(again.linear, problem.linear)
