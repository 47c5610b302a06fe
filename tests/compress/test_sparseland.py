"""Checks 1 to 8 are those of the brief: hand-computed values and conserved quantities."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from paperworks import nets
from paperworks.compress import (
    DynamicSparsity,
    GradualPruning,
    Masks,
    Phase,
    layer_densities,
    lottery_ticket,
    macs,
    make_masks,
    prunable,
    prune_at_init,
    scores,
    to_2_4,
    training_macs,
)


@pytest.fixture(autouse=True)
def seeded():
    """Modules draw their weights from the global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


def chain(*shapes, bias=True):
    """Linear layers of weights (out, in), as the brief writes their shapes."""
    return nn.Sequential(*(nn.Linear(n_in, n_out, bias=bias) for n_out, n_in in shapes))


def one_row(*weights, bias=False):
    model = nn.Sequential(nn.Linear(len(weights), 1, bias=bias))
    model[0].weight.data = torch.tensor([weights], dtype=torch.float64)
    return model.double()


def counts(masks):
    return [int(mask.sum()) for mask in masks.values()]


def snapshot(model):
    return copy.deepcopy(model.state_dict())


def unchanged(model, before):
    return all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def convnet(norm=True):
    layers = [nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()]
    layers += [nn.Conv2d(6, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8), nn.ReLU()]
    layers = [layer for layer in layers if norm or not isinstance(layer, nn.BatchNorm2d)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 16, 5))


# --- what is pruned, and how much of each layer ---------------------------------------------------


def test_prunable_are_weights_of_linear_and_conv_layers_once():
    model = nn.Sequential(convnet(), nn.LayerNorm(5), nn.Embedding(3, 4), nn.Linear(5, 5))
    model.append(nn.Linear(5, 5))
    model[4].weight = model[3].weight
    assert list(prunable(model)) == ["0.0.weight", "0.3.weight", "0.7.weight", "3.weight"]
    assert list(prunable(model, exclude=["0.7", "0.0.weight"])) == ["0.3.weight", "3.weight"]
    assert list(prunable(nn.Linear(2, 2))) == ["weight"]
    with pytest.raises(ValueError, match=r"no prunable layers \['0\.1'\]"):
        prunable(model, exclude=["0.1"])
    with pytest.raises(ValueError, match="no prunable weights"):
        prunable(nn.Sequential(nn.ReLU()))


@pytest.mark.parametrize(
    ("density", "expected"), [(0.1, (0.08838, 0.16343, 0.60469)), (0.2, (0.17909, 0.33115, 1))]
)
def test_check_2_er(density, expected):
    model = chain((64, 784), (64, 64), (10, 64))
    for scheme in ("er", "erk"):  # the same without kernels
        found = layer_densities(model, density, scheme)
        assert tuple(found.values()) == pytest.approx(expected, abs=1e-5)
        total = sum(d * w.numel() for d, w in zip(found.values(), prunable(model).values()))
        assert total / (64 * 784 + 64 * 64 + 640) == pytest.approx(density, rel=1e-12)


def test_check_2_uniform_plus():
    model = chain((256, 64), (256, 256), (10, 256))
    found = list(layer_densities(model, 0.03, "uniform+").values())
    assert found == pytest.approx([0.02469, 0.02469, 0.2], abs=1e-5)
    assert list(layer_densities(model, 0.5, "uniform+").values()) == pytest.approx([0.5] * 3)
    first, middle, last = layer_densities(convnet(), 0.3, "uniform+").values()
    assert first == 1
    assert last == pytest.approx(0.3)
    assert 54 + middle * 216 + last * 640 == pytest.approx(0.3 * 910)
    with pytest.raises(ValueError, match="leaves nothing for uniform"):
        layer_densities(convnet(), 0.1, "uniform+")


def test_erk_counts_kernel_sizes_and_er_does_not():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 1))
    er, erk = (layer_densities(model, 0.2, scheme) for scheme in ("er", "erk"))
    assert er["0.weight"] / er["1.weight"] == pytest.approx((12 / 32) / (16 / 64))
    assert erk["0.weight"] / erk["1.weight"] == pytest.approx((18 / 288) / (18 / 64))


