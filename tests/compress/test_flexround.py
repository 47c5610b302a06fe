"""Checks 1 to 8 are those of the paper's brief: hand-computed values and known optima."""

import copy
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from paperworks.common.autograd import straight_through
from paperworks.compress import (
    AdaQuant,
    AdaRound,
    FlexRound,
    RoundToNearest,
    bake_,
    fit_scale,
    float_state_dict,
    fold_batchnorm,
    integer_state_dict,
    load_tensors,
    quant_range,
    reconstruct_,
    save_tensors,
)

METHODS = [RoundToNearest, FlexRound, AdaRound, AdaQuant]
LEARNED = METHODS[1:]
HALF = (torch.tensor(0.5), torch.tensor(0))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def module(make, seed=0):
    """A module whose weights do not depend on what ran before."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def trained(rounding, weight, steps=30, lr=0.05):
    """Roundings whose parameters have wandered off at random."""
    optimizer = torch.optim.Adam(rounding.parameters(), lr=lr)
    for step in range(steps):
        optimizer.zero_grad()
        (rounding(weight) * randn(*weight.shape, seed=step)).sum().backward()
        optimizer.step()
    return rounding


# --- the equations --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7,), (6, 5), (8, 3, 3, 3), (4, 1, 3)])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("scale", ["mse", "minmax"])
def test_check_1_untrained_is_round_to_nearest_bit_for_bit(shape, symmetric, per_channel, scale):
    w = randn(*shape)
    options = {"symmetric": symmetric, "per_channel": per_channel, "scale": scale}
    nearest = RoundToNearest(w, 3, **options)
    for method in (FlexRound, AdaQuant):
        rounding = method(w, 3, **options)
        assert torch.equal(rounding(w), nearest(w))
        assert torch.equal(rounding.integers(w), nearest.integers(w))


def gradients(w, s1=0.5, s=1.0, bits=4):
    """W_hat and its derivatives by S and s1 themselves, from those by their logarithms."""
    w = torch.tensor([[w]], dtype=torch.float64)
    rounding = FlexRound(w, bits, scale=(torch.tensor(s1), torch.tensor(0))).double()
    rounding.log_S2.data.fill_(math.log(s))
    w_hat = rounding(w)
    w_hat.sum().backward()
    by_log = rounding.log_S2.grad.item(), rounding.log_s1.grad.item()
    return w_hat.item(), rounding.integers(w).item(), by_log[0] / s, by_log[1] / s1, by_log


def test_check_2_gradients_inside_the_range():
    w_hat, n, by_S, by_s1, by_log = gradients(0.9)
    assert (w_hat, n) == (1.0, 2)
    assert (by_S, by_s1) == pytest.approx((-0.9, 0.2))
    assert by_log == pytest.approx((-0.9, 0.1))


def test_check_3_gradients_with_a_factor():
    w_hat, n, by_S, by_s1, _ = gradients(2.0, s=0.8)
    assert (w_hat, n) == (2.5, 5)
    assert (by_S, by_s1) == pytest.approx((-3.125, 0), abs=1e-12)


def test_check_4_gradients_of_a_clipped_weight():
    w_hat, n, by_S, by_s1, _ = gradients(10.0)
    assert (w_hat, n) == (3.5, 7)
    assert (by_S, by_s1) == pytest.approx((0, 7))


@pytest.mark.parametrize(("w", "n"), [(3.6, 7), (-4.1, -8)])
def test_integers_on_the_bounds_pass_their_full_gradient(w, n):
    _, reached, by_S, _, _ = gradients(w)
    assert reached == n
    assert by_S == pytest.approx(-w)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_gradient_equals_that_of_the_smooth_equation_times_the_range_mask(per_channel, symmetric):
    w = randn(5, 4, 3, dtype=torch.float64).requires_grad_()
    rounding = FlexRound(w, 3, per_channel=per_channel, symmetric=symmetric, scale="mse")
    trained(rounding, w)
    upstream = randn(5, 4, 3, seed=9, dtype=torch.float64)
    rounding.zero_grad()
    w.grad = None
    (rounding(w) * upstream).sum().backward()
    s1, S = rounding.scale, math.prod(rounding.factors().values())
    low, high = (bound - rounding.zero_point for bound in quant_range(3, symmetric))
    x = w / (s1 * S)
    inside = (x.round() >= low) & (x.round() <= high)
    assert 0 < inside.sum() < inside.numel()
    n = x.round().clamp(low, high)
    by_log_S = torch.where(inside, -w / S, 0.0) * upstream
    by_log_s1 = s1 * torch.where(inside, n - x, n) * upstream
    torch.testing.assert_close(rounding.log_S2.grad, by_log_S)
    torch.testing.assert_close(rounding.log_s3.grad, by_log_S.sum((1, 2), keepdim=True))
    torch.testing.assert_close(rounding.log_s4.grad, by_log_S.sum((0, 2), keepdim=True))
    torch.testing.assert_close(rounding.log_s1.grad, by_log_s1.sum_to_size(s1.shape))
    torch.testing.assert_close(w.grad, torch.where(inside, upstream / S, 0.0))


def test_hand_written_gradient_equals_autograd_through_the_same_operations():
    w = randn(6, 4)
    rounding = trained(FlexRound(w, 3), w)
    upstream = randn(6, 4, seed=9)
    x = w / (rounding.scale * math.prod(rounding.factors().values()))
    w_hat = rounding.scale * rounding.clip(straight_through(x, x.round()))
    parameters = list(rounding.parameters())
    expected = torch.autograd.grad((w_hat * upstream).sum(), parameters)
    found = torch.autograd.grad((rounding(w) * upstream).sum(), parameters)
    torch.testing.assert_close(found, expected)


def test_check_5_zero_stays_zero_and_adaround_stays_in_its_two_cells():
    w = randn(16, 16)
    w[::2, ::2] = 0
    flexible = trained(FlexRound(w, 4), w)
    assert (flexible(w)[w == 0] == 0).all()
    assert flexible.log_S2.abs().max() > 0.1

    s1 = w.abs().max() / 7
    grid = (s1, torch.tensor(0))
    up_or_down = trained(AdaRound(w, 4, scale=grid), w, steps=200).eval()
    assert ((up_or_down(w) - w).abs() <= s1 * (1 + 1e-6)).all()
    assert not torch.equal(up_or_down(w), RoundToNearest(w, 4, scale=grid)(w))
    beyond = FlexRound(w, 4, scale=grid, learn_scale=False)
    beyond.log_S2.data.fill_(math.log(0.5))
    assert ((beyond(w) - w).abs() > s1).any()


@settings(deadline=None, max_examples=30)
@given(power=st.integers(-20, 20), method=st.sampled_from(METHODS), seed=st.integers(0, 99))
def test_check_6_a_power_of_two_scales_the_weight_and_the_step_exactly(power, method, seed):
    w = randn(6, 5, seed=seed)
    scale, zero_point = fit_scale(w, 3)
    c = 2.0**power
    small = method(w, 3, scale=(scale, zero_point)).eval()
    large = method(c * w, 3, scale=(c * scale, zero_point)).eval()
    large.load_state_dict(small.state_dict() | {"initial_scale": c * scale})
    assert torch.equal(large(c * w), c * small(w))
    torch.testing.assert_close(fit_scale(c * w, 3)[0], c * scale)


def test_check_7_with_identity_inputs_the_optimum_is_rounding_to_nearest():
    layer = module(lambda: nn.Linear(24, 16, bias=False))
    w = layer.weight.detach().clone()
    grid = fit_scale(w, 3, p=2.0, steps=1000)
    best = (RoundToNearest(w, 3, scale=grid)(w) - w).square().sum().item() / 24
    options = {"bits": 3, "batch_size": 24, "quantize_first_last": True, "iters": 200}

    def losses(make, lr):
        layer.weight.data.copy_(w)
        block = reconstruct_(layer, [""], torch.eye(24), rounding=make, lr=lr, **options).blocks[0]
        return block.loss_before, block.loss_after

    assert losses(partial(RoundToNearest, scale=grid), 1.0) == pytest.approx((best, best))
    for method in LEARNED:  # nothing that is learned finds anything better
        before, after = losses(partial(method, scale=grid), 3e-3)
        assert before == pytest.approx(best, rel=1e-4)
        assert after > best * (1 - 1e-3)
    wide = (1.6 * grid[0], grid[1])
    before, after = losses(partial(FlexRound, scale=wide), 1e-2)
    assert before > 1.9 * best
    assert best * (1 - 1e-3) < after < 1.4 * best


def count(rounding):
    return sum(p.numel() for p in rounding.parameters())


def test_check_8_learned_parameters():
    linear, conv, depthwise = torch.ones(6, 5), torch.ones(6, 4, 3, 3), torch.ones(6, 1, 3, 3)
    assert count(FlexRound(linear, 4)) == 30 + 6 + 1
    assert count(FlexRound(conv, 4)) == 216 + 6 + 1 + 4
    assert count(FlexRound(depthwise, 4)) == 54 + 6 + 1
    assert count(FlexRound(torch.ones(6, 4, 3), 4)) == 72 + 6 + 1 + 4
    assert count(FlexRound(linear, 4, per_channel=True)) == 30 + 6 + 6
    assert count(FlexRound(linear, 4, col_factor=True)) == 30 + 6 + 1 + 5
    ablated = FlexRound(conv, 4, learn_scale=False, row_factor=False, col_factor=False)
    assert count(ablated) == 216
    assert set(ablated.factors()) == {"S2"}
    assert count(AdaRound(conv, 4)) == 216
    assert count(AdaQuant(conv, 4)) == 217
    assert count(RoundToNearest(conv, 4)) == 0


def test_without_the_straight_through_estimator_only_the_step_would_learn():
    w = randn(4, 4)
    rounding = FlexRound(w, 3)
    rounding(w).sum().backward()
    assert (rounding.log_S2.grad != 0).any()
    x = w / (rounding.scale * math.prod(rounding.factors().values()))
    bare = (rounding.scale * x.round().clamp(-4, 3)).sum()
    by_S2, by_s1 = torch.autograd.grad(bare, [rounding.log_S2, rounding.log_s1])
    assert (by_S2 == 0).all()
    assert by_s1 != 0


def test_large_weights_travel_farther():
    w = torch.tensor([[0.05, 0.5, 5.0]])
    rounding = FlexRound(w, 8, scale=(torch.tensor(0.05), torch.tensor(0)))
    before = rounding.integers(w)
    optimizer = torch.optim.SGD(rounding.parameters(), lr=0.05)
    rounding(w).sum().backward()
    optimizer.step()
    moved = (rounding.integers(w).int() - before.int()).abs().flatten().tolist()
    assert moved[0] <= moved[1] < moved[2]
    assert moved[2] >= 2


# --- the grid -------------------------------------------------------------------------------------


def test_quant_range():
    assert [quant_range(b) for b in (2, 3, 8)] == [(-2, 1), (-4, 3), (-128, 127)]
    assert [quant_range(b, False) for b in (2, 8)] == [(0, 3), (0, 255)]


def test_minmax_scale_by_hand():
    w = torch.tensor([[-1.0, 2.0], [0.5, 3.0]])
    scale, zero_point = fit_scale(w, 2, method="minmax")
    assert (scale.item(), zero_point.item()) == (2.0, 0)
    scale, zero_point = fit_scale(w, 2, symmetric=False, per_channel=True, method="minmax")
    torch.testing.assert_close(scale, torch.tensor([[1.0], [1.0]]))
    assert zero_point.tolist() == [[1], [0]]


@pytest.mark.parametrize("symmetric", [True, False])
def test_mse_scale_is_the_best_of_all_candidates(symmetric):
    w = randn(2000, seed=3)
    low, high = quant_range(3, symmetric)
    widest = 2 * w.abs().max() / 7 if symmetric else (w.max() - w.min()) / 7
    candidates = [
        (widest * i / 100, z)
        for i in range(1, 101)
        for z in ([0] if symmetric else range(low, high + 1))
    ]

    def error(s, z):
        return (s * (w / s).round().clamp(low - z, high - z) - w).abs().pow(2.4).mean().item()

    scale, zero_point = fit_scale(w, 3, symmetric=symmetric)
    least = min(error(s, z) for s, z in candidates)
    assert error(scale, zero_point.item()) == pytest.approx(least, rel=1e-5)
    assert scale < 0.9 * widest


@pytest.mark.parametrize("sign", [1, -1])
def test_one_sided_weights_have_their_zero_point_at_an_end(sign):
    w = sign * randn(64, seed=4).abs()
    for method in ("mse", "minmax"):
        _, zero_point = fit_scale(w, 4, symmetric=False, method=method)
        assert zero_point == (0 if sign > 0 else 15)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("method", ["mse", "minmax"])
def test_rows_of_zeros_get_a_positive_scale(symmetric, method):
    w = randn(3, 8)
    w[1] = 0
    scale, _ = fit_scale(w, 4, symmetric=symmetric, per_channel=True, method=method)
    assert scale.shape == (3, 1)
    assert (scale >= 1e-8).all()
    for rounding in METHODS:
        w_hat = rounding(w, 4, symmetric=symmetric, per_channel=True, scale=method).eval()(w)
        assert (w_hat[1] == 0).all()


@settings(deadline=None, max_examples=30)
@given(
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    per_channel=st.booleans(),
    method=st.sampled_from(METHODS),
    seed=st.integers(0, 99),
)
def test_integers_and_scale_give_the_weight_back_exactly(
    bits, symmetric, per_channel, method, seed
):
    w = randn(5, 2, 3, seed=seed) + 0.3
    grid = {"symmetric": symmetric, "per_channel": per_channel, "scale": "minmax"}
    rounding = method(w, bits, **grid)
    if list(rounding.parameters()):
        trained(rounding, w, steps=3)
    rounding.eval()
    stored = rounding.integer_weight(w)
    assert stored.integers.dtype == (torch.int8 if symmetric else torch.uint8)
    low, high = quant_range(bits, symmetric)
    assert low <= stored.integers.min()
    assert stored.integers.max() <= high
    assert torch.equal(stored.dequantize(), rounding(w))


def test_integers_are_those_that_are_kept_even_while_learning():
    w = randn(6, 5)
    rounding = AdaRound(w, 3)
    low, high = -4 * rounding.scale, 3 * rounding.scale
    torch.testing.assert_close(rounding(w).detach(), w.clamp(low, high))  # not rounded yet
    integers = rounding.integers(w)
    assert rounding.training
    assert torch.equal(rounding.scale * integers, rounding.eval()(w))
    assert torch.equal(integers, RoundToNearest(w, 3).integers(w))


# --- parametrisations -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(method, dtype):
    w = randn(6, 5).to(dtype)
    rounding = method(w, 4)
    w_hat = rounding(w)
    assert w_hat.dtype == dtype
    assert rounding.scale.dtype == torch.promote_types(dtype, torch.float32)
    if list(rounding.parameters()):
        w_hat.sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in rounding.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_non_contiguous_weights(method):
    w = randn(5, 6, 3).permute(2, 0, 1)
    assert torch.equal(method(w, 3)(w), method(w.contiguous(), 3)(w.contiguous()))


def test_parametrisation_of_any_layer_then_bake_and_copy_and_load():
    make = partial(nn.Sequential, nn.Linear(4, 6), nn.GRU(6, 3), nn.Conv1d(2, 4, 3, groups=2))
    model = module(lambda: copy.deepcopy(make()))
    spots = [(model[0], "weight"), (model[1], "weight_ih_l0"), (model[2], "weight")]
    for layer, name in spots:
        rounding = FlexRound(getattr(layer, name), 3, per_channel=True)
        rounding.log_S2.data.normal_(0, 0.3, generator=generator())
        parametrize.register_parametrization(layer, name, rounding)
    before = [getattr(layer, name).detach().clone() for layer, name in spots]

    twin = copy.deepcopy(model)
    twin[0].parametrizations.weight[0].log_S2.data.zero_()
    assert not torch.equal(twin[0].weight, model[0].weight)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin[0].weight, model[0].weight)

    weights = bake_(model)
    assert list(weights) == ["0.weight", "1.weight_ih_l0", "2.weight"]
    assert not any(parametrize.is_parametrized(m) for m in model.modules())
    for (layer, name), old, stored in zip(spots, before, weights.values()):
        assert torch.equal(getattr(layer, name), old)
        assert torch.equal(stored.dequantize(), old)
    assert bake_(model) == {}


def test_bake_refuses_a_second_parametrisation():
    layer = nn.Linear(3, 2)
    parametrize.register_parametrization(layer, "weight", FlexRound(layer.weight, 4))
    parametrize.register_parametrization(layer, "weight", nn.Identity())
    with pytest.raises(ValueError, match="weight has another parametrisation"):
        bake_(layer)
    assert parametrize.is_parametrized(layer)


def test_adaround_trains_softly_and_ends_hard():
    w = randn(8, 8)
    rounding = AdaRound(w, 4, scale=(w.abs().max() / 7, torch.tensor(0)))
    torch.testing.assert_close(rounding(w), w)
    assert rounding.penalty(0.1) == 0
    x = w / rounding.scale
    h = x - x.floor()
    for progress, beta in [(0.2, 20), (0.6, 11), (1.0, 2)]:
        expected = 0.01 * (1 - (2 * h - 1).abs() ** beta).sum()
        torch.testing.assert_close(rounding.penalty(progress), expected, rtol=1e-3, atol=1e-5)
    optimizer = torch.optim.Adam(rounding.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        rounding.penalty(1.0).backward()
        optimizer.step()
    torch.testing.assert_close(rounding(w), rounding.eval()(w))


# --- reconstruction -------------------------------------------------------------------------------


class Residual(nn.Module):
    """A block with its residual inside, grouped and depthwise convolutions, two inputs."""

    def __init__(self, channels=8):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.grouped = nn.Conv2d(channels, channels, 3, padding=1, groups=2, bias=False)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x, gate=None, *, scale=1.0):
        y = self.depthwise(self.grouped(self.norm(x)).relu())
        return x + scale * (y if gate is None else y * gate)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(inplace=True))
        self.blocks = nn.ModuleList([Residual(), Residual()])
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 4, bias=False)

    def forward(self, x):
        x = self.stem(x)
        x = self.blocks[0](x)
        x = self.blocks[1](x, gate=torch.sigmoid(x), scale=0.5)
        return self.head(self.drop(x).mean((2, 3)))


BLOCKS = ["stem", "blocks.0", "blocks.1", "head"]


@pytest.fixture
def network():
    model = module(Network)
    model(randn(64, 1, 6, 6, seed=5))  # gives the norms statistics
    return model


@pytest.fixture
def pictures():
    low_rank = randn(96, 3, seed=6) @ randn(3, 36, seed=7)
    return low_rank.reshape(96, 1, 6, 6) + 0.1 * randn(96, 1, 6, 6, seed=8)


def output(model, x):
    model.eval()
    with torch.no_grad():
        return model(x)


def test_learned_rounding_beats_nearest_on_a_network_with_everything(network, pictures):
    full = output(network, pictures)
    errors, reports = {}, {}
    for name in ("nearest", "flexround", "adaround", "adaquant"):
        model = copy.deepcopy(network)
        lr = 1e-2 if name != "flexround" else 3e-3
        reports[name] = reconstruct_(
            model, BLOCKS, pictures, rounding=name, bits=3, iters=60, lr=lr
        )
        errors[name] = (output(model, pictures) - full).square().sum().item()
    assert all(errors[name] < 0.6 * errors["nearest"] for name in errors if name != "nearest")
    for block in reports["nearest"].blocks:
        assert block.loss_before == block.loss_after
    assert errors["nearest"] / full[:, 0].numel() == pytest.approx(
        reports["nearest"].blocks[-1].loss_after, rel=1e-4
    )
    assert str(reports["flexround"]).splitlines()[0].split() == [
        "block", "bits", "loss", "before", "loss", "after",
    ]  # fmt: skip


def test_first_and_last_layer_get_8_bits_and_everything_else_stays(network, pictures):
    before = copy.deepcopy(network.state_dict())
    network.train()
    network.blocks[0].eval()
    modes = [m.training for m in network.modules()]
    parameters = dict(network.named_parameters())
    report = reconstruct_(network, BLOCKS, pictures, bits=2, iters=3)
    assert [m.training for m in network.modules()] == modes
    bits = {key: b for block in report.blocks for key, b in block.bits.items()}
    assert set(report.weights) == set(bits)
    assert {key for key, b in bits.items() if b == 8} == {"stem.0.weight", "head.weight"}
    for key, value in network.state_dict().items():
        if key in bits:
            assert value.unique().numel() <= 2 ** bits[key]
            assert torch.equal(value, report.weights[key].dequantize())
        else:
            assert torch.equal(value, before[key])  # batch norm statistics too
    assert all(parameters[key] is p for key, p in network.named_parameters())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_targets_come_from_the_full_network_and_inputs_from_the_rounded_one():
    model = module(lambda: nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6, bias=False)))
    x = randn(32, 6)
    full = copy.deepcopy(model)
    report = reconstruct_(
        model, ["0", "1"], x, rounding="nearest", bits=2, quantize_first_last=True
    )
    target = output(full, x)
    rounded_prefix = output(model[0], x)
    second = RoundToNearest(full[1].weight, 2)(full[1].weight).detach()
    expected = (rounded_prefix @ second.T - target).square().sum(1).mean()
    assert report.blocks[1].loss_before == pytest.approx(expected.item(), rel=1e-5)


def test_embedding_counts_as_first_layer_and_several_inputs_may_be_named():
    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(11, 8)
            self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16) for _ in range(2))
            self.head = nn.Linear(8, 11)

        def forward(self, tokens, mask=None):
            x = self.embed(tokens).transpose(0, 1)
            for layer in self.layers:
                x = layer(x, src_key_padding_mask=mask)
            return {"logits": self.head(x)}

    model = module(Language)
    tokens = torch.randint(11, (10, 5), generator=generator())
    batches = [
        {"tokens": t, "mask": torch.zeros_like(t, dtype=torch.bool)} for t in tokens.split(4)
    ]
    report = reconstruct_(model, ["layers.0", "layers.1"], batches, bits=4, iters=5, batch_size=3)
    assert {b for block in report.blocks for b in block.bits.values()} == {4}
    assert "layers.0.linear1.weight" in report.weights
    assert "layers.0.self_attn.out_proj.weight" in report.weights
    one = module(Language)
    same = reconstruct_(
        one,
        ["layers.0", "layers.1"],
        {"tokens": tokens, "mask": torch.zeros_like(tokens, dtype=torch.bool)},
        bits=4,
        iters=5,
        batch_size=3,
    )
    assert [b.loss_after for b in report.blocks] == [b.loss_after for b in same.blocks]


def test_calibration_may_come_in_any_form(network, pictures):
    labels = torch.zeros(96)
    forms = [
        pictures,
        list(pictures.split(40)),
        iter(zip(pictures.split(7), labels.split(7))),
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(pictures, labels), 50),
        [{"x": pictures}],
    ]
    results = []
    for form in forms:
        model = copy.deepcopy(network)
        reconstruct_(model, BLOCKS, form, bits=3, iters=2, generator=generator(3))
        results.append(model.state_dict())
    for result in results[1:]:
        assert all(torch.equal(result[key], results[0][key]) for key in result)


def test_generator_decides_and_the_global_one_is_left_alone(network, pictures):
    state = torch.get_rng_state()
    models = [copy.deepcopy(network) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2)):
        reconstruct_(
            model, ["blocks.0"], pictures, bits=2, iters=20, lr=0.1, generator=generator(seed)
        )
    assert torch.equal(torch.get_rng_state(), state)
    one, same, other = (m.blocks[0].grouped.weight for m in models)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_networks_of_other_dtypes(network, pictures, dtype):
    model = network.to(dtype)
    report = reconstruct_(model, BLOCKS, pictures.to(dtype), bits=3, iters=30)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert report.blocks[2].loss_after < report.blocks[2].loss_before
    for key, stored in report.weights.items():
        assert torch.equal(model.get_parameter(key), stored.dequantize().to(dtype))


def test_the_papers_setting_for_language_models(network, pictures):
    make = partial(FlexRound, per_channel=True, symmetric=False, scale="minmax")
    report = reconstruct_(network, BLOCKS, pictures, rounding=make, bits=4, iters=30)
    stored = report.weights["blocks.0.grouped.weight"]
    assert stored.integers.dtype == torch.uint8
    assert stored.scale.shape == stored.zero_point.shape == (8, 1, 1, 1)


def test_after_block_sees_the_trained_roundings(network, pictures):
    seen = {}

    def look(name, roundings):
        seen[name] = {key: r.factors()["S2"] for key, r in roundings.items()}

    reconstruct_(network, BLOCKS, pictures, bits=3, iters=5, after_block=look)
    assert list(seen) == BLOCKS
    assert (seen["blocks.1"]["blocks.1.grouped.weight"] != 1).any()


def test_a_user_s_own_rounding(network, pictures):
    class Stochastic(RoundToNearest):
        def levels(self, weight):
            noise = torch.rand(weight.shape, generator=generator()).to(weight)
            return self.clip((weight / self.scale + noise).floor())

    report = reconstruct_(network, ["blocks.0"], pictures, rounding=Stochastic, bits=4)
    assert report.blocks[0].loss_after > 0


def test_integers_survive_a_file(network, pictures, tmp_path):
    report = reconstruct_(network, BLOCKS, pictures, bits=3, iters=5)
    save_tensors(integer_state_dict(network, report.weights), tmp_path / "net.safetensors")
    stored = load_tensors(tmp_path / "net.safetensors")
    grouped = stored["blocks.0.grouped.weight.integers"]
    assert len(grouped) == network.blocks[0].grouped.weight.numel() * 3 // 8
    assert "blocks.0.grouped.weight" not in stored
    fresh = module(Network, seed=1)
    fresh.load_state_dict(float_state_dict(stored))
    assert torch.equal(output(fresh, pictures), output(network, pictures))

    network.head.weight.data += 1
    with pytest.raises(ValueError, match=r"head.weight was changed since"):
        integer_state_dict(network, report.weights)
    with pytest.raises(ValueError, match=r"no weight 'head\.weight'"):
        integer_state_dict(network.stem, {"head.weight": report.weights["head.weight"]})
    del stored["head.weight.scale"]
    with pytest.raises(ValueError, match=r"lack .*head\.weight\.scale"):
        float_state_dict(stored)


def test_the_penalty_of_adaround_takes_part_in_training(network, pictures):
    class Undecided(AdaRound):
        def penalty(self, progress):
            return 0.0

    def share_in_between(rounding):
        shares = []

        def look(name, roundings):
            for key, trained in roundings.items():
                w = network.get_parameter(key)
                gap = (trained.train()(w) - trained.eval()(w)).abs() / trained.scale
                shares.append((gap > 0.1).float().mean().item())

        options = {"bits": 3, "iters": 60, "lr": 0.3, "after_block": look}
        reconstruct_(copy.deepcopy(network), ["blocks.0"], pictures, rounding=rounding, **options)
        return sum(shares)

    assert share_in_between(AdaRound) < 0.6 * share_in_between(Undecided)


def test_the_rate_falls_to_zero_along_half_a_cosine(network, pictures, monkeypatch):
    rates = []
    step = torch.optim.Adam.step

    def watched(self, *args):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    reconstruct_(network, ["head"], pictures, bits=4, iters=20, lr=0.1)
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * k / 20)) for k in range(20)])


# --- folding --------------------------------------------------------------------------------------


def statistics(model, *shape):
    """Lets the norms see data, so that folding them is no trivial matter."""
    model.train()
    for seed in range(3):
        model(2 * randn(*shape, seed=seed) + 0.5)
    return model


def test_folding_keeps_the_output_and_removes_the_norms():
    class Tower(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.Conv2d(3, 8, 3, groups=1, bias=False)
            self.norm = nn.BatchNorm2d(8)
            self.wise = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.ReLU6())
            self.out = nn.Sequential(nn.Linear(8, 5), nn.BatchNorm1d(5))

        def forward(self, x):
            x = self.norm(self.down(x)).relu_()
            return self.out((x + nn.functional.pad(self.wise(x), [1] * 4)).mean((2, 3)))

    model = statistics(module(Tower), 16, 3, 8, 8)
    before = copy.deepcopy(model.state_dict())
    x = randn(4, 3, 8, 8, seed=9)
    folded = fold_batchnorm(model, (x, "label"))
    assert not any("BatchNorm" in type(m).__name__ for m in folded.modules())
    assert folded.training
    assert model.training
    torch.testing.assert_close(output(folded, x), output(model, x), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_folding_is_not_misled_by_tensors_that_are_gone():
    class Temporaries(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)

        def forward(self, x):
            for _ in range(20):  # one of these, read twice, leaves its id to what conv returns
                x = (x + 1) - 1
                x = x * x.sigmoid()
            return self.norm(self.conv(x))

    folded = fold_batchnorm(module(Temporaries), randn(5, 4, 4))
    assert isinstance(folded.norm, nn.Identity)


def test_norms_that_cannot_be_folded_stay():
    class Awkward(nn.Module):
        def __init__(self):
            super().__init__()
            self.tapped, self.tapped_norm = nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)
            self.twice, self.twice_norm = nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)
            self.last, self.last_norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
            self.given, self.given_norm = nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)
            self.live, self.live_norm = nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4, affine=False)
            self.live_norm.running_mean = self.live_norm.running_var = None
            self.before, self.after = nn.BatchNorm1d(4), nn.Conv1d(4, 4, 1)

        def forward(self, x):
            tapped = self.tapped(x)
            x = self.tapped_norm(tapped) + tapped
            x = self.twice_norm(self.twice(self.twice(x)))
            x = self.last_norm(self.last(x))  # normalises dimension 1, the layer maps dimension 2
            x = self.live_norm(self.live(x))
            x = self.after(self.before(x))
            given = self.given(x)
            return self.given_norm(given), given

    model = statistics(module(Awkward), 16, 4, 4)
    x = randn(5, 4, 4, seed=9)
    folded = fold_batchnorm(model, x)
    assert sum("BatchNorm" in type(m).__name__ for m in folded.modules()) == 6
    for one, other in zip(output(folded, x), output(model, x)):
        assert torch.equal(one, other)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 9, 2.5, True])
def test_bits(bits, network, pictures):
    for call in (
        lambda: quant_range(bits),
        lambda: fit_scale(torch.ones(2), bits),
        lambda: FlexRound(torch.ones(2, 2), bits),
        lambda: reconstruct_(network, BLOCKS, pictures, bits=bits),
    ):
        with pytest.raises(ValueError, match=r"bits must be in \[2, 8\], got"):
            call()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite(value):
    w = torch.ones(3, 2)
    w[1, 1] = value
    for method in METHODS:
        for scale in ("mse", HALF):
            with pytest.raises(ValueError, match="weight contains non-finite values"):
                method(w, 4, scale=scale)


def test_refused_arguments_of_a_rounding():
    w = torch.ones(3, 2)
    with pytest.raises(TypeError, match="floating point"):
        fit_scale(w.int(), 4)
    with pytest.raises(ValueError, match="method must be"):
        fit_scale(w, 4, method="best")
    with pytest.raises(ValueError, match="p and steps"):
        fit_scale(w, 4, steps=0)
    with pytest.raises(ValueError, match="nothing to round"):
        fit_scale(w[:0], 4)
    with pytest.raises(ValueError, match="col_factor must be"):
        FlexRound(w, 4, col_factor="yes")
    with pytest.raises(ValueError, match="has no columns"):
        FlexRound(w[0], 4, col_factor=True)
    for scale, zero_point, message in [
        (0.0, 0, "positive and finite"),
        (torch.ones(3, 1), 0, "zero_point has shape"),
        (torch.ones(2, 1), torch.zeros(2, 1), "scale must have shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            FlexRound(w, 4, scale=(torch.as_tensor(scale), torch.as_tensor(zero_point)))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"calibration": []}, ValueError, "calibration is empty"),
        ({"calibration": torch.ones(0, 1, 6, 6)}, ValueError, "calibration is empty"),
        ({"calibration": ["text"]}, TypeError, "a batch must be a tensor"),
        (
            {"calibration": [torch.ones(2, 1, 6, 6), torch.ones(2, 1, 5, 5)]},
            ValueError,
            "one shape",
        ),
        ({"calibration": {"x": torch.ones(2), "y": torch.ones(3)}}, ValueError, "lengths"),
        ({"blocks": ["blocks.x"]}, ValueError, "block 'blocks.x' not found: did you mean blocks"),
        ({"blocks": []}, ValueError, "blocks is empty"),
        ({"blocks": ["stem", "stem"]}, ValueError, "named twice"),
        ({"blocks": ["stem", "stem.0"]}, ValueError, "'stem.0' lies inside block 'stem'"),
        ({"blocks": ["head", "stem"]}, ValueError, r"execution order, which is \['stem', 'head'\]"),
        ({"blocks": ["blocks"]}, ValueError, "'blocks' did not run"),
        ({"blocks": ["drop"]}, ValueError, "'drop' has nothing to round"),
        ({"rounding": "up"}, ValueError, "rounding must be 'flexround', 'adaround'"),
        ({"iters": 0}, ValueError, "iters must be positive"),
        ({"lr": -1.0}, ValueError, "lr must be positive"),
        ({"lr": 1e30}, ValueError, "became nan: lower lr"),
    ],
)
def test_refused_calls_leave_the_model_alone(network, pictures, change, error, message):
    before = copy.deepcopy(network.state_dict())
    call = {"blocks": BLOCKS, "calibration": pictures, "iters": 5} | change
    with pytest.raises(error, match=message):
        reconstruct_(network, **call)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(m.training for m in network.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_an_error_in_the_last_block_leaves_the_model_alone(network, pictures):
    before = copy.deepcopy(network.state_dict())

    def interrupt(name, roundings):
        if name == "head":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reconstruct_(network, BLOCKS, pictures, bits=2, iters=2, after_block=interrupt)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_weights_that_cannot_be_rounded_are_named(network, pictures):
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match=r"shared by \['0.weight', '1.weight'\]"):
        reconstruct_(tied, ["0", "1"], torch.ones(2, 4))
    nn.utils.parametrizations.weight_norm(network.blocks[0].grouped)
    with pytest.raises(ValueError, match=r"'blocks.0.grouped.weight' is no plain parameter"):
        reconstruct_(network, BLOCKS, pictures)
    network.head.weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"head.weight: weight contains non-finite"):
        reconstruct_(network, ["head"], pictures)


def test_blocks_with_a_memory_or_run_twice_are_refused():
    class Counting(nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x) * self.calls

    with pytest.raises(ValueError, match="block '0' gives something else when called again"):
        reconstruct_(nn.Sequential(Counting(3, 3)), ["0"], torch.ones(4, 3))

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(self.layer(x))

    with pytest.raises(ValueError, match="block 'layer' ran 2 times"):
        reconstruct_(Twice(), ["layer"], torch.ones(4, 3))
    reconstruct_(Twice(), [""], torch.ones(4, 3), iters=2)  # inside a block it is fine
