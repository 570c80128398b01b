"""Zero-shot questions: against one text at a time, against lm-eval, and on a trained model."""

import gzip
import importlib.util
import json
import math

import pytest
import torch
from torch import nn

from secateur.core.errors import SecateurError
from secateur.evaluation import harness, log_likelihoods, read_questions, zero_shot
from secateur.evaluation.choices import credit
from secateur.evaluation.likelihood import encode

transformers = pytest.importorskip("transformers", reason="language models need transformers: the extra hf")
tokenizers = pytest.importorskip("tokenizers", reason="language models need tokenizers: the extra hf")

WORDS = (
    "the", "a", "cat", "dog", "sat", "ran", "on", "mat", "Question", "Answer", ":", "?", ".", "who", "is",
    "it", "fast", "slow", "s", "1", "2",
)  # fmt: skip


def a_tokenizer(*, bos=True, eos=True):
    """A tokenizer of few words, which begins texts with <s> where it has one."""
    names = ["<unk>", "<s>", "</s>", *WORDS]
    core = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({name: at for at, name in enumerate(names)}, unk_token="<unk>")
    )
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if bos:
        core.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        **({"bos_token": "<s>"} if bos else {}),
        **({"eos_token": "</s>"} if eos else {}),
    )


def a_model(*, window=64, vocabulary=32):
    """A tiny Llama with weights far from uniform answers."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=window,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8 if weight.dim() == 2 else 1)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return a_model()


@pytest.fixture(scope="module")
def tokenizer():
    return a_tokenizer()


def slow(model, ids, scored):
    """The sum of the last log-probabilities of one text, in float64 and alone."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
    steps = torch.log_softmax(logits.double(), dim=-1)
    return sum(float(steps[at - 1, ids[at]]) for at in range(len(ids) - scored, len(ids)))


