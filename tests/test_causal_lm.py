"""Next-token prediction and its text: by hand, position by position; and a sentence for every bad input."""

import gzip
import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from secateur import OneShot, SecateurError, prune
from secateur.capture import capture
from secateur.core.block import Block
from secateur.core.layer import find_layers
from secateur.core.seeds import generator
from secateur.core.signal import Signal
from secateur.core.task import Batch
from secateur.evaluation import evaluate
from secateur.pretrained import load_pretrained, load_tokenizer, positions
from secateur.pruners import Batches
from secateur.scores import Gradient
from secateur.tasks.causal_lm import IGNORED, CausalLM, Sequences
from secateur.tasks.text import Text, pack, read_documents
from secateur.testing import oracles

transformers = pytest.importorskip("transformers", reason="language models need transformers: the extra hf")
tokenizers = pytest.importorskip("tokenizers", reason="language models need tokenizers: the extra hf")

CPU = torch.device("cpu")
WORDS = ["<unk>", "<s>", "</s>", *"the a cat dog sat ran on mat . fast slow".split()]  # noqa: SIM905
BOS, EOS = 1, 2
DOCUMENTS = [
    "the cat sat on the mat .",
    "a dog ran fast .",
    "a slow cat sat .",
    "the dog ran on the slow mat . fast .",
]


def says(*words: str) -> "re.Pattern[str]":
    return re.compile("".join(f"(?=.*{re.escape(word)})" for word in words), re.DOTALL)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_ids(*shape: int, below: int = 14, seed: int = 0) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


def a_tokenizer(bos: bool = False, eos: str | None = "</s>"):
    """A tokenizer of whole words; with `bos` it puts <s> before each text."""
    core = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if bos:
        core.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token=eos
    )


