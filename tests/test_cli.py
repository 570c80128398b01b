"""The command line: what people type, and what they read."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from secateur.cli.app import run
from secateur.cli.demo import Results, _verdict
from secateur.cli.prune import next_folder, split_words
from secateur.core.errors import SecateurError
from secateur.core.mask import Mask
from secateur.evaluation import evaluate
from secateur.export.outcome import apply_outcome
from secateur.recipes import load

SMALL = """
about = "very small"
data = "digits"
[model]
name = "trained"
epochs = 2
network = { name = "mlp", widths = [64, 16, 10] }
[run]
density = 0.2
budget = "3steps"
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("SECATEUR_ASSETS", raising=False)
    (tmp_path / "small.toml").write_text(SMALL)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run to look at."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "small.toml").write_text(SMALL)
    words = ["prune", str(folder / "small.toml"), "--out", str(folder / "run"), "--quiet", "--save-model"]
    assert run(words) == 0
    return folder / "run"


def lines(capsys):
    captured = capsys.readouterr()
    return captured.out + captured.err


# Processes of their own.


def secateur(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "secateur", *words], capture_output=True, text=True, timeout=120, **options
    )


def test_help_comes_at_once_and_without_torch():
    begin = time.perf_counter()
    told = secateur("--help")
    seconds = time.perf_counter() - begin
    assert told.returncode == 0
    for command in ("compare", "demo", "doctor", "evaluate", "prune", "recipes", "report"):
        assert command in told.stdout
    assert seconds < 2  # 0.15 s on a quiet machine
    code = "import sys, secateur.cli.app; sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_an_error_is_one_line_and_status_2():
    told = secateur("prune", "garmet")
    assert told.returncode == 2
    assert told.stderr == "error: there is no recipe 'garmet': did you mean 'garment'?\n"
    assert told.stdout == ""


