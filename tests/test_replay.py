"""Layer-wise calibration gives the moments of whole passes, however the model is built."""

import pytest
import torch
from torch import nn

from secateur import SecateurError
from secateur.capture import moments
from secateur.capture.inputs import listening
from secateur.capture.replay import Replay, sequentially
from secateur.core.layer import find_layers
from secateur.core.task import Task
from secateur.core.trained import Trained
from secateur.testing import networks

transformers = pytest.importorskip("transformers")
SIZES = {"vocab_size": 13, "hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2}


class Tokens(Task):
    """Sequences of tokens, each to be followed by the next; the least that a causal model needs."""

    def __init__(self, count=6, length=5, vocabulary=13, seed=0):
        self.ids = torch.randint(vocabulary, (count, length), generator=torch.Generator().manual_seed(seed))

    def size(self, split):
        return len(self.ids)

    def batch(self, split, index, device):
        from secateur.core.task import Batch

        return Batch({"input_ids": self.ids[index]}, self.ids[index], index)

    def forward(self, model, batch):
        return model(**batch.inputs).logits

    def losses(self, outputs, targets):
        return nn.functional.cross_entropy(
            outputs[:, :-1].transpose(1, 2), targets[:, 1:], reduction="none"
        ).mean(1)

    def sample_targets(self, outputs, generator):
        raise NotImplementedError

    def loss_hessian_factors(self, outputs):
        raise NotImplementedError

    def metrics(self, outputs, targets):
        return {"loss": float(self.losses(outputs, targets).sum())}


def llama():
    config = transformers.LlamaConfig(**SIZES, intermediate_size=12, num_key_value_heads=1)
    return transformers.LlamaForCausalLM(config)


def gpt2():
    config = transformers.GPT2Config(vocab_size=13, n_embd=8, n_layer=4, n_head=2, n_positions=16)
    return transformers.GPT2LMHeadModel(config)


def opt():
    # word_embed_proj_dim makes a linear layer before and one behind the stack
    config = transformers.OPTConfig(
        **SIZES, ffn_dim=12, word_embed_proj_dim=6, pad_token_id=1, max_position_embeddings=16
    )
    return transformers.OPTForCausalLM(config)


def mixtral():
    config = transformers.MixtralConfig(
        **SIZES, intermediate_size=12, num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=1
    )
    return transformers.MixtralForCausalLM(config)


MODELS = [llama, gpt2, opt, mixtral]


def build(make, seed=0):
    """Build a model in float64, with weights large enough to matter."""
    torch.manual_seed(seed)
    model = make().eval()
    model = model if make is mixtral else model.double()  # whose grouped product knows no float64
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=parameter.dtype) * 0.4)
    return model


def batches_of(task, size=2):
    return [
        task.batch("calibration", i, torch.device("cpu"))
        for i in torch.arange(task.size("calibration")).split(size)
    ]


def check(found, expected):
    for name, sums in found.items():
        truth = expected[name]
        assert sums.count == truth.count
        torch.testing.assert_close(sums.total, truth.total)
        torch.testing.assert_close(sums.squares, truth.squares)
        torch.testing.assert_close(sums.gram, truth.gram)


