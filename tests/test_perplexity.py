"""Perplexity by sliding windows, against one token at a time."""

import json
import math

import pytest
import torch
from torch import nn

from secateur.core.errors import SecateurError
from secateur.evaluation import perplexity


class Memory(nn.Module):
    """Looks at all tokens before: logits from their running mean, so that context matters."""

    def __init__(self, tokens=7):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = nn.Embedding.from_pretrained(torch.randn(tokens, tokens, generator=generator) * 2)

    def forward(self, ids):
        count = torch.arange(1, ids.shape[1] + 1)[:, None]
        return self.embedding(ids).cumsum(1) / count


def slow(model, ids, context, stride, counted=None):
    """Each token once, alone, with what its first window shows before it."""
    losses, hits, seen = [], [], set()
    for begin in range(0, len(ids), stride):
        end = begin + context
        if stride == context and end > len(ids):
            break
        for at in range(begin + 1, min(end, len(ids))):
            if at in seen:
                continue
            seen.add(at)
            if counted is not None and not counted[at]:
                continue
            logits = model(ids[None, begin:at])[0, -1].double()
            losses.append(-float(torch.log_softmax(logits, 0)[ids[at]]))
            hits.append(int(logits.argmax() == ids[at]))
    return sum(losses) / len(losses), sum(hits) / len(hits), len(losses)


@pytest.fixture
def ids():
    return torch.randint(7, (53,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("context", "stride"), [(10, None), (10, 10), (10, 3), (10, 1), (53, None), (2, 1)])
@pytest.mark.parametrize("batch", [1, 3, 100])
def test_against_one_token_at_a_time(ids, context, stride, batch):
    model = Memory()
    found = perplexity(model, ids, context=context, stride=stride, batch_size=batch)
    loss, accuracy, tokens = slow(model, ids, context, stride or context)
    assert found.loss == pytest.approx(loss, rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(loss), rel=1e-6)
    assert found.accuracy == pytest.approx(accuracy)
    assert (found.tokens, found.context, found.stride) == (tokens, context, stride or context)


def test_each_token_is_counted_once(ids):
    assert perplexity(Memory(), ids, context=10, stride=4).tokens == 52
    disjoint = perplexity(Memory(), ids, context=10)
    assert (disjoint.tokens, disjoint.left_over) == (5 * 9, 3)
    assert perplexity(Memory(), ids, context=10, stride=4).left_over == 0


def test_tokens_that_do_not_count(ids):
    counted = torch.rand(53, generator=torch.Generator().manual_seed(2)) < 0.7
    for stride in (10, 4):
        found = perplexity(Memory(), ids, context=10, stride=stride, counted=counted)
        loss, accuracy, tokens = slow(Memory(), ids, 10, stride, counted)
        assert (found.loss, found.accuracy) == pytest.approx((loss, accuracy))
        assert found.tokens == tokens
    with pytest.raises(SecateurError, match="no token of the text is counted"):
        perplexity(Memory(), ids, context=10, counted=torch.zeros(53, dtype=torch.bool))


def test_a_short_text_is_one_window(ids):
    found = perplexity(Memory(), ids[:6], context=20)
    assert (found.context, found.stride, found.tokens, found.left_over) == (6, 6, 5, 0)
    assert found.loss == pytest.approx(slow(Memory(), ids[:6], 6, 6)[0])


def test_a_uniform_model_is_as_perplexed_as_it_has_words(ids):
    model = Memory()
    nn.init.zeros_(model.embedding.weight)
    assert perplexity(model, ids, context=10).perplexity == pytest.approx(7)


def test_the_record_names_the_protocol(ids):
    seen = []
    found = perplexity(
        Memory(), ids, context=10, stride=5, batch_size=4, progress=lambda *at: seen.append(at)
    )
    record = json.loads(json.dumps(found.as_record()))
    assert record["protocol"] == "perplexity, context 10, stride 5, 52 tokens predicted"
    said = perplexity(Memory(), ids, context=10).protocol
    assert said == "perplexity, context 10, disjoint windows, 45 tokens predicted, last 3 left out"
    assert seen == [(4, 10), (8, 10), (10, 10)]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"context": 1}, "the context is 1 tokens: choose at least 2"),
        ({"context": 8, "stride": 9}, "the stride is 9: choose 1 to 8"),
        ({"context": 8, "stride": 0}, "the stride is 0"),
        ({"context": 8, "batch_size": 0}, "batch_size is 0"),
    ],
)
def test_bad_options(ids, options, told):
    with pytest.raises(SecateurError, match=told):
        perplexity(Memory(), ids, **options)


def test_bad_texts_and_models(ids):
    with pytest.raises(SecateurError, match="the text has 1 tokens"):
        perplexity(Memory(), ids[:1], context=8)
    model = Memory()
    nn.init.constant_(model.embedding.weight, float("nan"))
    with pytest.raises(SecateurError, match="log-probabilities of the text are NaN"):
        perplexity(model, ids, context=8)


@pytest.fixture(scope="module")
def llama():
    transformers = pytest.importorskip("transformers", reason="needs transformers: the extra hf")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=7,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
    )
    return transformers.LlamaForCausalLM(config)


def test_a_model_of_transformers(llama, ids):
    found = perplexity(llama, ids, context=16, stride=8)
    with torch.no_grad():
        loss, _, tokens = slow(lambda x: llama.eval()(x).logits, ids, 16, 8)
    assert found.tokens == tokens
    assert found.loss == pytest.approx(loss, rel=1e-5)
    with pytest.raises(SecateurError, match="at most 16, which is the model's window"):
        perplexity(llama, ids, context=17)
    with pytest.raises(SecateurError, match="the text has token 7, but the model knows 7 tokens"):
        perplexity(llama, ids + 1, context=8)


@pytest.mark.assets
def test_a_trained_story_teller(assets):
    transformers = pytest.importorskip("transformers", reason="needs transformers: the extra hf")
    folder = assets / "models" / "stories260K"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    text = (assets / "data" / "tinystories" / "cs336_tinystories_valid5.txt").read_text()
    losses = [
        perplexity(model, torch.tensor(tokenizer(story.strip())["input_ids"]), context=512)
        for story in text.split("<|endoftext|>")
        if story.strip()
    ]
    total = sum(each.tokens for each in losses)
    # Measured before by other code: 1.266 nats a token.
    assert sum(each.loss * each.tokens for each in losses) / total == pytest.approx(1.266, abs=0.02)