@settings(max_examples=50, deadline=None)
@given(
    density=st.floats(0.01, 1),
    scheme=st.sampled_from(["uniform", "er", "erk"]),
    widths=st.lists(st.integers(1, 60), min_size=2, max_size=6),
)
def test_every_scheme_keeps_the_density_exactly(density, scheme, widths):
    shapes = {f"{i}": torch.empty(b, a) for i, (a, b) in enumerate(pairwise(widths))}
    found = layer_densities(shapes, density, scheme)
    sizes = {name: w.numel() for name, w in shapes.items()}
    assert all(0 < d <= 1 for d in found.values())
    kept = sum(found[name] * size for name, size in sizes.items())
    assert kept == pytest.approx(density * sum(sizes.values()))


# --- scores ---------------------------------------------------------------------------------------


def test_check_1_lamp_by_hand():
    model = one_row(2.0, -1.0, 3.0)
    found = scores(model, "lamp")["0.weight"]
    expected = torch.tensor([[4 / 13, 1 / 14, 1]], dtype=torch.float64)
    torch.testing.assert_close(found, expected)


def test_check_1_lamp_is_scale_invariant_and_empties_no_layer():
    model = chain((20, 30), (20, 20), (5, 20))
    before = scores(model, "lamp")
    for factor, layer in zip((1e-3, 1e3, 7.0), model):
        layer.weight.data *= factor
    after = scores(model, "lamp")
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor)
        assert tensor.max() == 1
    masks = make_masks(after, 3 / 1100, "global")
    assert counts(masks) == [1, 1, 1]
    magnitude = make_masks(scores(model, "magnitude"), 3 / 1100, "global")
    assert 0 in counts(magnitude)  # which those factors make magnitude do


def test_lamp_of_zeros_and_of_few_bits():
    model = chain((4, 4)).bfloat16()
    model[0].weight.data.zero_()
    assert scores(model, "lamp")["0.weight"].tolist() == [[0.0] * 4] * 4
    model[0].weight.data.fill_(2.0)
    found = scores(model, "lamp")["0.weight"].flatten()
    torch.testing.assert_close(found, 1 / torch.arange(16.0, 0, -1))


def test_check_5_snip_by_hand():
    w, x, t = (0.5, -2.0, 3.0), (1.0, 2.0, -1.0), 1.5
    model = one_row(*w)
    batch = torch.tensor([x], dtype=torch.float64), torch.tensor([[t]], dtype=torch.float64)
    found = scores(model, "snip", F.mse_loss, batch)["0.weight"][0]
    y = sum(a * b for a, b in zip(w, x))
    expected = [abs(a * b * (y - t)) * 2 for a, b in zip(w, x)]
    assert found.tolist() == pytest.approx(expected)


def test_snip_is_the_gradient_of_the_mask():
    model = convnet().train()
    x, y = randn(6, 1, 4, 4), torch.arange(6) % 5
    found = scores(model, "snip", F.cross_entropy, (x, y))
    c = {name: torch.ones_like(w, requires_grad=True) for name, w in prunable(model).items()}
    masked = {name: w.detach() * c[name] for name, w in prunable(model).items()}
    loss = F.cross_entropy(torch.func.functional_call(copy.deepcopy(model), masked, (x,)), y)
    for tensor, g in zip(found.values(), torch.autograd.grad(loss, list(c.values()))):
        torch.testing.assert_close(tensor, g.abs())


def test_check_6_grasp_on_a_quadratic():
    w = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    B = randn(3, 3).double()
    A = B @ B.T
    model = one_row(*w.tolist())

    def quadratic(output, target):
        return output.T @ A @ output / 2

    batch = torch.eye(3, dtype=torch.float64), torch.zeros(3)
    found = scores(model, "grasp", lambda o, t: quadratic(o, t).squeeze(), batch, temperature=1.0)
    torch.testing.assert_close(found["0.weight"][0], w * (A @ (A @ w)))
    cooler = scores(model, "grasp", lambda o, t: quadratic(o, t).squeeze(), batch, temperature=10.0)
    torch.testing.assert_close(cooler["0.weight"] * 10**4, found["0.weight"])


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_check_4_synflow_conserves_flow_and_restores_the_model(network):
    if network == "mlp":
        model, x = nets.MLP([6, 9, 7, 3], bias=False), torch.zeros(1, 6)
    else:
        model, x = convnet(norm=False), torch.zeros(1, 1, 4, 4)
        for module in model.modules():
            if getattr(module, "bias", None) is not None:
                module.register_parameter("bias", None)
    before = snapshot(model)
    found = scores(model, "synflow", batch=x)
    assert unchanged(model, before)
    positive = copy.deepcopy(model).double()
    for p in positive.parameters():
        p.data.abs_()
    R = positive(torch.ones_like(x).double()).sum().item()
    assert [s.sum().item() for s in found.values()] == pytest.approx([R] * 3, rel=1e-9)