@pytest.mark.parametrize("make", MODELS)
def test_moments_are_those_of_a_whole_pass_of_the_model_as_it_stands(make):
    """The weights of each group are changed before the next is asked for."""
    model, task = build(make), Tokens()
    layers = find_layers(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    batches, seen = batches_of(task), []
    for group, found in sequentially(model, task, batches, layers, gram=True):
        check(found, moments(model, task, batches, layers, gram=True))
        assert [layer.name for layer in group] == list(found)
        seen += list(found)
        with torch.no_grad():
            for layer in group:
                layer.weight[::2] *= 0.5
    assert sorted(seen) == sorted(layer.name for layer in layers)
    assert any(not torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("make", MODELS)
def test_each_decoder_layer_is_run_twice_and_no_more(make):
    model, task = build(make), Tokens()
    batches = batches_of(task)
    replay = Replay(model, task, batches, find_layers(model), gram=False)
    assert not replay.whole
    from secateur.core.stack import find_stack

    found = find_stack(model)
    counts = [0] * 4
    for at, element in enumerate(found[1]):
        part = next(m for m in element.modules() if isinstance(m, nn.LayerNorm) or "Norm" in type(m).__name__)

        def count(*_, at=at):
            counts[at] += 1

        part.register_forward_hook(count)
    inside = [n for n, at in enumerate(replay._at) if at is not None]
    assert len(inside) == 4
    for number in inside:
        replay.moments(number)
    assert counts == [2 * len(batches)] * 3 + [len(batches)]


def test_layers_outside_the_stack_come_in_the_order_of_the_pass():
    model, task = build(opt), Tokens()
    replay = Replay(model, task, batches_of(task), find_layers(model), gram=False)
    names = [[layer.name for layer in group] for group in replay.groups]
    assert names[0] == ["model.decoder.project_in"]
    assert names[-1] == ["model.decoder.project_out"]
    assert all(len(group) == 6 for group in names[1:-1])


@pytest.mark.parametrize("make", MODELS)
def test_the_model_is_as_it_was_afterwards(make):
    model, task = build(make), Tokens()
    batches = batches_of(task)
    experts = getattr(model.config, "_experts_implementation", None)
    with torch.no_grad():
        before = task.forward(model, batches[0])
    for _ in sequentially(model, task, batches, find_layers(model), gram=True):
        pass
    with torch.no_grad():
        assert torch.equal(task.forward(model, batches[0]), before)
    assert getattr(model.config, "_experts_implementation", None) == experts
    for module in model.modules():
        assert "forward" not in module.__dict__
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_a_wrapped_forward_is_put_back():
    model, task = build(llama), Tokens()
    element = model.model.layers[1]
    plain = element.forward
    calls = []

    def wrapped(*args, **kwargs):
        calls.append(1)
        return plain(*args, **kwargs)

    element.forward = wrapped
    for _ in sequentially(model, task, batches_of(task), find_layers(model), gram=False):
        pass
    assert element.__dict__["forward"] is wrapped
    assert calls


def test_moments_of_a_group_can_be_asked_for_again_and_after_a_later_one():
    model, task = build(llama), Tokens()
    batches, layers = batches_of(task), find_layers(model)
    replay = Replay(model, task, batches, layers, gram=True)
    expected = moments(model, task, batches, layers, gram=True)
    for number in (2, 2, 3, 0, 3):
        check(replay.moments(number), expected)


def test_a_bound_on_gram_matrices_divides_groups():
    model, task = build(llama), Tokens()
    batches, layers = batches_of(task), find_layers(model)
    limit = 8 * (2 * 8 * 8)  # two matrices of 8 x 8 in float64; one of 12 x 12 is more than that
    groups = []
    for group, found in sequentially(model, task, batches, layers, gram=True, limit=limit):
        check(found, moments(model, task, batches, layers, gram=True))
        groups.append([layer.name.rpartition(".")[2] for layer in group])
        with torch.no_grad():
            for layer in group:
                layer.weight[::2] *= 0.5
    pieces = [["q_proj", "k_proj"], ["v_proj", "o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    assert groups[:4] == pieces
    assert groups[:-1] == pieces * 4


def test_layers_with_the_same_inputs_share_their_moments():
    model, task = build(llama), Tokens()
    _, found = next(sequentially(model, task, batches_of(task), find_layers(model), gram=True))
    at = "model.layers.0.self_attn"
    assert found[f"{at}.q_proj"] is found[f"{at}.k_proj"]
    assert found[f"{at}.q_proj"] is not found[f"{at}.o_proj"]


def test_an_expert_that_no_position_comes_to_has_sums_of_zero():
    model, task = build(mixtral), Tokens(count=1, length=2)
    zero = [
        sums
        for _, found in sequentially(model, task, batches_of(task), find_layers(model), gram=True)
        for sums in found.values()
        if sums.count == 0
    ]
    assert zero
    assert all(not sums.gram.any() for sums in zero)


class Skips(nn.Module):
    """A stack whose layers also get what the first of them gave, or are not run in order or once."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        first = None
        blocks = list(self.blocks)
        if self.kind == "backwards":
            blocks.reverse()
        if self.kind == "twice":
            blocks.append(blocks[1])
        for block in blocks:
            x = torch.tanh(block(x))
            if self.kind == "skip":
                first = x if first is None else first
                x = x + first
            if self.kind == "inplace":
                x += 1
            if self.kind == "looks" and block.forward.__name__ == "stub":
                raise TypeError("this is not a layer of mine")
        return self.head(x)


@pytest.mark.parametrize("kind", ["skip", "backwards", "twice", "inplace", "looks", "plain"])
def test_a_stack_that_is_no_chain_is_recorded_in_whole_passes(kind):
    net = networks.furnish(Skips(kind), (6,), 0, 64)
    model, task = net.model, net.task
    layers = find_layers(model)
    batches = [task.batch("calibration", i, torch.device("cpu")) for i in torch.arange(40).split(15)]
    replay = Replay(model, task, batches, layers, gram=True)
    assert replay.whole == (kind not in ("inplace", "plain"))
    names = [[layer.name for layer in group] for group in replay.groups]
    order = [3, 2, 1, 0] if kind == "backwards" else [0, 1, 2, 3]
    assert names == [[f"blocks.{at}"] for at in order] + [["head"]]
    for number, group in enumerate(replay.groups):
        check(replay.moments(number), moments(model, task, batches, layers, gram=True))
        with torch.no_grad():
            group[0].weight[::2] *= 0.5


@pytest.mark.parametrize("make", [networks.mlp, networks.shared_weight, networks.keyword, networks.positions])
def test_a_model_without_a_stack_has_a_group_a_layer(make):
    net = make()
    layers = find_layers(net.model)
    batches = [net.task.batch("calibration", i, torch.device("cpu")) for i in torch.arange(40).split(15)]
    groups = []
    for group, found in sequentially(net.model, net.task, batches, layers, gram=True):
        check(found, moments(net.model, net.task, batches, layers, gram=True))
        groups.append([layer.name for layer in group])
        with torch.no_grad():
            group[0].weight[::2] *= 0.5
    assert sorted(groups) == sorted([layer.name] for layer in layers)
    if make is networks.keyword:  # it runs its third module, which is its second weight, before the second
        assert groups == [["first"], ["second"], ["last"]]


def test_a_layer_that_no_data_reach_and_inputs_that_are_not_finite_are_refused():
    net = networks.dead_layer()
    batches = [net.task.batch("calibration", torch.arange(20), torch.device("cpu"))]
    with pytest.raises(SecateurError, match="'unused' is never reached"):
        list(sequentially(net.model, net.task, batches, find_layers(net.model), gram=True))
    model, task = build(llama), Tokens()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.inf
    with pytest.raises(SecateurError, match=r"layers\.2\.self_attn\.q_proj' are NaN, infinite"):
        list(sequentially(model, task, batches_of(task), find_layers(model), gram=True))


def test_hooks_go_when_a_pass_fails():
    model, task = build(llama), Tokens()
    replay = Replay(model, task, batches_of(task), find_layers(model), gram=True)
    handle = model.model.layers[2].self_attn.register_forward_hook(lambda *_: 1 / 0)
    replay.moments(1)
    with pytest.raises(ZeroDivisionError):
        replay.moments(2)
    handle.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any("forward" in module.__dict__ for module in model.modules())
    check(replay.moments(2), moments(model, task, batches_of(task), find_layers(model), gram=True))


def test_half_precision_is_summed_in_float32():
    model, task = build(llama).bfloat16(), Tokens()
    for _, found in sequentially(model, task, batches_of(task), find_layers(model), gram=True):
        assert all(sums.gram.dtype == torch.float32 for sums in found.values())


def cnn():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 2, 2), nn.Flatten(), nn.Linear(54, 4)
    )
    return networks.furnish(model, (2, 6, 6), 0, 40)


@pytest.mark.parametrize(
    "make", [llama, gpt2, networks.mlp, networks.shared_weight, networks.inplace_relu, networks.reused, cnn]
)
def test_products_with_the_inputs_of_the_trained_network(make):
    net = None if make in MODELS else make()
    model, task = (build(make), Tokens()) if net is None else (net.model, net.task)
    layers, batches = find_layers(model), batches_of(task, 20)
    trained = Trained({layer.name: layer.weight.detach().clone() for layer in layers})
    before = all_inputs(model, task, batches, layers)
    for layer in layers:
        layer.write(0.5 * layer.weight.detach())
    replay = Replay(model, task, batches, layers, gram=True, trained=trained)
    seen = []
    for number, group in enumerate(replay.groups):
        found, now = replay.moments(number), all_inputs(model, task, batches, layers)
        for layer in group:
            x0, x = (torch.cat(each[layer.name]) for each in (before, now))
            torch.testing.assert_close(found[layer.name].gram, x.T @ x)
            torch.testing.assert_close(found[layer.name].cross, x0.T @ x)
            layer.write(0.25 * trained.weights[layer.name])
            seen.append(layer.name)
    assert sorted(seen) == sorted(trained.weights)


def all_inputs(model, task, batches, layers):
    """The rows of all inputs of each layer, unfolded where it is a convolution, one tensor a call."""
    rows = {layer.name: [] for layer in layers}

    def hear(name, inputs):
        if inputs.patches is None:
            rows[name].append(inputs.tensor.reshape(-1, inputs.tensor.shape[-1]).clone())
        else:
            x = inputs.patches.padded(inputs.tensor)
            rows[name].append(inputs.patches.windows(x).flatten(5).flatten(1, 4).mT.flatten(0, 1).clone())

    with torch.no_grad(), listening(layers, hear):
        for batch in batches:
            task.forward(model.eval(), batch)
    return rows


def test_with_trained_weights_layers_with_the_same_inputs_are_a_group():
    model, task = build(llama), Tokens()
    layers = find_layers(model)
    trained = Trained({layer.name: layer.weight.detach().clone() for layer in layers})
    replay = Replay(model, task, batches_of(task), layers, gram=True, trained=trained)
    first = [[layer.name.split(".")[-1] for layer in group] for group in replay.groups[:4]]
    assert first == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]


def test_experts_have_no_products_with_the_trained_networks_inputs():
    model, task = build(mixtral), Tokens()
    layers = find_layers(model)
    trained = Trained({layer.name: layer.weight.detach().clone() for layer in layers})
    seen = []
    for group, found in sequentially(model, task, batches_of(task), layers, gram=True, trained=trained):
        assert all((found[layer.name].cross is None) == (layer.slot is not None) for layer in group)
        assert len({id(layer.parameter) for layer in group if layer.slot is not None}) <= 1
        seen += [layer.name for layer in group]
    assert sorted(seen) == sorted(trained.weights)


class Sharing(nn.Module):
    """A stack whose elements have a layer in common."""

    def __init__(self):
        super().__init__()
        shared = nn.Linear(6, 6)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"own": nn.Linear(6, 6), "shared": shared}) for _ in range(3)
        )
        self.out = nn.Linear(6, 4)

    def forward(self, x):
        for block in self.blocks:
            x = x + block["own"](block["shared"](x).relu())
        return self.out(x)


def test_decoder_layers_that_share_a_weight_are_not_gone_through_one_by_one():
    net = networks.furnish(Sharing(), (6,), 0, 40)
    layers, batches = find_layers(net.model), batches_of(net.task, 20)
    trained = Trained({layer.name: layer.weight.detach().clone() for layer in layers})
    before = all_inputs(net.model, net.task, batches, layers)
    for layer in layers:
        layer.write(0.5 * layer.weight.detach())
    replay = Replay(net.model, net.task, batches, layers, gram=True, trained=trained)
    order = [layer.name for group in replay.groups for layer in group]
    assert order == ["blocks.0.shared", "blocks.0.own", "blocks.1.own", "blocks.2.own", "out"]
    for number, group in enumerate(replay.groups):
        found, now = replay.moments(number), all_inputs(net.model, net.task, batches, layers)
        for layer in group:
            x0, x = (torch.cat(each[layer.name]) for each in (before, now))
            torch.testing.assert_close(found[layer.name].cross, x0.T @ x)
            layer.write(0.25 * trained.weights[layer.name])


class OneByOne(nn.Module):
    """Passes samples one by one, so that its layers run as often as there are samples."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x):
        return torch.stack([self.second(self.first(sample).tanh()) for sample in x])


@pytest.mark.parametrize("with_trained", [False, True])
def test_layers_that_run_once_a_sample_give_all_of_their_inputs(with_trained):
    net = networks.furnish(OneByOne(), (6,), 0, 40)
    layers, batches = find_layers(net.model), batches_of(net.task, 20)
    trained = Trained({layer.name: layer.weight.detach().clone() for layer in layers})
    replay = Replay(
        net.model, net.task, batches, layers, gram=True, trained=trained if with_trained else None
    )
    for number, group in enumerate(replay.groups):
        found = replay.moments(number)
        for layer in group:
            x = torch.cat(all_inputs(net.model, net.task, batches, layers)[layer.name])
            assert found[layer.name].count == len(x) == net.task.size("calibration")
            torch.testing.assert_close(found[layer.name].gram, x.T @ x)
            if with_trained:
                torch.testing.assert_close(found[layer.name].cross, x.T @ x)


class Chunked(nn.Module):
    """No stack of layers; the first is run on three samples at a time, the last is counted."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, networks.CLASSES)

    def forward(self, x):
        hidden = torch.cat([self.first(part).tanh() for part in x.split(3)])
        return self.last(self.second(hidden).tanh())


def test_whole_passes_end_behind_the_layer_and_miss_none_of_its_calls():
    """Of eight samples and of four: a layer that runs once for one sample may run more often for many."""
    net = networks.furnish(Chunked(), (6,), 0, 40)
    layers = find_layers(net.model)
    batches = [net.task.batch("calibration", part, torch.device("cpu")) for part in torch.arange(20).split(8)]
    expected = moments(net.model, net.task, batches, layers, gram=True)
    replay = Replay(net.model, net.task, batches, layers, gram=True)
    assert replay.whole
    ran = []
    for layer in layers:
        net.model.get_submodule(layer.name).register_forward_hook(
            lambda *_, name=layer.name: ran.append(name)
        )
    for number, group in enumerate(replay.groups):
        ran.clear()
        found = replay.moments(number)
        for layer in group:
            torch.testing.assert_close(found[layer.name].gram, expected[layer.name].gram)
            assert found[layer.name].count == 20
        behind = [layer.name for layer in layers[number + 1 :]]
        assert not set(ran) & set(behind)