def write(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


PIQA = [
    {"goal": "who sat ?", "sol1": "the cat sat on the mat", "sol2": "a dog", "label": 1},
    {"goal": "is it fast", "sol1": "it is", "sol2": "it is slow slow slow", "label": 0},
    {"goal": "who ran", "sol1": "the dog .", "sol2": "a a a a", "label": 0},
]


def test_likelihoods_are_those_of_one_text_at_a_time(model, tokenizer):
    pairs = [("the cat", " sat on the mat"), ("", "a dog ran"), ("who is it ?", " it"), ("the", " s " * 20)]
    pairs += [(f"the {word} is", f" {other} .") for word in WORDS[:4] for other in ("cat", "fast slow")]
    wanted = []
    for context, rest in pairs:
        ids = tokenizer(context + rest)["input_ids"]
        wanted.append(slow(model, ids, len(ids) - len(tokenizer(context)["input_ids"])))
    for batch in (1, 3, 100):
        found = log_likelihoods(model, tokenizer, pairs, batch_size=batch)
        assert found.cut == 0
        assert found.totals.tolist() == pytest.approx(wanted, abs=1e-4)


def test_a_long_context_is_cut_on_the_left(tokenizer):
    model = a_model(window=8)
    long = "the cat sat on the mat . who is it ? a dog"
    found = log_likelihoods(model, tokenizer, [(long, " ran fast ."), ("a", " dog")])
    ids = tokenizer(long + " ran fast .")["input_ids"][-9:]
    assert found.cut == 1
    assert found.totals[0] == pytest.approx(slow(model, ids, 3), abs=1e-4)


def test_a_choice_longer_than_the_window_counts_as_far_as_it_fits(tokenizer):
    model = a_model(window=4)
    found = log_likelihoods(model, tokenizer, [("the", " cat sat on the mat . a dog")])
    assert found.totals[0] == pytest.approx(
        slow(model, tokenizer("on the mat . a dog")["input_ids"][-5:], 4), abs=1e-4
    )


def test_the_mode_of_the_model_is_put_back_and_progress_is_told(tokenizer):
    model, seen = a_model(), []
    model.train()
    log_likelihoods(model, tokenizer, [("a", " cat")] * 5, batch_size=2, progress=lambda *at: seen.append(at))
    assert model.training
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_where_texts_begin():
    with_bos, without, neither = a_tokenizer(), a_tokenizer(bos=False), a_tokenizer(bos=False, eos=False)
    the, cat, sat = (with_bos.convert_tokens_to_ids(word) for word in ("the", "cat", "sat"))
    pair, alone = ("the cat", " sat"), ("", "the cat")
    found = [(each.ids, each.scored) for each in encode(with_bos, [pair, alone])]
    assert found == [((1, the, cat, sat), 1), ((1, the, cat), 2)]
    # The end-of-text token stands in; a context needs none.
    found = [(each.ids, each.scored) for each in encode(without, [pair, alone])]
    assert found == [((the, cat, sat), 1), ((2, the, cat), 2)]
    assert encode(neither, [pair])[0].ids == (the, cat, sat)
    with pytest.raises(
        SecateurError, match=r"neither a bos_token nor an eos_token.*set tokenizer\.bos_token"
    ):
        encode(neither, [alone])
    # White space at the end of the context belongs to the choice.
    assert encode(with_bos, [("the cat ", "sat")]) == encode(with_bos, [pair])


def test_a_token_that_ends_texts_is_not_scored():
    ending = a_tokenizer()
    ending._tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert ending("the cat")["input_ids"][-1] == 2
    assert encode(ending, [("the cat", " sat")]) == encode(a_tokenizer(), [("the cat", " sat")])


def test_a_choice_that_melts_into_its_context():
    core = tokenizers.Tokenizer(tokenizers.models.BPE({"<s>": 0, "a": 1, "b": 2, "ab": 3}, [("a", "b")]))
    merging = transformers.PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>")
    assert [(t.ids, t.scored) for t in encode(merging, [("aa", "b")])] == [((1, 3), 1)]
    with pytest.raises(SecateurError, match="'a' is one token with its choice"):
        encode(merging, [("a", "b")])


def by_hand(model, tokenizer, question):
    """The log-probability of each choice of a question."""
    totals = []
    for context, rest in zip(question.contexts, question.choices, strict=True):
        ids = tokenizer(context + rest)["input_ids"]
        totals.append(slow(model, ids, len(ids) - len(tokenizer(context)["input_ids"])))
    return totals


def test_accuracy_against_one_question_at_a_time(tmp_path, model, tokenizer):
    torch.manual_seed(1)
    draw = lambda n: " ".join(WORDS[at] for at in torch.randint(len(WORDS), (n,)))  # noqa: E731
    rows = [
        {
            "context": draw(4),
            "choices": [draw(1 + at % 3) for at in range(2 + number % 3)],
            "answer": number % 2,
        }
        for number in range(40)
    ]
    path = write(tmp_path / "q.jsonl.gz", rows)
    found = zero_shot(model, tokenizer, path, batch_size=7)
    acc = norm = 0
    for row, question in zip(rows, read_questions(path)[1], strict=True):
        totals = by_hand(model, tokenizer, question)
        scaled = [total / len(choice) for total, choice in zip(totals, row["choices"], strict=True)]
        acc += credit(torch.tensor(totals), row["answer"])
        norm += credit(torch.tensor(scaled), row["answer"])
    assert found.kind == "choices"
    assert (found.acc, found.acc_norm) == (acc / 40, norm / 40)
    assert found.acc != found.acc_norm
    assert found.acc_stderr == math.sqrt(found.acc * (1 - found.acc) / 40)
    assert found.chance == pytest.approx(sum(1 / len(row["choices"]) for row in rows) / 40)
    assert zero_shot(model, tokenizer, path, batch_size=1) == found
    assert json.loads(json.dumps(found.as_record()))["protocol"].startswith("zero-shot choices")


def test_shared_first_places_count_as_chance():
    assert credit(torch.tensor([-1.0, -2.0]), 0) == 1
    assert credit(torch.tensor([-1.0, -2.0]), 1) == 0
    assert credit(torch.tensor([-1.0, -1.0, -2.0]), 0) == 0.5


def test_a_model_that_knows_nothing_gets_chance(tmp_path, tokenizer):
    model = a_model()
    nn.init.zeros_(model.lm_head.weight)
    rows = [{"sentence_good": f"the cat {word}", "sentence_bad": f"a dog {word}"} for word in WORDS]
    found = zero_shot(model, tokenizer, write(tmp_path / "q.jsonl", rows))
    assert (found.acc, found.chance, found.acc_norm) == (0.5, 0.5, None)


# The kinds of files.


def test_piqa(tmp_path):
    kind, questions = read_questions(write(tmp_path / "q.jsonl", PIQA))
    assert (kind.name, len(questions)) == ("piqa", 3)
    assert questions[0].contexts == ("Question: who sat ?\nAnswer:",) * 2
    assert questions[0].choices == (" the cat sat on the mat", " a dog")
    assert (questions[0].lengths, questions[0].gold) == ((22, 5), 1)


def test_arc_in_both_forms(tmp_path):
    ready = {"query": "Question: who?\nAnswer:", "choices": ["cat", "dog", "it"], "gold": 2}
    raw = {
        "question": "who?",
        "choices": {"text": ["cat", "dog", "it"], "label": ["A", "B", "C"]},
        "answerKey": "C",
    }
    one, other = (read_questions(write(tmp_path / "q.jsonl", [row])) for row in (ready, raw))
    assert one[1] == other[1]
    assert one[0].name == other[0].name == "arc"
    assert one[1][0].gold == 2


def test_winogrande_scores_what_follows_the_blank(tmp_path):
    row = {"sentence": "the cat ran as _ is fast .", "option1": "it", "option2": "the dog", "answer": "2"}
    question = read_questions(write(tmp_path / "q.jsonl", [row]))[1][0]
    assert question.contexts == ("the cat ran as it", "the cat ran as the dog")
    assert question.choices == (" is fast .",) * 2
    assert question.gold == 1


def test_blimp_by_phenomenon(tmp_path, model, tokenizer):
    rows = [
        {"sentence_good": f"the {word} ran", "sentence_bad": f"ran {word} the", "UID": uid}
        for uid in ("order", "other")
        for word in ("cat", "dog", "mat")
    ]
    found = zero_shot(model, tokenizer, write(tmp_path / "q.jsonl", rows))
    assert set(found.groups) == {"order", "other"}
    assert found.groups["order"] == found.groups["other"] == found.acc
    good, bad = (
        slow(model, tokenizer(rows[0][f"sentence_{side}"])["input_ids"], 3) for side in ("good", "bad")
    )
    alone = zero_shot(model, tokenizer, write(tmp_path / "one.jsonl", rows[:1]))
    assert alone.acc == float(good > bad)


def test_a_limit_takes_questions_from_all_over(tmp_path):
    rows = [{"context": str(at), "choices": ["a", "b"], "answer": 0} for at in range(10)]
    path = write(tmp_path / "q.jsonl", rows)
    taken = [question.contexts[0] for question in read_questions(path, limit=4)[1]]
    assert taken == ["0", "2", "5", "7"]
    assert len(read_questions(path, limit=100)[1]) == 10
    with pytest.raises(SecateurError, match="the limit is 0"):
        read_questions(path, limit=0)


GOOD = {"context": "the", "choices": ["cat", "dog"], "answer": 1}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", r"holds no questions: give a \.jsonl file"),
        ("\n\n", "holds no questions"),
        ('{"a": 1, "b": 2}', r"has the columns a, b, .* piqa \(goal, sol1, sol2, label\); arc"),
        (json.dumps(GOOD) + "\n{oops", r"line 2 of '.*q\.jsonl' is not JSON"),
        (json.dumps(GOOD) + "\n\n[1]", r"line 3 of '.*' is no JSON object"),
        (json.dumps(GOOD) + '\n{"context": "the"}', "line 2 of '.*' has no choices and no answer"),
        (
            json.dumps(GOOD | {"answer": 2}),
            "line 1 of '.*' cannot be used: the answer is 2, but there are choices 0 to 1 only",
        ),
        (json.dumps(GOOD | {"answer": -1}), "the answer is -1"),
        (json.dumps(GOOD | {"answer": "x"}), "answer is 'x', and not the number of a choice"),
        (json.dumps(GOOD | {"answer": None}), "answer is None, and not"),
        (json.dumps(GOOD | {"choices": ["cat"]}), "it offers 1 choices, and needs at least 2"),
        (json.dumps(GOOD | {"choices": "cat"}), "choices is no list of texts"),
        (json.dumps(GOOD | {"choices": ["cat", " "]}), "choice 1 is empty"),
        (json.dumps(PIQA[0] | {"label": 2}), "the answer is 2"),
        (json.dumps(PIQA[0] | {"goal": 3}), "goal is no text"),
        ('{"sentence": "no", "option1": "a", "option2": "b", "answer": "1"}', "needs a blank, written _"),
        ('{"sentence": "a _ b", "option1": "a", "option2": "b", "answer": ""}', "answer is '', and not"),
        ('{"sentence": "a _ b", "option1": "a", "option2": "b", "answer": "3"}', "'3', but must be 1 or 2"),
        (
            '{"question": "a", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "E"}',
            "answerKey is 'E', but the labels are A, B",
        ),
        ('{"question": "a", "choices": ["a", "b"], "answerKey": "A"}', "choices is no object with"),
    ],
)
def test_bad_files(tmp_path, text, told):
    path = tmp_path / "q.jsonl"
    path.write_text(text)
    with pytest.raises(SecateurError, match=told) as error:
        read_questions(path)
    assert "q.jsonl" in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(SecateurError, match=r"there is no file '.*none\.jsonl'"):
        read_questions(tmp_path / "none.jsonl")
    (tmp_path / "half.gz").write_bytes(gzip.compress(b"x" * 1000)[:20])
    with pytest.raises(SecateurError, match=r"'.*half\.gz' cannot be read"):
        read_questions(tmp_path / "half.gz")
    (tmp_path / "latin.jsonl").write_bytes(b'{"context": "\xe9"}')
    with pytest.raises(SecateurError, match=r"cannot be read.*UTF-8"):
        read_questions(tmp_path / "latin.jsonl")


