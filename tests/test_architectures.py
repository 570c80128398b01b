"""Language models of many kinds: what is found, measured, pruned and saved of each.

All are tiny and random. They are in float64, though transformers computes norms and softmaxes of any model in
float32, so that gradients that were found in two ways agree to six digits or so. The experts of a mixture run
one by one: transformers multiplies them together in float32 or narrower only, which some tests do.
"""

import copy
import json
import re
from collections.abc import Iterator

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import secateur
from secateur import ICBS, SecateurError
from secateur.capture import capture, mean_gradient, moments
from secateur.core.layer import Layer, find_layers
from secateur.core.signal import Signal
from secateur.core.task import Batch
from secateur.export import apply_mask, save_pretrained
from secateur.pruners import Averaging, OneShot
from secateur.scores import Wanda
from secateur.tasks import CausalLM

COMMON = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {**COMMON, "num_key_value_heads": 1}
OPT = {**COMMON, "ffn_dim": 24, "word_embed_proj_dim": 16}
MIXTURE = {**GROUPED, "num_experts_per_tok": 2, "experts_implementation": "eager"}
# The type of the configuration, its values, and how many layers a decoder layer has beside its experts.
KINDS: dict[str, tuple[str, dict, int]] = {
    "llama": ("Llama", GROUPED, 7),
    "mistral": ("Mistral", GROUPED, 7),
    "qwen2, tied": ("Qwen2", {**GROUPED, "tie_word_embeddings": True}, 7),
    "qwen3": ("Qwen3", {**GROUPED, "head_dim": 8}, 7),
    "opt, tied": ("OPT", OPT, 6),
    "opt, norm after": ("OPT", {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 12}, 6),
    "gpt2": ("GPT2", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": 64}, 4),
    "gpt_neox": ("GPTNeoX", COMMON, 4),
    "gemma2": ("Gemma2", {**GROUPED, "head_dim": 8}, 7),
    "gemma3": ("Gemma3Text", {**GROUPED, "head_dim": 8}, 7),
    "phi": ("Phi", GROUPED, 6),
    "phi3": ("Phi3", GROUPED, 4),
    "mixtral": ("Mixtral", {**MIXTURE, "num_local_experts": 4}, 4),
    "qwen3_moe": ("Qwen3Moe", {**MIXTURE, "num_experts": 4, "head_dim": 8, "moe_intermediate_size": 12}, 4),
    "qwen2_moe": (
        "Qwen2Moe",
        {**MIXTURE, "num_experts": 4, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 4},
        7,
    ),
    "afmoe": (
        "Afmoe",
        {**MIXTURE, "num_experts": 4, "head_dim": 8, "moe_intermediate_size": 12, "num_dense_layers": 0},
        8,
    ),
    "olmoe": ("Olmoe", {**MIXTURE, "num_experts": 4}, 4),
    "gpt_oss": ("GptOss", {**MIXTURE, "num_local_experts": 4, "head_dim": 8}, 4),
}
MIXTURES = ("mixtral", "qwen3_moe", "qwen2_moe", "afmoe", "olmoe", "gpt_oss")
DENSE = [kind for kind in KINDS if kind not in MIXTURES]
# What none of the layers' names may have in them.
LEFT_ALONE = re.compile(r"head|embed|norm|ln_|router|expert_gate|wte|wpe|\.gate(\.|$)|project_")
QUICK = ICBS(averaging=Averaging(samples=8, length=3))


@pytest.fixture(autouse=True)
def _quiet_and_alone() -> Iterator[None]:
    """Keep transformers from complaining of tiny vocabularies, and several threads from tiny products."""
    transformers.logging.set_verbosity_error()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(kind: str, dtype: torch.dtype = torch.float64, **changes) -> nn.Module:
    name, values, _ = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(**{**values, **changes})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():  # as random as trained weights are, also where they begin at 0 or 1
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def tokens(sequences: int = 24) -> Tensor:
    return torch.randint(3, 64, (sequences, 8), generator=torch.Generator().manual_seed(1))


def lm(**settings) -> CausalLM:
    return CausalLM.from_ids(tokens(), **settings)


def batch(size: int = 6) -> Batch:
    return lm().batch("calibration", torch.arange(size), torch.device("cpu"))


def layers_of(model: nn.Module) -> tuple[Layer, ...]:
    return find_layers(model, lm().prunable(model))


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(tokens(5)).logits


def matrix(kind: str, name: str, stored: dict[str, Tensor]) -> Tensor:
    """Find a layer's matrix [out, in] among tensors as the model stores them, by its name alone."""
    if f"{name}.weight" in stored:
        found = stored[f"{name}.weight"]
        return found.T if kind == "gpt2" else found
    parameter, _, slot = name.rpartition(".")
    found = stored[parameter][int(slot)]
    return found.T if kind == "gpt_oss" else found


@pytest.mark.parametrize("kind", KINDS)
def test_the_layers_found_are_those_inside_decoder_layers(kind):
    model = build(kind)
    names = [layer.name for layer in layers_of(model)]
    experts = [name for name in names if ".experts." in name]
    assert len(names) - len(experts) == 2 * KINDS[kind][2]
    assert len(experts) == (2 * 2 * 4 if kind in MIXTURES else 0)
    for name in names:
        assert re.match(r".*\.(layers|h)\.[01]\.", name)
        assert not LEFT_ALONE.search(name), name
    # The matrices that are no layers' are those that are to be left alone.
    theirs = {id(layer.parameter) for layer in layers_of(model)}
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and id(parameter) not in theirs:
            assert LEFT_ALONE.search(name) or name.endswith("_bias"), name


@pytest.mark.parametrize("kind", KINDS)
def test_mean_gradients_are_those_of_the_stored_parameters(kind):
    model, sample = build(kind), batch()
    loss, found = mean_gradient(model, lm(), sample, layers_of(model))
    scores = model(sample.inputs).logits[:, :-1]
    truth = nn.functional.cross_entropy(scores.flatten(0, 1), sample.inputs[:, 1:].flatten())
    truth.backward()
    assert loss == pytest.approx(truth.item())
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(found) == len(layers_of(model))
    for name, gradient in found.items():
        expected = matrix(kind, name, gradients)
        assert expected.any() or ".experts." in name
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)