def test_check_4_synflow_leaves_signs_zeros_and_trained_norms_bitwise():
    model = convnet()
    model[0].weight.data[0, 0, 0] = torch.tensor([0.0, -0.0, -1.0])
    model[1].running_mean.normal_(generator=generator())
    model[1].bias.data.normal_(generator=generator())
    before, signs = snapshot(model), torch.signbit(model[0].weight).clone()
    for mode in (True, False):
        model.train(mode)
        found = scores(model, "synflow", batch=torch.zeros(3, 1, 4, 4))
        assert model.training == mode
    assert unchanged(model, before)
    assert torch.equal(torch.signbit(model[0].weight), signs)
    assert all((s >= 0).all() for s in found.values())
    assert model[1].num_batches_tracked == 0


def test_synflow_does_not_overflow_in_a_deep_network():
    model = nn.Sequential(*(nn.Linear(100, 100, bias=False) for _ in range(40)))
    for layer in model:
        layer.weight.data.mul_(20)
    found = scores(model, "synflow", batch=torch.zeros(1, 100))
    assert all(s.isfinite().all() for s in found.values())
    assert max(s.max() for s in found.values()) > torch.finfo(torch.float32).max


@pytest.mark.parametrize("method", ["snip", "grasp"])
def test_scores_on_data_leave_norms_gradients_and_generators_alone(method):
    model = convnet().train()
    before, state = snapshot(model), torch.get_rng_state()
    scores(model, method, F.cross_entropy, (randn(4, 1, 4, 4), torch.arange(4)))
    assert unchanged(model, before)
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("method", ["magnitude", "lamp", "random", "snip", "grasp", "synflow"])
def test_dtypes(method, dtype):
    model = nets.MLP([6, 8, 3]).to(dtype)
    batch = randn(5, 6).to(dtype), torch.arange(5) % 3
    masks = make_masks(scores(model, method, F.cross_entropy, batch), 0.25, "global")
    assert sum(counts(masks)) == 18
    assert {m.dtype for m in masks.values()} == {torch.bool}


def test_random_scores_follow_the_generator():
    model = chain((4, 5), (3, 4))
    one, same = (scores(model, "random", generator=generator(3)) for _ in range(2))
    other = scores(model, "random", generator=generator(4))
    for name, tensor in one.items():
        assert torch.equal(tensor, same[name])
        assert not torch.equal(tensor, other[name])


# --- masks ----------------------------------------------------------------------------------------


def test_check_8_two_of_four():
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(24, 10))
    masks = Masks(model, make_masks(scores(model, "magnitude"), 0.5, structure=(2, 4)))
    for name, mask in masks.items():
        groups = mask.reshape(len(mask), -1, 4)  # along in * kh * kw
        assert (groups.sum(-1) == 2).all()
        w = model.get_parameter(name).abs().reshape(groups.shape)
        kept_least = w.masked_fill(~groups, math.inf).amin(-1)
        assert (w.masked_fill(groups, -math.inf).amax(-1) <= kept_least).all()
    assert masks.density() == 0.5


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("density", [0.02, 0.25, 0.999, 1.0])
def test_counts_are_exact_with_ties_and_zeros(scope, density):
    tied = {"a": torch.zeros(20, 30), "b": torch.ones(40, 10), "c": randn(10, 10).round()}
    masks = make_masks(tied, density, scope)
    assert sum(counts(masks)) == round(density * 1100)
    if scope == "layer":
        assert counts(masks) == pytest.approx([density * 600, density * 400, density * 100], abs=1)


def test_largest_are_kept():
    given_scores = {"a": randn(7, 5), "b": randn(4, 6, seed=1)}
    masks = make_masks(given_scores, 0.3, "global")
    kept = torch.cat([s[masks[n]] for n, s in given_scores.items()])
    dropped = torch.cat([s[~masks[n]] for n, s in given_scores.items()])
    assert kept.min() > dropped.max()
    by_layer = make_masks(given_scores, {"a": 0.2, "b": 0.5})
    assert counts(by_layer) == [7, 12]