def test_a_model_and_a_tokenizer_that_do_not_fit(tokenizer):
    with pytest.raises(SecateurError, match="use the tokenizer that belongs to the model"):
        log_likelihoods(a_model(vocabulary=8), tokenizer, [("the", " cat sat on the mat slow")])
    broken = a_model()
    nn.init.constant_(broken.lm_head.weight, float("nan"))
    with pytest.raises(SecateurError, match="log-probabilities of some texts are NaN"):
        log_likelihoods(broken, tokenizer, [("the", " cat")])
    with pytest.raises(SecateurError, match="batch_size is 0"):
        log_likelihoods(a_model(), tokenizer, [("the", " cat")], batch_size=0)
    with pytest.raises(SecateurError, match="gives no logits for each token"):
        log_likelihoods(nn.Flatten(), tokenizer, [("the", " cat")])


# The harness.

NEEDS_HARNESS = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed: the extra lm-eval"
)


def a_task(folder, rows, name, *lines):
    """A task file with its data beside it."""
    path = write(folder / f"{name}.jsonl", rows)
    head = [f"task: {name}", "dataset_path: json", "dataset_kwargs:", f"  data_files: {path}"]
    head += ["output_type: multiple_choice", "validation_split: train"]
    tail = ["metric_list:", "  - metric: acc", "  - metric: acc_norm"]
    (folder / f"{name}.yaml").write_text("\n".join([*head, *lines, *tail]) + "\n")


