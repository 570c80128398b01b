"""`secateur evaluate` of language models: folders, recipes and runs."""

import json
import sys

import pytest
import torch
from safetensors.torch import save_file

from secateur.cli.app import run
from secateur.core.errors import SecateurError
from secateur.core.layer import find_layers
from secateur.core.mask import Mask
from secateur.evaluation import perplexity
from secateur.export.outcome import apply_outcome

transformers = pytest.importorskip("transformers", reason="language models need transformers: the extra hf")
tokenizers = pytest.importorskip("tokenizers", reason="language models need tokenizers: the extra hf")

WORDS = ["<unk>", "<s>", "</s>", *"the a cat dog sat ran on mat . fast slow".split()]  # noqa: SIM905
STORY = "the cat sat on the mat . a dog ran fast . "


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny Llama with its tokenizer, text, questions, a recipe, and a run with changed weights."""
    folder = tmp_path_factory.mktemp("language")
    core = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder / "llama")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder / "llama")
    (folder / "text.txt").write_text("<|endoftext|>".join([STORY * 6] * 8))
    rows = [{"context": "the cat", "choices": ["sat", "ran fast"], "answer": at % 2} for at in range(6)]
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "r.toml").write_text(f"""
about = "tiny"
[data]
name = "text"
path = "{folder}/text.txt"
tokenizer = "{folder}/llama"
context = 16
[model]
name = "causal-lm"
path = "{folder}/llama"
[run]
density = 0.5
""")
    result = folder / "run"
    result.mkdir()
    (result / "recipe.toml").write_text((folder / "r.toml").read_text())
    (result / "events.jsonl").write_text("")
    layers = [layer for layer in find_layers(model) if "mlp" in layer.name]
    mask = {layer.name: layer.weight.abs() > layer.weight.abs().median() for layer in layers}
    Mask(mask).save(result / "mask.safetensors")
    changed = {
        layer.name: (1.5 * layer.weight.detach() * mask[layer.name]).contiguous() for layer in layers[:2]
    }
    save_file(changed, result / "weights.safetensors")
    return folder


@pytest.fixture(autouse=True)
def here(monkeypatch, place):
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "200")
    (place / "run" / "evaluation.json").unlink(missing_ok=True)


def said(capsys):
    captured = capsys.readouterr()
    return captured.out + captured.err


def tokens_of_text(place):
    """The text as tokens, by hand."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(place / "llama")
    story = tokenizer(STORY * 6)["input_ids"]
    counted = torch.tensor(([False] + [True] * (len(story) - 1)) * 8)
    return torch.tensor(story * 8), counted


def test_a_folder_of_a_model(capsys, place):
    words = ["evaluate", "llama", "--data", "text.txt", "--zeroshot", "q.jsonl", "--context", "16"]
    assert run(words) == 0
    told = said(capsys)
    ids, counted = tokens_of_text(place)
    model = transformers.AutoModelForCausalLM.from_pretrained(place / "llama")
    wanted = perplexity(model, ids, context=16, counted=counted)
    assert f"text.txt: {wanted.protocol}" in told
    assert f"{wanted.perplexity:.4f}" in told
    assert "context 16, disjoint windows" in told
    assert "q.jsonl: zero-shot choices, log-likelihood of each choice, 6 questions" in told
    assert "50.00 % ± 20.41" in told
    assert "chance" in told


def test_stride_and_limit(capsys):
    words = [
        "evaluate",
        "llama",
        "--data",
        "text.txt",
        "--stride",
        "8",
        "--zeroshot",
        "q.jsonl",
        "--limit",
        "2",
    ]
    assert run(words) == 0
    told = said(capsys)
    assert "context 32, stride 8" in told
    assert "2 questions" in told


def test_a_run_stands_beside_its_dense_model(capsys, place):
    assert run(["evaluate", "run", "--data", "text.txt", "--zeroshot", "q.jsonl"]) == 0
    told = said(capsys)
    assert "density 0.5" in told
    assert "dense" in told
    assert "pruned" in told
    kept = json.loads((place / "run" / "evaluation.json").read_text())
    protocol = next(iter(kept["text.txt"]))
    dense, pruned = (kept["text.txt"][protocol][name] for name in ("dense", "pruned"))
    ids, counted = tokens_of_text(place)
    model = transformers.AutoModelForCausalLM.from_pretrained(place / "llama")
    assert dense["loss"] == pytest.approx(perplexity(model, ids, context=32, counted=counted).loss)
    mask = Mask.load(place / "run" / "mask.safetensors")
    with torch.no_grad():
        for at, (name, keep) in enumerate(mask.items()):
            module = model.get_submodule(name)
            module.weight.mul_(keep * (1.5 if at < 2 else 1.0))
    assert pruned["loss"] == pytest.approx(perplexity(model, ids, context=32, counted=counted).loss)
    assert dense["loss"] != pytest.approx(pruned["loss"], rel=1e-3)
    assert dense["protocol"] == pruned["protocol"] == protocol