def test_channels_are_rows_of_largest_norm():
    w = torch.tensor([[3.0, 0.0], [2.0, 2.0], [2.0, 2.5], [0.1, 0.2]])
    (mask,) = make_masks({"a": w}, 0.5, structure="channel").values()
    assert mask.tolist() == [[True] * 2, [False] * 2, [True] * 2, [False] * 2]
    (mask,) = make_masks({"a": w.reshape(4, 1, 1, 2)}, 0.5, structure="channel").values()
    assert mask.shape == (4, 1, 1, 2)


def test_shuffled_masks_keep_densities_inside_layers():
    model = chain((30, 20), (10, 30))
    masks = Masks(model, make_masks(scores(model, "lamp"), 0.3, "global"))
    shuffled = masks.shuffle(generator(1))
    assert counts(shuffled) == counts(masks)
    for name in masks:
        assert not torch.equal(shuffled[name], masks[name])
        assert torch.equal(shuffled[name], masks.shuffle(generator(1))[name])


def test_masks_by_hand_apply_density_and_state(tmp_path):
    model = chain((2, 2), (2, 2))
    keep = {"0.weight": torch.tensor([[True, False], [False, False]])}
    before = snapshot(model)
    masks = Masks(model, keep)
    assert unchanged(model, before)
    masks.apply()
    assert model[0].weight[0, 0] == before["0.weight"][0, 0]
    assert model[0].weight.count_nonzero() == 1
    assert torch.equal(model[1].weight, before["1.weight"])
    assert (masks.density(), masks.densities()) == (0.25, {"0.weight": 0.25})
    assert Masks(model).density() == 1

    save_file(masks.state_dict(), tmp_path / "masks.safetensors")
    loaded = Masks(chain((2, 2)))
    loaded.load_state_dict(load_file(tmp_path / "masks.safetensors"))
    assert torch.equal(loaded["0.weight"], keep["0.weight"])
    twin, its_masks = copy.deepcopy((model, masks))
    twin[0].weight.data.fill_(1.0)
    its_masks.apply()
    assert twin[0].weight.sum() == 1
    assert model[0].weight.sum() != 1


OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1, nesterov=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_check_7_inactive_weights_are_exactly_zero(name):
    model = nets.MLP([6, 12, 3])
    optimizer = OPTIMIZERS[name](model.parameters())
    x, y = randn(30, 6), torch.arange(30) % 3
    for _ in range(5):  # momenta of all weights, before there are masks
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    masks = Masks(model, make_masks(scores(model, "magnitude"), 0.2, "global"))
    handle = masks.attach(optimizer)
    for _ in range(20):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        for key, mask in masks.items():
            weight = model.get_parameter(key)
            assert (weight[~mask] == 0).all()
            states = optimizer.state[weight].values()
            assert all((v[~mask] == 0).all() for v in states if v.shape == mask.shape)
        optimizer.zero_grad()
    handle.remove()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    assert any((model.get_parameter(key)[~mask] != 0).any() for key, mask in masks.items())


# --- during training ------------------------------------------------------------------------------


def pruned_start(model, optimizer, density=0.1):
    drawn = scores(model, "random", generator=generator(5))
    masks = Masks(model, make_masks(drawn, layer_densities(model, density)))
    masks.attach(optimizer)
    return masks


def test_check_3_rigl_schedule():
    model = chain((4, 4))
    optimizer = torch.optim.Adam(model.parameters())
    rigl = DynamicSparsity(Masks(model), optimizer, alpha=0.3, stop=0.5, total_steps=2000)
    found = [rigl.fraction(t) for t in (0, 250, 500, 750, 1000)]
    assert found == pytest.approx([0.3, 0.25607, 0.15, 0.04393, 0], abs=1e-5)
    assert rigl.fraction(1500) == rigl.fraction(1000)


def test_check_3_gmp_schedule():
    model = chain((20, 20))
    optimizer = torch.optim.Adam(model.parameters())
    pruning = GradualPruning(Masks(model), optimizer, 0.1, start=8, stop=12)
    found = [1 - pruning.density(t) for t in (8, 9, 10, 12)]
    assert found == pytest.approx([0, 0.5203, 0.7875, 0.9], abs=1e-4)
    assert (pruning.density(0), pruning.density(99)) == (1, pytest.approx(0.1))