def gram_matrices(model: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    """Sum x x' over the inputs of modules, and over those that the routing sends to each expert."""
    sums: dict[str, Tensor] = {}

    def note(name: str, x: Tensor) -> None:
        sums[name] = sum(torch.outer(row, row) for row in x.reshape(-1, x.shape[-1]))  # type: ignore[assignment]

    def route(name: str, experts: nn.Module, given: tuple) -> None:
        x, index, _ = given
        for slot in range(experts.num_experts):
            mine = x[(index == slot).any(-1)]
            if not len(mine):
                continue
            note(f"{name}.gate_up_proj.{slot}", mine)
            weight = experts.gate_up_proj[slot]
            hidden = mine @ (weight if experts.is_transposed else weight.T)
            if experts.has_bias:
                hidden = hidden + experts.gate_up_proj_bias[slot]
            note(f"{name}.down_proj.{slot}", experts._apply_gate(hidden))

    handles = []
    for name, module in model.named_modules():
        if name.endswith(".experts"):
            hook = module.register_forward_pre_hook(lambda m, args, n=name: route(n, m, args))
        elif isinstance(module, nn.Linear | transformers.pytorch_utils.Conv1D):
            hook = module.register_forward_pre_hook(lambda m, args, n=name: note(n, args[0]))
        else:
            continue
        handles.append(hook)
    with torch.no_grad():
        model(ids)
    for handle in handles:
        handle.remove()
    return sums


@pytest.mark.parametrize("kind", KINDS)
def test_moments_are_sums_over_what_comes_to_each_matrix(kind):
    model, sample = build(kind), batch()
    layers = layers_of(model)
    halves = sample.split(3)
    found = moments(model, lm(), halves, layers, gram=True)
    truths = gram_matrices(model, sample.inputs)
    chosen = 0
    for layer in layers:
        ours = found[layer.name]
        expected = truths.get(layer.name, torch.zeros(layer.shape[1], layer.shape[1]).double())
        torch.testing.assert_close(ours.gram, expected, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(ours.squares, expected.diagonal(), rtol=1e-6, atol=1e-9)
        if layer.slot is None:
            assert ours.count == sample.inputs.numel()
        elif "gate_up_proj" in layer.name:
            chosen += ours.count
    if kind in MIXTURES:  # each token goes to two experts in each of two layers
        assert chosen == 2 * 2 * sample.inputs.numel()
        assert model.config._experts_implementation == "eager"


def test_moments_of_experts_that_are_multiplied_together_are_the_same():
    model = build("mixtral", torch.float32, experts_implementation="grouped_mm")
    layers = layers_of(model)
    found = moments(model, lm(), [batch()], layers, gram=True)
    exact = build("mixtral")
    exact.load_state_dict(model.state_dict())
    truths = gram_matrices(exact, batch().inputs)
    for layer in layers:
        torch.testing.assert_close(found[layer.name].gram.double(), truths[layer.name], rtol=1e-3, atol=1e-4)
    assert model.config._experts_implementation == "grouped_mm"


def test_experts_without_positions_have_sums_of_zero_but_a_mixture_that_is_not_heard_is_refused(monkeypatch):
    model = build("mixtral", num_local_experts=64, num_experts_per_tok=1)
    found = moments(model, lm(), [batch(1)], layers_of(model))
    counts = {name: sums.count for name, sums in found.items() if ".0.mlp.experts.down_proj" in name}
    assert sum(counts.values()) == batch(1).inputs.numel()
    idle = next(name for name, count in counts.items() if count == 0)
    assert not found[idle].squares.any()
    # A mixture that multiplies with copies of its matrices.
    kind = type(model.model.layers[0].mlp.experts)
    monkeypatch.setattr(kind, "forward", lambda self, x, *_: x @ self.gate_up_proj[0].clone().T[:, :16])
    with pytest.raises(SecateurError, match=r"never reached .*model.layers.0.mlp.experts.gate_up_proj.\*"):
        moments(model, lm(), [batch(1)], layers_of(model))


@pytest.mark.parametrize("kind", KINDS)
def test_the_tape_is_verified_and_experts_are_refused(kind):
    model, sample = build(kind), batch()
    layers = layers_of(model)
    draw = torch.Generator().manual_seed(0)
    needs = frozenset({Signal.GRADIENT})
    plain = [layer for layer in layers if layer.slot is None]
    tape = capture(model, lm(), sample, plain, needs, draw, verify=True)
    _, truth = mean_gradient(model, lm(), sample, plain)
    for name, gradient in tape.gradients.items():
        torch.testing.assert_close(gradient, truth[name], rtol=1e-4, atol=1e-7)
    if kind in MIXTURES:
        with pytest.raises(SecateurError, match=r"'model.layers.0.mlp.experts.gate_up_proj.0' is one of"):
            capture(model, lm(), sample, layers, needs, draw)


def assert_pruned(kind: str, model: nn.Module, before: dict[str, Tensor], run: secateur.Run) -> None:
    """Check that half of each layer is gone, and that nothing else has changed by a bit."""
    expected = {name: value.clone() for name, value in before.items()}
    for name, keep in run.mask.items():
        assert int(keep.sum()) == keep.numel() // 2
        matrix(kind, name, expected).masked_fill_(~keep, 0)
    after = model.state_dict()
    assert expected.keys() == after.keys()
    for name, value in expected.items():
        assert torch.equal(after[name], value), name
        assert after[name].dtype == value.dtype


@pytest.mark.parametrize("kind", KINDS)
def test_one_shot_pruned_models_are_saved_as_checkpoints(kind, tmp_path):
    model = build(kind)
    before = copy.deepcopy(model.state_dict())
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    run = secateur.prune(
        model, lm(), OneShot(Wanda()), density=0.5, grouping="output", out=tmp_path / "run", save_model=True
    )
    assert_pruned(kind, model, before, run)
    folder = tmp_path / "run" / "model"
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert "sparsity_config" not in json.loads((folder / "config.json").read_text())
    loaded = AutoModelForCausalLM.from_pretrained(folder, **implementation(kind))
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.dtype == torch.float64
    assert tied is (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight)
    assert tied is (model.get_output_embeddings().weight is model.get_input_embeddings().weight)


def implementation(kind: str) -> dict[str, str]:
    return {"experts_implementation": "eager"} if kind in MIXTURES else {}


@pytest.mark.parametrize("kind", KINDS)
def test_averaged_gradients_prune_every_kind(kind):
    model = build(kind)
    before = copy.deepcopy(model.state_dict())
    run = secateur.prune(model, lm(), QUICK, density=0.5, budget="2steps")
    assert_pruned(kind, model, before, run)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_blocks_are_exchanged_too(kind):
    model = build(kind)
    before = copy.deepcopy(model.state_dict())
    run = secateur.prune(model, lm(), ICBS(share=0.0), density=0.5, budget="1steps")
    assert_pruned(kind, model, before, run)


def test_experts_multiplied_together_are_pruned():
    model = build("mixtral", torch.float32, experts_implementation="grouped_mm")
    before = copy.deepcopy(model.state_dict())
    run = secateur.prune(model, lm(), QUICK, density=0.5, budget="1steps")
    assert_pruned("mixtral", model, before, run)


@pytest.mark.parametrize("pruner", [OneShot(Wanda()), QUICK], ids=["one_shot", "icbs"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_what_it_is(dtype, pruner, tmp_path):
    model = build("llama", dtype)
    _, gradients = mean_gradient(model, lm(), batch(), layers_of(model))
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}
    before = copy.deepcopy(model.state_dict())
    run = secateur.prune(
        model, lm(), pruner, density=0.5, budget="1steps", out=tmp_path / "run", save_model=True
    )
    assert_pruned("llama", model, before, run)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert {value.dtype for value in loaded.state_dict().values()} == {dtype}
    assert torch.equal(logits(loaded), logits(model))


def test_models_that_accelerate_has_placed(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    accelerate.dispatch_model(model := build("llama"), {"": "cpu"})
    before = copy.deepcopy(model.state_dict())
    assert_pruned("llama", model, before, secateur.prune(model, lm(), QUICK, density=0.5, budget="1steps"))
    save_pretrained(model, tmp_path / "saved")
    placed = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", device_map={"": "cpu"})
    assert torch.equal(logits(placed), logits(model))
    placed = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", device_map={"": "cpu"})
    before = copy.deepcopy(placed.state_dict())
    run = secateur.prune(placed, lm(), OneShot(Wanda()), density=0.25, out=tmp_path / "run", save_model=True)
    assert run.mask.density == 0.25


def test_encoder_decoders_are_refused():
    config = transformers.T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
    model = transformers.T5ForConditionalGeneration(config)
    with pytest.raises(SecateurError, match=r"T5ForCond.* is an encoder-decoder: .*decoder-only language"):
        secateur.prune(model, lm(), OneShot(Wanda()), density=0.5)


@pytest.mark.parametrize("keep", ["once", "parametrization", "hook"])
@pytest.mark.parametrize("kind", ["gpt2", "mixtral", "gpt_oss", "qwen2, tied"])
def test_masks_are_applied_as_parameters_are_stored(kind, keep, tmp_path):
    model = build(kind)
    before = copy.deepcopy(model.state_dict())
    draw = torch.Generator().manual_seed(0)
    # Not all layers: the rest of a parameter of several experts stays.
    mask = secateur.Mask(
        {layer.name: torch.rand(layer.shape, generator=draw) < 0.4 for layer in layers_of(model)[2:-3]}
    )
    applied = apply_mask(model, mask, keep=keep)
    expected = {name: value.clone() for name, value in before.items()}
    for name, kept in mask.items():
        matrix(kind, name, expected).masked_fill_(~kept, 0)
    plain = build(kind)
    plain.load_state_dict(expected)
    assert torch.equal(logits(model), logits(plain))
    if keep != "once":
        optimiser = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            model(tokens(6), labels=tokens(6)).loss.backward()
            optimiser.step()
    if keep == "parametrization":
        with pytest.raises(SecateurError, match="is parametrized already"):
            apply_mask(model, mask)
    applied.check()
    save_pretrained(model, tmp_path / "saved", mask=mask)
    applied.remove()
    assert model.state_dict().keys() == before.keys()
    for name, kept in mask.items():
        weight = matrix(kind, name, model.state_dict())
        assert not weight[~kept].any()
        assert keep == "once" or (weight != matrix(kind, name, before))[kept].any()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", **implementation(kind))
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