def test_ctrl_c_keeps_the_best_mask(tmp_path):
    words = ["prune", "small.toml", "--out", "run", "--budget", "none", "--pruner.batches.guard", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "secateur", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    log = tmp_path / "run" / "events.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (log.exists() and '"stepped"' in log.read_text()):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 0, told
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["reason"] in ("interrupted", "converged")
    assert Mask.load(tmp_path / "run" / "mask.safetensors").density == pytest.approx(0.2, abs=1e-3)


# In this process.


def test_prune_writes_a_run_and_says_where(capsys, tmp_path):
    assert run(["prune", "small.toml", "--seed", "3", "--block-size", "64"]) == 0
    told = lines(capsys)
    assert "runs/small-1 holds the mask" in told
    assert "secateur evaluate runs/small-1" in told
    for word in ("dense", "one-shot start", "pruned", "density 0.2", "seed 3", "budget 3 steps"):
        assert word in told
    folder = tmp_path / "runs" / "small-1"
    recipe = (folder / "recipe.toml").read_text()
    assert "block_size = 64" in recipe
    assert "seed = 3" in recipe
    for name in ("events.jsonl", "mask.safetensors", "report.json", "report.html"):
        assert (folder / name).stat().st_size > 0
    assert next_folder("small").name == "small-2"


def test_quiet_is_quiet(capsys):
    assert run(["prune", "small.toml", "--quiet", "--pruner", "one-shot", "--out", "x"]) == 0
    assert lines(capsys) == ""


def test_the_saved_model_loads_without_secateur(finished):
    from safetensors.torch import load_file

    weights = load_file(finished / "model.safetensors")
    mask = Mask.load(finished / "mask.safetensors")
    for name, kept in mask.items():
        assert torch.equal(weights[f"{name}.weight"] != 0, kept)


def test_evaluate_says_what_the_report_says(capsys, finished):
    assert run(["evaluate", str(finished)]) == 0
    told = lines(capsys)
    assert "as the report says" in told
    assert "density 0.2" in told


def test_evaluate_notices_another_model(capsys, finished, tmp_path):
    for name in ("mask.safetensors", "report.json"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    (tmp_path / "recipe.toml").write_text(
        (finished / "recipe.toml").read_text().replace("epochs = 2", "epochs = 1")
    )
    assert run(["evaluate", str(tmp_path)]) == 1
    assert "differ from the report" in lines(capsys)


def test_evaluate_allows_for_what_another_device_rounds_otherwise(capsys, finished, tmp_path):
    for name in ("mask.safetensors", "recipe.toml"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    report = json.loads((finished / "report.json").read_text())
    report["evaluation"]["pruned"]["loss"] += 5e-3
    for device, status in ((report["device"], 1), ("a GPU", 0)):
        (tmp_path / "report.json").write_text(json.dumps({**report, "device": device}))
        assert run(["evaluate", str(tmp_path), "--device", "cpu"]) == status
    assert "as the report says, but for a GPU" in lines(capsys)


def test_a_full_gpu_is_said_in_a_sentence(capsys, finished, monkeypatch):
    def fill(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.86 GiB.")

    monkeypatch.setattr("secateur.cli.evaluate.evaluate", fill)
    assert run(["evaluate", str(finished)]) == 2
    assert "the GPU is out of memory: bound the run" in lines(capsys)


def test_where_a_run_computes_and_in_what_memory_may_change(tmp_path):
    assert run(["prune", "small.toml", "--quiet", "--out", "x", "--budget", "2steps"]) == 0
    words = ["--device", "cpu", "--memory", "1GB", "--budget", "3steps"]
    assert run(["prune", "--quiet", "--resume", "x", *words]) == 0
    assert json.loads((tmp_path / "x" / "report.json").read_text())["steps"] == 3


NET = """
import torch


def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(64, 3)).eval()
"""


def test_evaluate_a_classifiers_run_on_other_pictures(capsys, tmp_path):
    (tmp_path / "net.py").write_text(NET)
    draw = np.random.default_rng(0)
    pixels, labels = draw.integers(0, 256, (60, 6, 6, 3), dtype=np.uint8), np.arange(60) % 3
    np.savez(tmp_path / "own.npz", x=pixels[:40], y=labels[:40])
    np.savez(tmp_path / "other.npz", x=pixels[40:], y=labels[40:])
    for at in range(40, 60):
        place = tmp_path / "folder" / "abc"[labels[at]]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[at]).save(place / f"{at}.png")
    words = [
        "prune", "--model", "net.py:build", "--data", "own.npz", "--channels-last", "true", "--inputs", "x",
        "--labels", "y", "--data.normalisation", "{mean = [0.2], std = [0.3]}", "--density", "0.5",
        "--budget", "2steps", "--out", "run", "--quiet",
    ]  # fmt: skip
    assert run(words) == 0
    (tmp_path / "own.npz").unlink()  # which is not needed
    capsys.readouterr()
    for data in ("other.npz", "folder"):
        assert run(["evaluate", "run", "--data", data]) == 0
    told = lines(capsys)
    assert "dense" in told
    assert "pruned" in told
    kept = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert set(kept) == {"other.npz", "folder"}
    recipe = load("run")
    space = {}
    exec(NET, space)
    for data, found in kept.items():
        # None is set aside: these pictures calibrate nothing.
        ((protocol, by_model),) = found.items()
        assert protocol == "20 evaluation samples"
        table = {"name": "arrays", "path": "other.npz", "inputs": "x", "labels": "y", "channels_last": True}
        if data == "folder":
            table = {"name": "images", "folder": "folder"}
        table["normalisation"] = {"mean": [0.2], "std": [0.3]}
        table["division"] = {"evaluation_fraction": 0.0}
        task = load({"data": table, "model": {"name": "function", "target": "net.py:build"}}).data.task()
        model = space["build"]()
        assert by_model["dense"]["loss"] == pytest.approx(evaluate(model, task)["loss"])
        apply_outcome(model, tmp_path / "run")
        assert by_model["pruned"]["loss"] == pytest.approx(evaluate(model, task)["loss"])
        assert by_model["pruned"]["loss"] != by_model["dense"]["loss"]
    assert recipe.data.normalisation.mean == (0.2,)
    # The recipe's model by itself: nothing is pruned, and nothing kept.
    assert run(["evaluate", "run/recipe.toml", "--data", "other.npz"]) == 0
    assert "pruned" not in lines(capsys)


def test_evaluate_a_recipe(capsys):
    assert run(["evaluate", "small.toml"]) == 0
    assert "500 evaluation samples" in lines(capsys)


def test_compare_and_report(capsys, finished):
    shutil.copytree(finished, "again/run")  # two runs of one name are told apart by their paths
    assert run(["compare", str(finished), "again/run", "--figure", "c.svg"]) == 0
    told = lines(capsys)
    assert told.count("icbs") == 2
    assert "wrote c.svg" in told
    (finished / "report.html").unlink()
    assert run(["report", str(finished)]) == 0
    assert (finished / "report.html").exists()


def test_resume_a_finished_run_changes_nothing(capsys, finished):
    before = Mask.load(finished / "mask.safetensors")
    assert run(["prune", "--resume", str(finished)]) == 0
    assert Mask.load(finished / "mask.safetensors").same_as(before)
    assert "going on after step" in lines(capsys)


def test_recipes(capsys):
    assert run(["recipes", "ls"]) == 0
    assert "garment-published" in lines(capsys)
    assert run(["recipes", "show", "garment"]) == 0
    assert "{assets}/data/fashion-mnist" in lines(capsys)
    assert run(["recipes", "show", "garment", "--resolved"]) == 0
    assert "block_size" in lines(capsys)
    assert run(["recipes", "copy", "digits"]) == 0
    assert run(["recipes", "copy", "digits"]) == 2
    assert "digits.toml is there already" in lines(capsys)


def test_demo(capsys, tmp_path):
    assert run(["demo", "--seeds", "1", "--budget", "2steps"]) == 0
    told = lines(capsys)
    for network in ("perceptron", "convolutional network", "vision transformer"):
        assert f"{network}, density 0." in told
    assert told.count("iCBS is ahead of magnitude by") == 3
    assert told.count("iCBS is ahead of gradient by") == 3
    assert (tmp_path / "runs" / "demo" / "demo.png").exists()
    for recipe in ("digits", "digits-cnn", "digits-vit"):
        assert (tmp_path / "runs" / "demo" / recipe / "icbs-0" / "report.html").exists()


def test_demo_says_what_was_measured():
    results = Results("perceptron", 0.1)
    for accuracy, loss in ((0.5, 2.0), (0.7, 1.0)):
        results.add("magnitude", {"accuracy": accuracy, "loss": loss})
        results.add("gradient", {"accuracy": 0.6, "loss": 1.0})
        results.add("iCBS", {"accuracy": 0.65, "loss": 0.5})
    first, second = _verdict(results, 2).splitlines()
    assert first == (
        "iCBS is ahead of magnitude by 5.0 ± 14.1 points of accuracy and 1.000 ± 0.707 nats, on 1 of 2 seeds."
    )
    assert "gradient by 5.0 ± 0.0 points of accuracy and 0.500 ± 0.000 nats, on 2 of 2 seeds." in second


def test_doctor(capsys, tmp_path):
    assert run(["doctor"]) == 0
    assert "all is well" in lines(capsys)
    assert run(["doctor", "--assets", str(tmp_path)]) == 1
    told = lines(capsys)
    assert "lacks data/fashion-mnist" in told
    assert "to do: give the folder" in told


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prune"], "name a recipe, such as `secateur prune digits`"),
        (["prune", "digits", "garment"], "one recipe at a time: digits and garment were named."),
        (
            ["prune", "digits", "--blok-size", "3"],
            "'blok-size' is unknown: did you mean 'pruner.stage.block_size'?",
        ),
        (["prune", "digits", "--block-size"], "--block-size lacks a value: write --block-size VALUE."),
        (
            ["prune", "digits", "--density", "2"],
            "density is 2.0, but it is the fraction of the weights to keep",
        ),
        (["prune", "digits", "--density", "x"], "'run.density' is 'x', but it must be a number."),
        (["prune", "digits", "--budget", "soon"], "cannot read the budget 'soon'"),
        (["prune", "digits", "--solver", "swapz"], "asks for a solver called 'swapz': did you mean 'swaps'?"),
        (["prune", "garment"], "give --assets DIR or set SECATEUR_ASSETS."),
        (["prune", "--resume", "none"], "there is no run folder none to resume."),
        (["prune", "--resume", "."], ". holds no recipe.toml"),
        (["prune", "digits", "--resume", ".", "--density", ".2"], "leave out digits, --density (--budget"),
        (["prune", "small.toml", "--out", "."], ". is there already and not empty: give another --out."),
        (["prune", "small.toml", "--device", "cuda"], "torch sees no GPU"),
        (["evaluate", "."], ". holds no mask.safetensors"),
        (["report", "."], ". is not a run folder"),
        (["compare"], "name the runs to compare"),
        (["compare", "none"], "there is no run folder none"),
        (["recipes", "show", "digit"], "there is no recipe 'digit': did you mean 'digits'?"),
        (["demo", "--seeds", "0"], "give at least 1"),
        (["prun"], 'Did you mean "prune"?'),
    ],
)
def test_every_mistake_gets_one_sentence(words, said, capsys):
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert run(words) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_a_run_is_not_overwritten(capsys, finished):
    assert run(["prune", "digits", "--out", str(finished)]) == 2
    assert f"`secateur prune --resume {finished}`" in lines(capsys)


def test_traceback_shows_where_it_came_from():
    with pytest.raises(SecateurError):
        run(["prune", "garmet", "--traceback"])


def test_words_are_divided():
    assert split_words(["a", "--x", "1", "--y.z=2", "--r", "-3"]) == (
        ["a"],
        {"x": "1", "y.z": "2", "r": "-3"},
    )


def test_interruption_while_preparing_is_one_line(tmp_path):
    (tmp_path / "long.toml").write_text(SMALL.replace("epochs = 2", "epochs = 100000"))
    for wait in (0.4, 8.0):  # importing; training
        process = subprocess.Popen(
            [sys.executable, "-m", "secateur", "prune", "long.toml", "--out", "run"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        time.sleep(wait)
        os.kill(process.pid, signal.SIGINT)
        told, _ = process.communicate(timeout=60)
        assert (process.returncode, told) == (130, "interrupted\n")
    assert not (tmp_path / "run").exists()


def test_an_interrupted_run_says_how_to_go_on(capsys, monkeypatch):
    def stopped(*_, out, **__):
        out.mkdir()
        (out / "state.safetensors").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("secateur.recipes.run.run_recipe", stopped)
    assert run(["prune", "small.toml", "--out", "a run"]) == 130
    assert "interrupted: go on with it by `secateur prune --resume 'a run'`\n" in lines(capsys)


def test_a_run_is_evaluated_from_any_folder(capsys, tmp_path, monkeypatch):
    torch.save({"x": torch.randn(60, 4), "y": torch.arange(60) % 3}, tmp_path / "d.pt")
    (tmp_path / "net.py").write_text("import torch\ndef build(w): return torch.nn.Linear(4, w)\n")
    (tmp_path / "r.toml").write_text(
        '[data]\nname = "arrays"\npath = "d.pt"\n[model]\nname = "function"\ntarget = "net.py:build"\n'
        '[run]\ndensity = 0.5\nbudget = "1steps"\n'
    )
    assert run(["prune", "r.toml", "--out", "my run", "--arguments.w", "3"]) == 0
    told = lines(capsys)
    assert "budget 1 step," in told
    assert "secateur evaluate 'my run'" in told
    monkeypatch.chdir("/")
    assert run(["evaluate", str(tmp_path / "my run")]) == 0


def test_a_run_after_a_run_is_named_after_its_folder(capsys, finished):
    assert run(["prune", str(finished), "--pruner", "one-shot"]) == 0
    assert "runs/run-1 holds the mask" in lines(capsys)


def test_a_figure_of_no_known_kind_is_refused_before_the_table(capsys, finished):
    assert run(["compare", str(finished), "--figure", "c.xyz"]) == 2
    assert capsys.readouterr().out == ""


def test_a_damaged_log_does_not_stop_the_report(capsys, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    (tmp_path / "copy" / "events.jsonl").write_bytes(bytes(range(256)) * 40)
    assert run(["report", "copy"]) == 0
    assert run(["prune", "--resume", "copy", "--quiet"]) == 0