@pytest.mark.parametrize(("growth", "steps"), [("gradient", 1000), ("random", 200)])
def test_check_7_counts_stay_through_a_thousand_steps(growth, steps):
    model = nets.MLP([8, 20, 3])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-2)
    masks = pruned_start(model, optimizer, 0.2)
    dynamic = DynamicSparsity(
        masks, optimizer, growth, every=10, total_steps=steps, generator=generator()
    )
    x, y = randn(20, 8), torch.arange(20) % 3
    start, first, changes = counts(masks), masks.state_dict(), 0
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        if dynamic.step():
            changes += 1
            assert counts(masks) == start
            for name, mask in masks.items():
                assert not model.get_parameter(name).detach()[~mask].any()
        else:
            optimizer.step()
    assert changes == 3 * steps // 40 - 1
    assert counts(masks) == start
    assert any(not torch.equal(first[name], masks[name]) for name in masks)
    assert masks.density() < dynamic.in_time_rate <= 1


def one_change(growth, weights, gradients, mask, alpha):
    model = one_row(*weights)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    keep = torch.tensor([mask], dtype=torch.bool)
    masks = Masks(model, {"0.weight": keep})
    masks.attach(optimizer)
    weight = model[0].weight
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    with torch.no_grad():
        weight.copy_(torch.tensor([weights], dtype=torch.float64) * keep)
    momenta = optimizer.state[weight]["exp_avg"].clone()
    dynamic = DynamicSparsity(
        masks, optimizer, growth, alpha, every=1, total_steps=10**9, generator=generator()
    )
    weight.grad = torch.tensor([gradients], dtype=torch.float64)
    assert dynamic.step()
    return masks["0.weight"][0], weight.detach()[0], momenta, optimizer.state[weight]["exp_avg"]


def test_rigl_by_hand():
    # of four active, half are dropped (1 and -2); grown: gradient 9 is new, gradient 8 comes back
    mask, weights, _, momenta = one_change(
        "gradient",
        weights=[5.0, 1.0, -2.0, 4.0, 7.0, 7.0],
        gradients=[0.0, 0.1, 8.0, 0.0, 9.0, 1.0],
        mask=[1, 1, 1, 1, 0, 0],
        alpha=0.5,
    )
    assert mask.tolist() == [True, False, True, True, True, False]
    assert weights.tolist() == [5.0, 0.0, -2.0, 4.0, 0.0, 0.0]
    assert (momenta[0] != 0).tolist() == [True, False, True, True, False, False]


def test_fewer_than_one_weight_to_drop_changes_nothing():
    mask, weights, *_ = one_change("gradient", [1.0, 2.0, 3.0], [0.0, 0.0, 9.0], [1, 1, 0], 0.4)
    assert mask.tolist() == [True, True, False]
    assert weights.tolist() == [1.0, 2.0, 0.0]


