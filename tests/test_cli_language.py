"""`secateur prune` of language models: from a model and a text to a folder that transformers loads."""

import json

import pytest
import torch
from safetensors.torch import load_file

from secateur.cli.app import run
from secateur.core.mask import Mask
from secateur.tasks.text import Text

transformers = pytest.importorskip("transformers", reason="language models need transformers: the extra hf")
tokenizers = pytest.importorskip("tokenizers", reason="language models need tokenizers: the extra hf")

WORDS = ["<unk>", "<s>", "</s>", *"the a cat dog sat ran on mat . fast slow".split()]  # noqa: SIM905
STORY = "the cat sat on the mat . a dog ran fast . the slow dog sat on a mat . "


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny Llama with its tokenizer, and text."""
    folder = tmp_path_factory.mktemp("language")
    core = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder / "llama")
    torch.manual_seed(0)
    sizes = {"vocab_size": 14, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(
        **sizes, num_attention_heads=2, max_position_embeddings=32, initializer_range=0.5
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "llama")
    (folder / "text.txt").write_text("<|endoftext|>".join([STORY * 2] * 10))
    return folder


def words(place, out, *more):
    return [
        "prune", "--model", str(place / "llama"), "--data", str(place / "text.txt"), "--density", "0.5",
        "--budget", "2steps", "--context", "16", "--out", str(out), *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(place):
    """A run to look at."""
    assert run(words(place, place / "run", "--save-model", "--quiet")) == 0
    return place / "run"


@pytest.fixture(scope="module")
def refitted(place):
    """A run whose kept weights have changed."""
    more = ("--refit", "gradient", "--refit.steps", "20", "--save-model", "--quiet")
    assert run(words(place, place / "refit", *more)) == 0
    return place / "refit"


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def tensors_of(folder):
    """Give mask, model and changed weights; the order of a file's header is not always the same."""
    files = (file for file in folder.rglob("*.safetensors") if file.name != "state.safetensors")
    return {f"{file.name}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


def loss_of(place, folder):
    """Measure the loss without Secateur's own loading and pruning."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    task = Text(str(place / "text.txt"), str(folder), context=16).task()
    ids, targets = task.evaluation.ids.long(), task.evaluation.targets
    with torch.no_grad():
        each = -model(ids).logits.double().log_softmax(-1).gather(-1, targets.clamp(min=0).long()[..., None])
    counted = targets != -100
    losses = (each[..., 0] * counted).sum(1) / counted.sum(1)
    assert tokenizer("the cat")["input_ids"] == [3, 5]
    return model, float(losses.mean())


@pytest.mark.parametrize("which", ["finished", "refitted"])
def test_the_model_in_the_run_folder_loads_with_transformers_and_gives_the_loss_of_the_report(
    place, which, request
):
    folder = request.getfixturevalue(which)
    model, loss = loss_of(place, folder / "model")
    report = report_of(folder)
    assert loss == pytest.approx(report["evaluation"]["pruned"]["loss"], abs=1e-5)
    mask = Mask.load(folder / "mask.safetensors")
    dense = transformers.AutoModelForCausalLM.from_pretrained(place / "llama").state_dict()
    names = {f"{name}.weight" for name in mask}
    assert names == {name for name in dense if name.startswith("model.layers.") and dense[name].dim() == 2}
    for name, value in model.state_dict().items():
        if name not in names:
            assert torch.equal(value, dense[name]), name
            continue
        kept = mask[name.removesuffix(".weight")]
        assert int(kept.sum()) == round(0.5 * kept.numel())
        assert not value[~kept].any()
        assert torch.equal(value[kept], dense[name][kept]) == (which == "finished")


def test_the_run_folder_and_what_is_printed(place, tmp_path, capsys):
    assert run(words(place, tmp_path / "out", "--pruner", "one-shot")) == 0
    told = capsys.readouterr().out
    for word in ("dense", "pruned", "perplexity", "secateur evaluate"):
        assert word in told
    recipe = (tmp_path / "out" / "recipe.toml").read_text()
    assert "context = 16" in recipe
    assert 'name = "causal-lm"' in recipe
    report = report_of(tmp_path / "out")
    assert report["density"]["overall"] == pytest.approx(0.5, abs=1e-3)
    assert report["weights"] == "mask only"
    assert not (tmp_path / "out" / "model").exists()


@pytest.mark.parametrize("which", ["finished", "refitted"])
def test_evaluating_a_run_gives_what_its_report_says(which, request, capsys):
    folder = request.getfixturevalue(which)
    assert (folder / "weights.safetensors").exists() == (which == "refitted")
    assert run(["evaluate", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "as the report says" in told
    assert "density 0.5" in told


def test_evaluating_notices_weights_that_are_not_those_of_the_run(refitted, tmp_path, capsys):
    for name in ("mask.safetensors", "report.json", "recipe.toml"):
        (tmp_path / name).write_bytes((refitted / name).read_bytes())
    assert load_file(refitted / "weights.safetensors").keys() == set(Mask.load(refitted / "mask.safetensors"))
    status = run(["evaluate", str(tmp_path)])
    told = capsys.readouterr()
    assert status != 0
    assert "differ from the report" in told.out or "weights" in told.err


def test_a_refit_is_reported(refitted):
    report = report_of(refitted)
    assert report["weights"].startswith("refit by GradientSteps(")
    assert report["evaluation"]["pruned"]["loss"] < report["evaluation"]["masked"]["loss"]


@pytest.mark.parametrize("which", ["finished", "refitted"])
def test_resuming_a_finished_run_changes_nothing(which, request, capsys):
    folder = request.getfixturevalue(which)
    before = tensors_of(folder)
    evaluation = report_of(folder)["evaluation"]
    assert run(["prune", "--resume", str(folder)]) == 0
    assert "going on after step 2" in capsys.readouterr().out
    after = tensors_of(folder)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert report_of(folder)["evaluation"] == evaluation


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--model", "{place}/llama"], "--model needs --data FILE: a .txt, .jsonl or .parquet file of text"),
        (["--data", "{place}/text.txt"], "--data needs --model FOLDER: that of a Hugging Face causal"),
        (["--model", "{place}", "--data", "{place}/text.txt"], "it holds no tokenizer.json"),
        (["--model", "{place}/none", "--data", "{place}/text.txt"], "there is no such folder"),
        (["--model", "{place}/llama", "--data", "{place}/none.txt"], "there is no file"),
        (["--model", "{place}/llama", "--data", "{place}/text.txt", "--context", "999"], "smaller context"),
        (
            ["--model", "{place}/llama", "--data", "{place}/text.txt", "--context", "40"],
            "lower context to 32",
        ),
        (["--model", "{place}/llama", "--data", "{place}/text.txt", "--refit", "gradiant"], "did you mean"),
    ],
)
def test_every_mistake_gets_one_sentence(place, typed, said, capsys, tmp_path):
    assert run(["prune", *(word.format(place=place) for word in typed), "--out", "x"]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert not (tmp_path / "x").exists()