def a_llama(**changes):
    torch.manual_seed(0)
    sizes = {"vocab_size": 14, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "max_position_embeddings": 32, "initializer_range": 0.5}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**sizes, **heads, **changes})).eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A model with its tokenizer, and text."""
    folder = tmp_path_factory.mktemp("lm")
    a_llama().save_pretrained(folder / "model")
    a_tokenizer().save_pretrained(folder / "model")
    a_tokenizer(bos=True).save_pretrained(folder / "bos")
    (folder / "text.txt").write_text("<|endoftext|>".join(DOCUMENTS * 10))
    return folder


def ids_of(document: str) -> list[int]:
    return [WORDS.index(word) for word in document.split()]


# The loss.


def masked_sequences(count: int = 4, length: int = 7) -> Sequences:
    """Sequences with borders of documents here and there."""
    first = torch.zeros(count, length, dtype=torch.bool)
    first[0, 3] = first[1, 0] = first[2, 6] = first[2, 5] = True
    return Sequences.of(random_ids(count, length), first)


def test_targets_are_the_next_tokens_and_borders_do_not_count():
    ids = torch.arange(12).reshape(2, 6)
    first = torch.zeros(2, 6, dtype=torch.bool)
    first[0, 2] = first[1, 0] = True
    found = Sequences.of(ids, first)
    assert found.targets.tolist() == [
        [1, IGNORED, 3, 4, 5, IGNORED],
        [7, 8, 9, 10, 11, IGNORED],  # the first token of a sequence is nobody's target anyway
    ]
    assert torch.equal(found.ids, ids)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16])
def test_losses_are_means_over_the_positions_that_count(kind):
    sequences = masked_sequences()
    task = CausalLM(sequences, sequences)
    logits = (3 * draw(4, 7, 14)).to(kind)
    found = task.losses(logits, sequences.targets)
    for s in range(4):
        terms = []
        for t in range(7):
            y = int(sequences.targets[s, t])
            if y == -100:
                continue
            z = [float(v) for v in logits[s, t]]
            terms.append(math.log(math.fsum(math.exp(v) for v in z)) - z[y])
        assert float(found[s]) == pytest.approx(math.fsum(terms) / len(terms), rel=1e-5)
    assert found.dtype == (torch.float64 if kind == torch.float64 else torch.float32)


def test_what_does_not_count_changes_nothing():
    sequences = masked_sequences()
    task = CausalLM(sequences, sequences)
    logits = draw(4, 7, 14).requires_grad_(True)
    gradient = torch.autograd.grad(task.losses(logits, sequences.targets).sum(), logits)[0]
    counted = sequences.targets != -100
    assert not gradient[~counted].any()
    assert gradient[counted].abs().sum(-1).min() > 0


def test_metrics_are_sums_and_perplexity_follows_from_the_mean():
    sequences = masked_sequences()
    task = CausalLM(sequences, sequences)
    logits = 4 * draw(4, 7, 14)
    found = task.metrics(logits, sequences.targets)
    right = []
    for s in range(4):
        hits = [
            int(logits[s, t].argmax()) == int(y) for t, y in enumerate(sequences.targets[s]) if int(y) != -100
        ]
        right.append(sum(hits) / len(hits))
    assert found["accuracy"] == pytest.approx(sum(right), rel=1e-6)
    assert 0 < found["accuracy"] < 4
    assert found["loss"] == pytest.approx(float(task.losses(logits, sequences.targets).sum()), rel=1e-6)
    assert task.derived({"loss": 1.5}) == {"perplexity": pytest.approx(math.exp(1.5), rel=1e-12)}


def test_evaluation_gives_the_mean_over_sequences_and_its_perplexity():
    model, ids = a_llama(), random_ids(9, 6)
    task = CausalLM(Sequences.of(ids), masked_sequences(4, 7))
    found = evaluate(model, task, batch_size=3)
    with torch.no_grad():
        logits = model(task.evaluation.ids).logits
    losses = task.losses(logits, task.evaluation.targets)
    assert found["samples"] == 4
    assert found["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(float(losses.mean())), rel=1e-4)


# Labels drawn from the model.


def test_drawn_targets_follow_the_predictions():
    logits = torch.tensor([[0.2, -1.0, 1.5, 0.0], [3.0, 0.0, -torch.inf, 0.0]])
    sequences = Sequences.of(random_ids(20_000, 2, below=4))
    task = CausalLM(sequences, sequences)
    drawn = task.sample_targets(logits.expand(20_000, 2, 4), torch.Generator().manual_seed(0))
    for t in range(2):
        p = logits[t].softmax(0)
        frequency = torch.bincount(drawn[:, t], minlength=4) / 20_000
        assert ((frequency - p).abs() <= 5 * (p * (1 - p) / 20_000).sqrt()).all()
    # Positions are drawn independently of one another.
    joint = ((drawn[:, 0] == 2) & (drawn[:, 1] == 0)).float().mean()
    p = float(logits[0].softmax(0)[2] * logits[1].softmax(0)[0])
    assert abs(float(joint) - p) < 5 * (p * (1 - p) / 20_000) ** 0.5


def test_redrawing_keeps_what_does_not_count_and_follows_the_seed_alone():
    sequences = masked_sequences()
    task = CausalLM(sequences, sequences)
    logits, state = draw(4, 7, 14), torch.get_rng_state()
    drawn = task.redraw(logits, sequences.targets, torch.Generator().manual_seed(1))
    assert torch.equal(drawn == -100, sequences.targets == -100)
    assert drawn.dtype == sequences.targets.dtype
    assert drawn.max() < 14
    again = task.redraw(logits, sequences.targets, torch.Generator().manual_seed(1))
    other = task.redraw(logits, sequences.targets, torch.Generator().manual_seed(2))
    assert torch.equal(drawn, again)
    assert not torch.equal(drawn, other)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("draws", [1, 2])
def test_fisher_rows_are_the_gradients_of_whole_sequences_with_drawn_labels(draws):
    model, sequences = a_llama().double(), masked_sequences()
    task = CausalLM(sequences, sequences)
    layers = find_layers(model, task.prunable(model))
    batch = Batch(sequences.ids, sequences.targets, torch.arange(4))
    needs = frozenset({Signal.INPUTS, Signal.GRADIENT, Signal.SAMPLED_ROWS})
    tape = capture(model, task, batch, layers, needs, generator(0, "labels"), draws, verify=True)
    with torch.no_grad():
        outputs = task.forward(model, batch)
    labels = generator(0, "labels")
    found = tape.factors(Block({layer.name: torch.arange(layer.size) for layer in layers}))
    for r in range(draws):
        targets = task.redraw(outputs, batch.targets, labels)
        rows = oracles.sample_gradients(model, task, batch, layers, targets)
        truth = torch.cat([rows[layer.name].reshape(4, -1) for layer in layers], 1).T / draws**0.5
        torch.testing.assert_close(found[:, 4 * r : 4 * r + 4], truth, rtol=1e-4, atol=1e-6)
    means = oracles.sample_gradients(model, task, batch, layers)
    for layer in layers:
        found = tape.layers[layer.name].gradient
        torch.testing.assert_close(found, means[layer.name].mean(0), rtol=1e-4, atol=1e-6)


def test_the_exact_gauss_newton_matrix_is_refused():
    task = CausalLM.from_ids(random_ids(5, 4))
    with pytest.raises(SecateurError, match=says("use the curvature fisher")):
        task.loss_hessian_factors(draw(2, 4, 14))


# What is calibration, evaluation and guard.


def test_ids_are_divided():
    ids = random_ids(23, 4)
    task = CausalLM.from_ids(ids)
    assert (task.size("calibration"), task.size("evaluation")) == (19, 4)
    assert torch.equal(task.evaluation.ids, ids[-4:])
    assert task.disjoint
    few = CausalLM.from_ids(ids[:3])
    assert (few.size("calibration"), few.size("evaluation"), few.disjoint) == (3, 3, False)
    own = CausalLM.from_ids(ids[:10], evaluation=ids[10:])
    assert (own.size("calibration"), own.size("evaluation")) == (10, 13)
    batch = task.batch("evaluation", torch.tensor([2, 0]), CPU)
    assert torch.equal(batch.inputs, ids[-4:][[2, 0]])
    assert torch.equal(batch.targets[:, :-1], batch.inputs[:, 1:])


@pytest.mark.parametrize("seed", range(6))
def test_the_guard_of_ordered_data_is_one_piece(seed):
    task = CausalLM.from_ids(random_ids(60, 4))
    assert task.ordered
    total = task.size("calibration")
    pool, guard = Batches().split(total, seed, task.ordered)
    assert sorted([*pool.tolist(), *guard.tolist()]) == list(range(total))
    assert len(guard) == total // 5
    inside = set(guard.tolist())
    # Once around the circle, the guard is entered once.
    assert sum(at not in inside and (at + 1) % total in inside for at in range(total)) == 1
    starts = {tuple(Batches().split(total, s, True)[1].tolist()) for s in range(6)}
    assert len(starts) > 3


def test_prunable_are_the_decoder_layers():
    model, task = a_llama(), CausalLM.from_ids(random_ids(5, 4))
    assert task.prunable(model) == ("model.layers.*",)
    names = {layer.name for layer in find_layers(model, task.prunable(model))}
    assert len(names) == 2 * 7
    assert "lm_head" not in names
    assert task.prunable(nn.Sequential(nn.Linear(3, 3))) == ("*",)


def test_as_many_sequences_a_pass_as_hold_4096_tokens():
    assert CausalLM.from_ids(random_ids(5, 512)).per_pass == 8
    assert CausalLM.from_ids(random_ids(5, 5000)).per_pass == 1


# What is refused.


def test_models_that_do_not_fit_are_refused():
    model, task = a_llama(), CausalLM.from_ids(random_ids(5, 8))
    task.check(model)
    with pytest.raises(SecateurError, match=says("numbers from", "to 14", "14 embeddings", "tokenizer")):
        CausalLM.from_ids(random_ids(5, 8) + (random_ids(5, 8) == 13)).check(model)
    with pytest.raises(SecateurError, match=says("from -1 to", "14 embeddings")):
        CausalLM.from_ids(random_ids(5, 8) - 1).check(model)
    with pytest.raises(SecateurError, match=says("40 tokens", "32 positions", "lower context to 32")):
        CausalLM.from_ids(random_ids(5, 40)).check(model)
    config = transformers.T5Config(
        vocab_size=14, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    with pytest.raises(SecateurError, match=says("T5ForConditionalGeneration is an", "Llama")):
        prune(transformers.T5ForConditionalGeneration(config), task, density=0.5)


def test_long_evaluation_sequences_are_refused_as_well():
    task = CausalLM.from_ids(random_ids(5, 8), evaluation=random_ids(2, 40))
    with pytest.raises(SecateurError, match=says("40 tokens", "32 positions")):
        task.check(a_llama())


class Returns(nn.Module):
    def __init__(self, outputs: object) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, ids: Tensor) -> object:
        return self.outputs


@pytest.mark.parametrize("outputs", [3, draw(5, 14), draw(5, 7, 14), {"logits": draw(5, 8, 14)}])
def test_models_without_logits_for_each_position(outputs):
    task = CausalLM.from_ids(random_ids(25, 8))
    batch = task.batch("evaluation", torch.arange(5), CPU)
    with pytest.raises(SecateurError, match=says("Returns gives no logits for each position")):
        task.forward(Returns(outputs), batch)


def test_a_model_that_cannot_be_run_on_tokens():
    task = CausalLM.from_ids(random_ids(25, 8))
    batch = task.batch("evaluation", torch.arange(5), CPU)
    with pytest.raises(SecateurError, match=says("cannot be run on the text", "causal language model")):
        task.forward(nn.Linear(3, 3), batch)
    with pytest.raises(torch.OutOfMemoryError):
        task._misfit(torch.OutOfMemoryError("full"))


def test_a_loss_that_is_not_a_number_names_the_sequence():
    """Token 13 has an embedding that is NaN, and one sequence has that token."""
    model = a_llama(tie_word_embeddings=False)
    with torch.no_grad():
        model.model.embed_tokens.weight[13] = torch.nan
    ids = random_ids(20, 8, below=13)
    ids[7, 3] = 13
    task = CausalLM.from_ids(ids)
    with pytest.raises(SecateurError, match=says("NaN or infinite for 1 of", "number 7, counted from 0")):
        prune(model, task, OneShot(Gradient()), density=0.5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CausalLM.from_ids(random_ids(0, 4)), says("no calibration sequences", "more text")),
        (lambda: CausalLM.from_ids(random_ids(5, 1)), says("sequence 0", "at least two tokens")),
    ],
)
def test_nothing_to_predict(build, message):
    with pytest.raises(SecateurError, match=message):
        build()


# Text: files.


def write_rows(path: Path, opener=open) -> str:
    with opener(path, "wt", encoding="utf-8") as file:
        for at, document in enumerate(DOCUMENTS):
            file.write(json.dumps({"number": at, "text": document}) + "\n\n")
    return str(path)


def test_documents_are_read_from_every_kind_of_file(tmp_path):
    datasets = pytest.importorskip("datasets", reason="parquet files need datasets: the extra hf")
    table = datasets.Dataset.from_dict({"number": list(range(4)), "text": DOCUMENTS})
    table.to_parquet(str(tmp_path / "a.parquet"))
    table.save_to_disk(str(tmp_path / "folder"))
    datasets.DatasetDict({"train": table, "test": table.select([1])}).save_to_disk(str(tmp_path / "both"))
    plain = "<|endoftext|>\n".join(["", *DOCUMENTS, "  "])
    (tmp_path / "a.txt").write_text(plain)
    with gzip.open(tmp_path / "b.txt.gz", "wt") as file:
        file.write(plain)
    (tmp_path / "wiki.raw").write_text(plain)
    paths = [
        str(tmp_path / name) for name in ("a.txt", "b.txt.gz", "wiki.raw", "a.parquet", "folder", "both")
    ]
    paths += [write_rows(tmp_path / "a.jsonl"), write_rows(tmp_path / "b.jsonl.gz", gzip.open)]
    for path in paths:
        assert [document.strip() for document in read_documents(path)] == DOCUMENTS, path
    assert list(read_documents(str(tmp_path / "both"), split="test")) == DOCUMENTS[1:2]
    (tmp_path / "words.jsonl").write_text('"a cat"\n"a dog"\n')
    assert list(read_documents(str(tmp_path / "words.jsonl"))) == ["a cat", "a dog"]
    (tmp_path / "a.csv").write_text("number,text\n1,a cat\n2,a dog\n")
    assert list(read_documents(str(tmp_path / "a.csv"))) == ["a cat", "a dog"]
    (tmp_path / "own.jsonl").write_text('{"text": "no", "mine": "yes"}\n')
    assert list(read_documents(str(tmp_path / "own.jsonl"), "mine")) == ["yes"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", says("a.txt' holds no text", "give a file with some")),
        ("a.txt", b" <|endoftext|> \n", says("a.txt' holds no text")),
        ("a.txt", b"caf\xe9 \xff", says("cannot read", "a.txt' as text", "UTF-8")),
        ("a.txt.gz", b"not gzipped", says("cannot read", "a.txt.gz' as text")),
        ("a.jsonl", b"", says("a.jsonl' holds no text")),
        (
            "a.jsonl",
            b'{"text": "a"}\n\n{"text": }\n',
            says("line 3 of", "a.jsonl' is not JSON", "mend or remove"),
        ),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', says("line 2 of", "no object with a field of text")),
        ("a.jsonl", b'{"text": 3}\n', says("the field 'text' in line 1", "is no text: name another")),
        ("a.jsonl", b'{"words": "a"}\n', says("line 1 of", "no field 'text' but words", "column")),
        ("a.parquet", b"not parquet", says("cannot read the data set in", "a.parquet")),
        ("gone.txt", None, says("there is no file", "gone.txt'", "give a .txt, .jsonl or .parquet file")),
        ("gone.jsonl.gz", None, says("there is no file", "gone.jsonl.gz'")),
        ("gone.parquet", None, says("there is no file", "gone.parquet'")),
    ],
)
def test_files_that_cannot_be_used_get_one_sentence(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SecateurError, match=message) as raised:
        list(read_documents(str(tmp_path / name)))
    assert "\n" not in str(raised.value)


def test_an_unknown_column_and_split_get_one_sentence(tmp_path):
    datasets = pytest.importorskip("datasets", reason="parquet files need datasets: the extra hf")
    table = datasets.Dataset.from_dict({"number": [1, 2], "text": ["a", "b"]})
    table.to_parquet(str(tmp_path / "a.parquet"))
    rows = write_rows(tmp_path / "a.jsonl")
    for path in (rows, str(tmp_path / "a.parquet")):
        with pytest.raises(SecateurError, match=says("no field 'txt' but number, text", "column")):
            list(read_documents(path, "txt"))
    with pytest.raises(SecateurError, match=says("'number' of", "holds no text")):
        list(read_documents(str(tmp_path / "a.parquet"), "number"))
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(SecateurError, match=says("has no split 'tst'", "did you mean 'test'?")):
        list(read_documents(str(tmp_path / "both"), split="tst"))


# Text: packing.


@pytest.mark.parametrize("bos", [False, True], ids=["eos", "bos"])
def test_documents_are_packed_one_after_the_other(bos):
    documents = DOCUMENTS[:3]
    found = pack(documents, a_tokenizer(bos), 6, "the text")
    stream, first = [], []
    for document in documents:
        ids = [BOS, *ids_of(document)] if bos else [*ids_of(document), EOS]
        first += [True] + [False] * (len(ids) - 1)
        stream += ids
    count = len(stream) // 6
    assert len(stream) > 6 * count  # something is left over, and dropped
    assert found.ids.flatten().tolist() == stream[: 6 * count]
    expected = [-100 if (at % 6 == 5 or first[at + 1]) else stream[at + 1] for at in range(6 * count)]
    assert found.targets.flatten().tolist() == expected
    assert expected.count(-100) > count  # a border inside a sequence


def test_without_an_end_token_documents_are_just_joined():
    found = pack(DOCUMENTS[:2], a_tokenizer(eos=None), 4, "the text")
    stream = ids_of(DOCUMENTS[0]) + ids_of(DOCUMENTS[1])
    assert found.ids.flatten().tolist() == stream[: len(stream) // 4 * 4]
    assert int(found.targets[1, 2]) == -100


def test_many_documents_are_all_tokenised():
    many = ["a cat ."] * 600  # more than are tokenised together
    found = pack(many, a_tokenizer(), 4, "the text")
    assert found.ids.tolist() == [[*ids_of("a cat ."), EOS]] * 600


def test_a_sequence_of_first_tokens_alone_is_not_kept_for_nothing():
    """Documents of one token each, and a context of two: nothing can be predicted."""
    sequences = pack(["cat"] * 40, a_tokenizer(eos=None), 2, "the text")
    assert (sequences.targets == -100).all()
    with pytest.raises(SecateurError, match=says("nothing to predict", "two tokens of one document")):
        CausalLM(sequences, sequences)


# Text: the task.


def test_the_last_sequences_evaluate(place):
    text = Text(str(place / "text.txt"), str(place / "model"), context=8)
    task = text.task()
    everything = pack(read_documents(text.path), a_tokenizer(), 8, "")
    count = round(0.2 * len(everything))
    assert torch.equal(task.calibration.ids, everything.ids[:-count])
    assert torch.equal(task.evaluation.ids, everything.ids[-count:])
    assert torch.equal(task.evaluation.targets, everything.targets[-count:])
    assert task.disjoint
    assert task.tokenizer.eos_token_id == EOS
    half = Text(str(place / "text.txt"), str(place / "model"), context=8, evaluation_fraction=0.5).task()
    assert half.size("evaluation") == round(0.5 * len(everything))


def test_limits_and_seed(place):
    path, model = str(place / "text.txt"), str(place / "model")
    whole = Text(path, model, context=8).task()
    some = Text(path, model, context=8, limit=10, evaluation_limit=3, seed=1).task()
    assert (some.size("calibration"), some.size("evaluation")) == (10, 3)
    assert torch.equal(some.evaluation.ids, whole.evaluation.ids[:3])

    def picked(task):
        rows = whole.calibration.ids.tolist()
        return [rows.index(row) for row in task.calibration.ids.tolist()]

    assert len(picked(some)) == 10
    again = Text(path, model, context=8, limit=10, seed=1).task()
    other = Text(path, model, context=8, limit=10, seed=2).task()
    assert torch.equal(some.calibration.ids, again.calibration.ids)
    assert not torch.equal(some.calibration.ids, other.calibration.ids)
    assert torch.equal(again.evaluation.ids, whole.evaluation.ids)


def test_text_of_its_own_to_evaluate_on(place, tmp_path):
    (tmp_path / "other.txt").write_text("a slow dog sat on a fast cat . the mat ran")
    path = str(place / "text.txt")
    task = Text(path, str(place / "model"), context=6, evaluation_path=str(tmp_path / "other.txt")).task()
    assert task.evaluation.ids.tolist() == [
        ids_of("a slow dog sat on a"),
        ids_of("fast cat . the mat ran"),
    ]
    assert task.disjoint
    assert task.size("calibration") == len(pack(read_documents(path), a_tokenizer(), 6, ""))
    assert not Text(path, str(place / "model"), context=6, evaluation_path=path).task().disjoint


def test_the_context_is_that_of_the_model(place):
    task = Text(str(place / "text.txt"), str(place / "model")).task()
    assert task.calibration.ids.shape[1] == positions(str(place / "model")) == 32
    assert positions(str(place / "bos")) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"context": 1}, says("context is 1", "at least 2 tokens")),
        ({"evaluation_fraction": 1.0}, says("evaluation_fraction is 1.0", "such as 0.2")),
        ({"evaluation_fraction": 0.0}, says("evaluation_fraction is 0.0")),
        ({"limit": 0}, says("limit is 0", "at least 1")),
        ({"evaluation_limit": -1}, says("evaluation_limit is -1")),
        ({"limit": 1000, "context": 8}, says("limit asks for 1000 sequences", "gives only", "lower it")),
        ({"evaluation_limit": 1000, "context": 8}, says("evaluation_limit asks for 1000", "gives only")),
        ({"context": 1000}, says("tokens, fewer than one sequence of 1000", "smaller context")),
        ({"context": 200}, says("1 sequences of 200", "too few to evaluate", "evaluation_path")),
        (
            {"tokenizer": "/nowhere/at/all"},
            says("cannot load the tokenizer of '/nowhere/at/all'", "tokenizer.json"),
        ),
    ],
)
def test_bad_settings_get_one_sentence(place, arguments, message):
    with pytest.raises(SecateurError, match=message) as raised:
        Text(**{"path": str(place / "text.txt"), "tokenizer": str(place / "model"), **arguments}).task()
    assert "\n" not in str(raised.value)


# Loading models.


def test_models_and_tokenizers_load(place):
    model = load_pretrained(str(place / "model"))
    assert not model.training
    assert load_pretrained(str(place / "model"), "bfloat16").dtype == torch.bfloat16
    assert load_tokenizer(str(place / "model"))("the cat")["input_ids"] == ids_of("the cat")


def test_folders_that_are_no_causal_language_model_get_one_sentence(place, tmp_path):
    def refused(path: Path, *words: str) -> None:
        with pytest.raises(SecateurError, match=says(*words)) as raised:
            load_pretrained(str(path))
        assert "\n" not in str(raised.value)

    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "cannot load the model", "(it holds no config.json)", "and model.safetensors")
    refused(tmp_path / "gone", "cannot load the model", "(there is no such folder)", "config.json")
    with pytest.raises(
        SecateurError, match=says("cannot load the tokenizer", "(it holds no tokenizer.json)")
    ):
        load_tokenizer(str(tmp_path / "empty"))
    with pytest.raises(SecateurError, match=says("cannot load the tokenizer", "(there is no such folder)")):
        load_tokenizer(str(tmp_path / "gone"))
    (tmp_path / "file").write_text("the cat")
    refused(tmp_path / "file", "cannot load the model", "(that is a file)")

    t5 = transformers.T5Config(vocab_size=14, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    t5.architectures = ["T5ForConditionalGeneration"]
    t5.save_pretrained(tmp_path / "t5")
    refused(tmp_path / "t5", "is an encoder-decoder (t5)", "decoder-only")

    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = transformers.ViTConfig(**small, image_size=4, patch_size=2)
    transformers.ViTModel(vision).save_pretrained(tmp_path / "vit")
    refused(tmp_path / "vit", "vit has no causal head", "AutoModelForCausalLM")

    bert = transformers.BertConfig(vocab_size=14, max_position_embeddings=16, **small)
    transformers.BertForMaskedLM(bert).save_pretrained(tmp_path / "bert")
    refused(tmp_path / "bert", "is an encoder (bert)", "give a causal language model")

    llama = transformers.LlamaConfig(vocab_size=14, **small, tie_word_embeddings=False)
    transformers.LlamaModel(llama).save_pretrained(tmp_path / "headless")
    refused(tmp_path / "headless", "lacks 1 weights", "(lm_head.weight)", "no causal head")
    changed = json.loads((place / "model" / "config.json").read_text()) | {"intermediate_size": 10}
    a_llama().save_pretrained(tmp_path / "shapes")
    (tmp_path / "shapes" / "config.json").write_text(json.dumps(changed))
    refused(tmp_path / "shapes", "6 weights of another shape", "mlp.down_proj.weight", "the same model")

    a_llama().save_pretrained(tmp_path / "lacking")
    from safetensors.torch import load_file, save_file

    file = tmp_path / "lacking" / "model.safetensors"
    state = load_file(file)
    del state["model.layers.1.mlp.down_proj.weight"]
    save_file(state, file, {"format": "pt"})
    refused(tmp_path / "lacking", "lacks 1 weights", "model.layers.1.mlp.down_proj.weight", "damaged")
    file.unlink()
    refused(tmp_path / "lacking", "no file named model.safetensors", "AutoModelForCausalLM")