def test_set_grows_any_dropped_position_alike():
    grown = torch.zeros(200)
    model = nn.Sequential(nn.Linear(200, 1, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    g = generator()
    keep = torch.zeros(1, 200, dtype=torch.bool)
    keep[0, :100] = True
    for _ in range(200):
        model[0].weight.data = torch.arange(200.0, 0, -1)[None]
        masks = Masks(model, {"0.weight": keep})
        masks.apply()
        dynamic = DynamicSparsity(
            masks, optimizer, "random", 0.5, every=1, total_steps=10**9, generator=g
        )
        dynamic.step()
        grown += masks["0.weight"][0]
    assert (grown[:50] == 200).all()  # the larger half of the active ones
    assert grown.sum() == 200 * 100
    expected = 200 * 50 / 150
    assert ((grown[50:] - expected).abs() < 6 * (expected * 2 / 3) ** 0.5).all()


def test_rigl_needs_gradients_and_uses_dense_ones():
    model = nets.MLP([6, 8, 3])
    optimizer = torch.optim.Adam(model.parameters())
    masks = pruned_start(model, optimizer, 0.3)
    dynamic = DynamicSparsity(masks, optimizer, every=1, total_steps=100)
    before = masks.state_dict()
    with pytest.raises(ValueError, match="has no gradient"):
        dynamic.step()
    assert all(torch.equal(before[name], mask) for name, mask in masks.items())
    F.cross_entropy(model(randn(9, 6)), torch.arange(9) % 3).backward()
    gradients = {name: p.grad.abs() for name, p in model.named_parameters()}
    dynamic.step()
    for name, mask in masks.items():
        new = mask & ~before[name]
        assert new.any()
        assert gradients[name][new].min() >= gradients[name][~mask & ~before[name]].max()


def test_without_skip_step_the_optimizer_goes_on():
    model = chain((6, 6))
    optimizer = torch.optim.Adam(model.parameters())
    masks = pruned_start(model, optimizer, 0.5)
    dynamic = DynamicSparsity(masks, optimizer, every=1, total_steps=10, skip_step=False)
    before = masks.state_dict()
    model(randn(4, 6)).square().sum().backward()
    assert not dynamic.step()
    assert not torch.equal(before["0.weight"], masks["0.weight"])


@pytest.mark.parametrize("by_layer", [False, True])
def test_gmp_prunes_what_is_small_and_never_lets_it_back(by_layer):
    model = nets.MLP([8, 20, 3])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    masks = Masks(model)
    masks.attach(optimizer)
    density = {"0.weight": 0.1, "2.weight": 0.4} if by_layer else 0.2
    scope = "layer" if by_layer else "global"
    pruning = GradualPruning(masks, optimizer, density, start=10, stop=50, every=7, scope=scope)
    x, y = randn(20, 8), torch.arange(20) % 3
    before, changed = masks.state_dict(), []
    for t in range(1, 61):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if pruning.step():
            changed.append(t)
        assert all((mask <= before[name]).all() for name, mask in masks.items())
        before = masks.state_dict()
        assert all(not model.get_parameter(n).detach()[~m].any() for n, m in masks.items())
    assert changed == [17, 24, 31, 38, 45, 50]
    if by_layer:
        assert masks.densities() == density
    else:
        assert masks.density() == 0.2
    assert sum(phase.steps for phase in pruning.history) == 60


def test_training_macs_by_hand():
    model = nets.MLP([64, 256, 256, 10])
    x = torch.rand(1, 64)
    dense = 64 * 256 + 256 * 256 + 2560
    assert training_macs(model, x, [Phase(10, {})]) == 30 * dense
    tenth = Masks(model, make_masks(scores(model, "magnitude"), 0.125, "global"))
    found = training_macs(model, x, [Phase(10, tenth.densities())])
    assert found == pytest.approx(30 * 0.125 * dense)
    uniform = dict.fromkeys(prunable(model), 0.25)
    found = training_macs(model, x, [Phase(3, uniform), Phase(1, uniform, dense_gradient=True)])
    assert found == pytest.approx(9 * 0.25 * dense + (2 * 0.25 + 1) * dense)
    assert (
        training_macs(model, torch.rand(7, 64), [Phase(1, {})])
        == 21 * dense
        == 3 * macs(model, torch.rand(7, 64))
    )
    with pytest.raises(ValueError, match=r"no parameter '9\.weight'"):
        training_macs(model, x, [Phase(1, {"9.weight": 0.5})])


def test_history_of_rigl_counts_dense_gradients():
    model = nets.MLP([8, 20, 3])
    optimizer = torch.optim.Adam(model.parameters())
    masks = pruned_start(model, optimizer, 0.2)
    rigl = DynamicSparsity(masks, optimizer, every=10, total_steps=40)
    for _ in range(40):
        model(randn(4, 8)).sum().backward()
        if not rigl.step():
            optimizer.step()
    phases = [(phase.steps, phase.dense_gradient) for phase in rigl.history]
    assert phases == [(9, False), (1, True), (9, False), (1, True), (20, False)]
    assert all(phase.densities == masks.densities() for phase in rigl.history)


# --- before and after training --------------------------------------------------------------------


@pytest.mark.parametrize("method", ["snip", "grasp", "synflow"])
@pytest.mark.parametrize("rounds", [None, 3])
def test_prune_at_init_keeps_the_density_and_the_model(method, rounds):
    model = convnet().train()
    before = snapshot(model)
    loader = [(randn(6, 1, 4, 4, seed=i), torch.arange(6) % 5) for i in range(2)]
    masks = prune_at_init(model, method, 0.07, loader, F.cross_entropy, rounds)
    assert sum(counts(masks)) == round(0.07 * 910)
    assert unchanged(model, before)


def test_one_round_is_one_shot_and_rounds_are_nested():
    model = convnet()
    batch = randn(6, 1, 4, 4), torch.arange(6) % 5
    once = prune_at_init(model, "snip", 0.1, [batch], F.cross_entropy)
    shot = make_masks(scores(model, "snip", F.cross_entropy, batch), 0.1, "global")
    assert all(torch.equal(once[name], mask) for name, mask in shot.items())
    seen = []

    def loss_fn(output, target):
        seen.append(output.detach().clone())
        return F.cross_entropy(output, target)

    prune_at_init(model, "snip", 0.1, [batch], loss_fn, rounds=3)
    assert len(seen) == 3
    assert not torch.equal(seen[0], seen[1])  # the second round sees the pruned network


def test_iterative_synflow_leaves_a_path_where_one_shot_magnitude_does_not():
    model = nets.MLP([10, 50, 50, 50, 4], bias=False)  # biases would feed the last layer alone
    for layer, factor in zip(prunable(model).values(), (1.0, 0.01, 1.0, 1.0)):
        layer.data *= factor
    masks = prune_at_init(model, "synflow", 8 / 5700, [torch.zeros(1, 10)])
    assert min(counts(masks)) > 0
    positive = torch.ones(1, 10)
    for mask in masks.values():
        positive = positive @ mask.float().T
    assert positive.sum() > 0
    assert 0 in counts(make_masks(scores(model, "magnitude"), 8 / 5700, "global"))


def test_a_ticket_is_pruned_after_training_and_rewound_exactly():
    model = nets.MLP([6, 10, 3])
    before, calls = snapshot(model), []

    def train_fn(network, masks, start, stop):
        calls.append((start, stop, masks.density()))
        with torch.no_grad():
            for p in network.parameters():
                p.add_(randn(*p.shape, seed=len(calls)))
        masks.apply()

    ticket, masks = lottery_ticket(train_fn, model, 0.3, rewind_step=2, rounds=2)
    assert unchanged(model, before)
    assert calls == [(0, 2, 1), (2, None, 1), (2, None, pytest.approx(0.3**0.5, abs=0.01))]
    assert masks.density() == 0.3
    trained = []
    for name, p in model.named_parameters():
        early = p + randn(*p.shape, seed=1)
        expected = early * masks[name] if name in masks else early
        assert torch.equal(ticket.get_parameter(name), expected)
        trained.append((name, early + randn(*p.shape, seed=2)))
    kept = make_masks({n: w.detach().abs() for n, w in trained if n in masks}, 0.3**0.5, "global")
    assert all((mask <= kept[name]).all() for name, mask in masks.items())
    rounds = []
    lottery_ticket(lambda *_: rounds.append(1), model, 0.8**3)
    assert len(rounds) == 3


# --- 2:4 kernels and bad input --------------------------------------------------------------------


def test_to_2_4_checks_before_it_needs_hardware():
    layer = nn.Linear(64, 64)
    with pytest.raises(ValueError, match="four consecutive inputs have 4 weights"):
        to_2_4(layer)
    with pytest.raises(ValueError, match="62 inputs not divisible"):
        to_2_4(nn.Linear(62, 64))
    with pytest.raises(TypeError, match="got ReLU"):
        to_2_4(nn.ReLU())
    make = make_masks({"weight": layer.weight.abs()}, 0.5, structure=(2, 4))
    Masks(layer, make).apply()
    with pytest.raises(ValueError, match="CUDA device"):
        to_2_4(layer)


BATCH = (torch.zeros(2, 8), torch.zeros(2, dtype=torch.long))
SCORES = {"a": torch.ones(4, 64), "b": torch.ones(2, 64)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: layer_densities(m, 0.0), "density must be in (0, 1], got 0.0"),
        (lambda m: layer_densities(m, 1.5), "density must be in (0, 1], got 1.5"),
        (lambda m: layer_densities(m, 0.5, "erdos"), "scheme must be"),
        (lambda m: scores(m, "taylor"), "method must be one of magnitude"),
        (lambda m: scores(m, "snip"), "snip needs loss_fn and batch"),
        (lambda m: scores(m, "grasp", F.cross_entropy), "grasp needs loss_fn and batch"),
        (lambda m: scores(m, "synflow"), "synflow needs batch"),
        (lambda m: scores(m, "grasp", F.cross_entropy, BATCH, temperature=0), "temperature"),
        (lambda m: make_masks(SCORES, True), "density must be in (0, 1], got True"),
        (lambda m: make_masks({}, 0.5), "scores is empty"),
        (lambda m: make_masks(SCORES, {"a": 0.5}), "density must have ['a', 'b'], got ['a']"),
        (lambda m: make_masks(SCORES, 0.001), "density below one weight per layer for 'a'"),
        (lambda m: make_masks(SCORES, 0.001, "global"), "density below one weight per layer for 2"),
        (lambda m: make_masks(SCORES, 0.1, structure="channel"), "density below one row per layer"),
        (lambda m: make_masks(SCORES, 1 / 3, structure=(1, 3)), "64 inputs not divisible by m=3"),
        (lambda m: make_masks(SCORES, 0.3, structure=(2, 4)), "the density of 2:4 is 0.5, got 0.3"),
        (lambda m: make_masks(SCORES, 0.5, structure=(4, 2)), "0 < n <= m"),
        (lambda m: make_masks(SCORES, 0.5, structure="block"), "structure must be"),
        (lambda m: make_masks(SCORES, 0.5, "all"), "scope must be"),
        (lambda m: make_masks(SCORES, 0.5, "global", (2, 4)), "scope='global' takes one density"),
        (lambda m: make_masks({"a": torch.tensor([[math.nan]])}, 0.5), "scores['a'] has NaN"),
        (lambda m: Masks(m, {"x": torch.ones(1, dtype=torch.bool)}), "no parameter 'x'"),
        (lambda m: Masks(m, {"0.weight": torch.ones(5, 8)}), "must be bool of shape (5, 8)"),
        (lambda m: Masks(m).assign({}), "masks must be of ['0.weight', '2.weight'], got []"),
        (lambda m: prune_at_init(m, "snip", 0.5, [BATCH]), "snip needs loss_fn and batch"),
        (lambda m: prune_at_init(m, "snip", 0.5, []), "loader is empty"),
        (lambda m: prune_at_init(m, "synflow", 0.5, [BATCH], rounds=0), "rounds must be"),
        (lambda m: lottery_ticket(print, m, 2.0), "density must be in (0, 1]"),
        (lambda m: lottery_ticket(print, m, 0.5, rewind_step=-1), "rewind_step must be"),
        (lambda m: lottery_ticket(print, m, 0.5, rounds=1.5), "rounds must be a positive integer"),
    ],
)  # fmt: skip
def test_bad_input(call, message):
    model = nets.MLP([8, 5, 3])
    before = snapshot(model)
    with pytest.raises(ValueError) as error:
        call(model)
    assert message in str(error.value)
    assert unchanged(model, before)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (DynamicSparsity, {"total_steps": 10, "growth": "any"}, "growth must be"),
        (DynamicSparsity, {"total_steps": 10, "alpha": 0}, "alpha must be"),
        (DynamicSparsity, {"total_steps": 10, "stop": 2}, "stop must be"),
        (DynamicSparsity, {"total_steps": 10, "every": 0}, "every must be"),
        (DynamicSparsity, {"total_steps": 1.5}, "total_steps must be"),
        (GradualPruning, {"density": 0.5, "stop": 0}, "stop must be"),
        (GradualPruning, {"density": 0.5, "stop": 5, "start": 5}, "start must be"),
        (GradualPruning, {"density": 0.95, "stop": 5}, "density 0.95 is above that of masks"),
        (GradualPruning, {"density": -1, "stop": 5}, "density must be in (0, 1]"),
        (GradualPruning, {"density": {"0.weight": 0.5}, "stop": 5}, "densities by layer need"),
    ],
)
def test_bad_schedules(kind, options, message):
    model = nets.MLP([8, 5, 3])
    masks = Masks(model, make_masks(scores(model, "magnitude"), 0.9))
    with pytest.raises(ValueError) as error:
        kind(masks, torch.optim.Adam(model.parameters()), **options)
    assert message in str(error.value)


def test_scores_that_are_not_finite_are_refused():
    model = one_row(1.0, math.inf)
    with pytest.raises(ValueError, match=r"magnitude scores of '0\.weight' are not finite"):
        scores(model, "magnitude")


def test_in_fit_the_mask_change_takes_the_place_of_a_step():
    model = nets.MLP([8, 20, 3])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    masks = pruned_start(model, optimizer, 0.3)
    rigl = DynamicSparsity(masks, optimizer, every=4, total_steps=20)
    batch = randn(30, 8), torch.arange(30) % 3
    nets.fit(
        model,
        [batch],
        lambda network, b: F.cross_entropy(network(b[0]), b[1]),
        optimizer=optimizer,
        steps=20,
        after_backward=[rigl.step],
    )
    taken = optimizer.state[model[0].weight]["step"]
    assert taken == 20 - 3
