"""The stack of decoder layers is found by module types."""

import pytest
from torch import nn

from secateur.core.stack import find_stack
from secateur.testing import networks


class Nested(nn.Module):
    """Decoder layers with lists of experts, a larger list of embeddings, and a short list of heads."""

    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(100, 10), nn.Embedding(100, 10)])
        self.heads = nn.ModuleList([nn.Linear(4, 4)])
        self.body = nn.Module()
        self.body.blocks = nn.ModuleList(
            nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])}) for _ in range(3)
        )


def test_the_outermost_list_with_most_parameters_is_the_stack():
    model = Nested()
    found = find_stack(model)
    assert found is not None
    name, stack = found
    assert name == "body.blocks"
    assert stack is model.body.blocks


def test_a_model_without_a_list_of_linear_layers_has_no_stack():
    assert find_stack(networks.mlp().model) is None
    assert find_stack(nn.ModuleDict({"a": nn.ModuleList(), "b": nn.ModuleList([nn.ReLU()])})) is None


def test_a_list_that_is_the_model_itself_is_the_stack():
    model = nn.ModuleList([nn.Linear(2, 2)])
    assert find_stack(model) == ("", model)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "mixtral"])
def test_stacks_of_transformers(kind):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2}
    model, name = {
        "llama": lambda: (
            transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, intermediate_size=8)),
            "model.layers",
        ),
        "gpt2": lambda: (
            transformers.GPT2LMHeadModel(
                transformers.GPT2Config(vocab_size=11, n_embd=8, n_layer=3, n_head=2)
            ),
            "transformer.h",
        ),
        "opt": lambda: (
            transformers.OPTForCausalLM(
                transformers.OPTConfig(**sizes, ffn_dim=8, word_embed_proj_dim=8, pad_token_id=1)
            ),
            "model.decoder.layers",
        ),
        "mixtral": lambda: (
            transformers.MixtralForCausalLM(
                transformers.MixtralConfig(
                    **sizes, intermediate_size=8, num_key_value_heads=2, num_local_experts=2
                )
            ),
            "model.layers",
        ),
    }[kind]()
    found = find_stack(model)
    assert found is not None
    assert found[0] == name
    assert len(found[1]) == 3