def test_what_was_measured_before_stays(place):
    assert run(["evaluate", "run", "--data", "text.txt"]) == 0
    assert run(["evaluate", "run", "--data", "text.txt", "--context", "16"]) == 0
    assert run(["evaluate", "run", "--zeroshot", "q.jsonl"]) == 0
    kept = json.loads((place / "run" / "evaluation.json").read_text())
    assert set(kept) == {"text.txt", "q.jsonl"}
    assert len(kept["text.txt"]) == 2


def test_a_recipe_is_evaluated_dense(capsys, place):
    assert run(["evaluate", "r.toml", "--data", "text.txt", "--batch-size", "3"]) == 0
    told = said(capsys)
    assert "dense" in told
    assert "pruned" not in told
    assert not (place / "run" / "evaluation.json").exists()


def test_without_other_data_it_is_the_runs_own(capsys):
    assert run(["evaluate", "run"]) == 0
    assert "evaluation samples" in said(capsys)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["llama"], "llama is a model without data: say what to measure, with --data FILE"),
        (["llama", "--zeroshot", "none.jsonl"], "there is no file 'none.jsonl'"),
        (["llama", "--data", "none.txt"], "there is no file 'none.txt'"),
        (
            ["llama", "--zeroshot", "q.jsonl", "--context", "16"],
            "--context and --stride are about perplexity",
        ),
        (["llama", "--data", "text.txt", "--limit", "3"], "--limit is about questions"),
        (["llama", "--data", "text.txt", "--include", "x"], "--include is about tasks of lm-eval"),
        (["llama", "--data", "text.txt", "--context", "64"], "at most 32, which is the model's window"),
        (["llama", "--zeroshot", "text.txt"], "line 1 of 'text.txt' is not JSON"),
        (["digits", "--data", "text.txt"], "'text.txt' is of no kind that is known: give as data a folder"),
        (["digits", "--zeroshot", "q.jsonl"], "digits is of no language model"),
        (["digits", "--data", "a.npz", "--zeroshot", "q.jsonl"], "give --data and nothing else"),
        (["digits", "--data", "a.npz", "--context", "64"], "give --data and nothing else"),
        ([".", "--data", "text.txt"], "holds no mask.safetensors"),
    ],
)
def test_mistakes(capsys, words, told):
    assert run(["evaluate", *words]) == 2
    assert told in said(capsys)


def test_lm_eval_is_missed_before_anything_is_measured(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert run(["evaluate", "llama", "--data", "text.txt", "--lm-eval", "piqa"]) == 2
    told = said(capsys)
    assert "pip install 'secateur[lm-eval]'" in told
    assert "perplexity" not in told


def test_a_damaged_record_is_said_before_anything_is_measured(capsys, place):
    (place / "run" / "evaluation.json").write_text("[")
    assert run(["evaluate", "run", "--data", "text.txt"]) == 2
    assert "evaluation.json is damaged" in said(capsys)
    (place / "run" / "evaluation.json").write_text("[]")
    assert run(["evaluate", "run", "--data", "text.txt"]) == 2
    assert "holds something else" in said(capsys)


def test_weights_of_another_run_are_refused(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    keep = torch.tensor([[True, False, True, False]] * 3)
    Mask({"0": keep}).save(tmp_path / "mask.safetensors")
    for weights, told in (
        ({"0": torch.ones(3, 4)}, "are not of one run"),
        ({"1": torch.ones(2, 3)}, "belongs to another model"),
        ({"0": torch.ones(4, 4)}, "belongs to another model"),
    ):
        save_file(weights, tmp_path / "weights.safetensors")
        with pytest.raises(SecateurError, match=told):
            apply_outcome(model, tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"no")
    with pytest.raises(SecateurError, match="is damaged"):
        apply_outcome(model, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    save_file({"0": 2.0 * keep}, tmp_path / "weights.safetensors")
    assert apply_outcome(model, tmp_path).check() == 0.5
    assert torch.equal(model[0].weight.detach(), 2.0 * keep)