@NEEDS_HARNESS
@pytest.mark.slow
def test_the_harness_says_the_same(tmp_path, monkeypatch, model, tokenizer):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [PIQA[at % 3] | {"sol1": f"{word} it", "label": at % 2} for at, word in enumerate(WORDS)]
    a_task(
        tmp_path, rows, "local_piqa", r'doc_to_text: "Question: {{goal}}\nAnswer:"', "doc_to_target: label",
        'doc_to_choice: "{{[sol1, sol2]}}"',
    )  # fmt: skip
    theirs = harness(model, tokenizer, ["local_piqa"], include=tmp_path)["local_piqa"]
    ours = zero_shot(model, tokenizer, tmp_path / "local_piqa.jsonl")
    assert (theirs["acc"], theirs["acc_norm"]) == pytest.approx((ours.acc, ours.acc_norm))
    assert theirs["samples"] == ours.questions == len(WORDS)
    assert harness(model, tokenizer, ["local_piqa"], include=tmp_path, limit=3)["local_piqa"]["samples"] == 3


@NEEDS_HARNESS
@pytest.mark.slow
def test_an_unknown_task(tmp_path, model, tokenizer):
    with pytest.raises(SecateurError, match=r"lm-eval has no task 'pikka'"):
        harness(model, tokenizer, ["pikka"])


def test_what_the_harness_needs(monkeypatch, tmp_path, model, tokenizer):
    with pytest.raises(SecateurError, match="no task is named"):
        harness(model, tokenizer, [])
    with pytest.raises(SecateurError, match="there is no folder"):
        harness(model, tokenizer, ["piqa"], include=tmp_path / "none")
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.tasks", None)
    with pytest.raises(SecateurError, match=r"needs lm_eval, .*pip install 'secateur\[lm-eval\]'"):
        harness(model, tokenizer, ["piqa"])


# A trained model and real questions.


@pytest.fixture(scope="module")
def stories(assets):
    folder = assets / "models" / "stories260K"
    load = transformers.AutoModelForCausalLM.from_pretrained
    return load(folder), transformers.AutoTokenizer.from_pretrained(folder), assets / "data" / "zeroshot"


@pytest.mark.assets
def test_the_batch_changes_nothing_on_a_trained_model(stories):
    model, tokenizer, folder = stories
    for name in ("piqa_validation.jsonl", "winogrande_validation.jsonl"):
        questions = read_questions(folder / name, limit=8)[1]
        pairs = [pair for each in questions for pair in zip(each.contexts, each.choices, strict=True)]
        one, many = (log_likelihoods(model, tokenizer, pairs, batch_size=size).totals for size in (1, 16))
        assert torch.allclose(one, many, atol=2e-3, rtol=0)


@pytest.mark.assets
def test_a_story_teller_knows_some_grammar(stories):
    model, tokenizer, folder = stories
    found = zero_shot(model, tokenizer, folder / "blimp_67x1000.jsonl.gz", limit=67 * 3, batch_size=32)
    assert found.questions == 201
    assert len(found.groups) == 67
    # 53.9 % on 100 sentences of each phenomenon: hardly more than chance.
    assert 0.44 < found.acc < 0.64
    assert found.groups["principle_A_case_1"] == 1.0
