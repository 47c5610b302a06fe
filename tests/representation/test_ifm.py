"""Iterative feature merging: the brief's checks first, then each part."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from paperworks import nets
from paperworks.compress import ChannelGroup, channel_groups, macs
from paperworks.representation import (
    IterativeFeatureMerging,
    MergeResult,
    complexity_curve,
    feature_distance,
    neuron_merging,
)
from paperworks.representation import ifm as code

PICTURE = torch.rand(2, 2, 6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def seeded(make, seed: int = 0) -> nn.Module:
    """A float64 network whose weights, norms included, depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make().double().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                if module.affine:
                    module.weight.data.uniform_(0.5, 2)
                    module.bias.data.normal_()
    return model


def two_layers(activation: nn.Module, norm: str | None = None, seed: int = 0) -> nn.Sequential:
    """conv, perhaps a norm, activation, conv; channel 3 is a duplicate of channel 1."""
    norms = {None: [], "affine": [nn.BatchNorm2d(5)], "bare": [nn.BatchNorm2d(5, affine=False)]}
    model = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(2, 5, 3), *norms[norm], activation, nn.AvgPool2d(2), nn.Conv2d(5, 3, 1)
        ),
        seed,
    )
    duplicate_(model, 1, 3)
    return model


def duplicate_(model: nn.Sequential, *channels: int) -> None:
    """Makes channels of the first hidden layer exact duplicates of the first of them."""
    first, *copies = channels
    readers = [m for m in model if isinstance(m, nn.Conv2d | nn.Linear)][1:]
    for layer in model:
        for tensor in [*layer.parameters(), *layer.buffers()]:
            along = 0 if layer is not readers[0] else 1
            if layer in readers[1:] or tensor.dim() <= along:
                continue
            for other in copies:
                tensor.data.select(along, other).copy_(tensor.data.select(along, first))
        if layer is readers[0]:
            return


def merged(model: nn.Module, example: Tensor = PICTURE, **options) -> MergeResult:
    return IterativeFeatureMerging(**options).merge(model, example)


def difference(a: nn.Module, b: nn.Module, x: Tensor = PICTURE) -> float:
    with torch.no_grad():
        return (a(x) - b(x)).abs().max().item()


def mlp(*sizes: int, seed: int = 0, **options) -> nn.Module:
    return seeded(lambda: nets.MLP(list(sizes), **options), seed)


def vectors(n: int, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, *shape, generator=generator, dtype=torch.float64)


# ---- the checks of the brief


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.1), nn.Identity()])
def test_check_1_exact_duplicates_merge_exactly(activation: nn.Module) -> None:
    model = two_layers(activation)
    result = merged(model, beta=1e-6)
    assert result.complexity == {"0": (4, 5)}
    assert result.groups == {"0": [[0], [1, 3], [2], [4]]}
    assert difference(model, result.model) < 1e-6


def test_check_1_the_variance_of_a_sum() -> None:
    model = two_layers(nn.ReLU(), norm="affine")
    exact, official = merged(model, beta=1e-6, bn="exact"), merged(model, beta=1e-6)
    assert exact.complexity == official.complexity == {"0": (4, 5)}
    assert difference(model, exact.model) < 1e-5
    assert difference(model, official.model) > 0.05
    eps, v = model[1].eps, model[1].running_var[1]
    assert exact.model[1].running_var[1].item() == pytest.approx(4 * (v + eps).item() - eps)
    assert official.model[1].running_var[1].item() == pytest.approx(2 * v.item())


@pytest.mark.parametrize(
    "activation", [nn.GELU(), nn.Tanh(), nn.SiLU(), nn.Sigmoid(), nn.Softplus()]
)
@pytest.mark.parametrize("norm", [None, "affine"])
def test_check_2_without_homogeneity_only_the_mirror_rule_is_exact(
    activation: nn.Module, norm: str | None
) -> None:
    model = two_layers(activation, norm)
    wrong = merged(model, beta=1e-6, rule="sum_mean", bn="exact")
    right, chosen = merged(model, beta=1e-6, rule="mean_sum"), merged(model, beta=1e-6)
    assert wrong.complexity == right.complexity == {"0": (4, 5)}
    assert difference(model, wrong.model) > 1e-3
    assert difference(model, right.model) < 1e-6
    assert difference(chosen.model, right.model) == 0


def hand() -> nn.Sequential:
    """a_1 = (1, 0), a_2 = (1, .1), a_3 = (-1, 0) with equal consumers."""
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    model[0].weight.data = torch.tensor([[1, 0], [1, 0.1], [-1, 0]], dtype=torch.float64)
    model[2].weight.data = torch.ones(1, 3, dtype=torch.float64)
    return model


def test_check_3_by_hand() -> None:
    model, x = hand(), vectors(4, 2)
    (group,) = channel_groups(model, x)
    expected = torch.tensor([[0, 0.01, 4], [0.01, 0, 4.01], [4, 4.01, 0]], dtype=torch.float64)
    torch.testing.assert_close(feature_distance(model, group), expected)
    assert merged(model, x, beta=0.002).complexity == {"0": (3, 3)}  # .01 > .00802
    result = merged(model, x, beta=0.003)
    assert result.groups == {"0": [[0, 1], [2]]}
    expected = torch.tensor([[2, 0.1], [-1, 0]], dtype=torch.float64)
    torch.testing.assert_close(result.model[0].weight.data, expected)
    (merge,) = result.history
    assert (merge.sweep, merge.first, merge.second) == (0, (0,), (1,))
    assert merge.distance == pytest.approx(0.01)
    assert merge.relative == pytest.approx(0.01 / 4.01)
    (group,) = channel_groups(result.model, x)
    assert feature_distance(result.model, group)[0, 1].item() == pytest.approx(9.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_check_4_beta_0_is_the_identity(dtype: torch.dtype) -> None:
    model = seeded(lambda: nets.ConvNet(2, [6, 7], pool_after=[0])).to(dtype)
    result = merged(model, PICTURE.to(dtype), beta=0)
    assert result.history == []
    state, before = result.model.state_dict(), model.state_dict()
    assert state.keys() == before.keys()
    assert all(torch.equal(state[key], before[key]) for key in before)


def test_check_4_beta_1_merges_one_pair_a_layer_and_sweep() -> None:
    model = mlp(4, 6, 3, 2)
    result = merged(model, vectors(2, 4), beta=1)
    assert result.complexity == {"0": (1, 6), "2": (1, 3)}
    assert result.groups == {"0": [[0, 1, 2, 3, 4, 5]], "2": [[0, 1, 2]]}
    places = [(merge.sweep, merge.layer) for merge in result.history]
    assert places == [(0, "0"), (0, "2"), (1, "0"), (1, "2"), (2, "0"), (3, "0"), (4, "0")]


def test_check_5_costs_are_those_of_a_fresh_network() -> None:
    model = seeded(lambda: nets.ConvNet(2, [8, 9, 10], pool_after=[1], hidden=[7]))
    result = merged(model, beta=0.7)
    kept = [count for count, _ in result.complexity.values()]
    assert all(1 <= count < size for count, size in result.complexity.values())
    fresh = nets.ConvNet(2, kept[:3], pool_after=[1], hidden=kept[3:]).double()
    assert result.n_params == sum(p.numel() for p in fresh.parameters())
    assert result.n_params == sum(p.numel() for p in result.model.parameters())
    assert macs(result.model, PICTURE) == macs(fresh, PICTURE)
    assert str(result.model) == str(nn.Sequential(*fresh)).replace("Sequential", "ConvNet", 1)


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(7)), beta=st.sampled_from([0.1, 0.3, 0.6]))
def test_check_6_permuted_channels_merge_alike(order: list[int], beta: float) -> None:
    model = two_hidden = mlp(4, 7, 5, 3)
    permuted = copy.deepcopy(two_hidden)
    permuted[0].weight.data = model[0].weight.data[order]
    permuted[0].bias.data = model[0].bias.data[order]
    permuted[2].weight.data = model[2].weight.data[:, order]
    x = vectors(3, 4)
    one, other = merged(model, x, beta=beta), merged(permuted, x, beta=beta)
    assert one.complexity == other.complexity
    renamed = {frozenset(order[i] for i in group) for group in other.groups["0"]}
    assert renamed == {frozenset(group) for group in one.groups["0"]}
    assert one.groups["2"] == other.groups["2"]
    assert difference(one.model, other.model, x) < 1e-9


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 100), beta=st.floats(0, 1), normalized=st.booleans())
def test_check_7_groups_partition_the_channels(seed: int, beta: float, normalized: bool) -> None:
    model = mlp(4, 9, 6, 3, seed=seed)
    result = merged(model, vectors(2, 4), beta=beta, normalize_counts=normalized)
    for layer, groups in result.groups.items():
        kept, size = result.complexity[layer]
        assert sorted(itertools.chain(*groups)) == list(range(size))
        assert len(groups) == kept == result.model.get_submodule(layer).out_features
        assert groups == sorted(map(sorted, groups))


def recomputed(model: nn.Sequential, beta: float, normalized: bool) -> list[tuple]:
    """The loop of the brief on whole weights, all distances anew each time; no norms."""
    layers = [m for m in model if isinstance(m, nn.Linear)]
    weights = [layer.weight.detach().clone() for layer in layers]
    counts = [torch.ones(len(w), dtype=w.dtype) for w in weights[:-1]]
    members = [[(i,) for i in range(len(w))] for w in weights[:-1]]
    history = []
    for sweep in itertools.count():
        before = len(history)
        for g, c in enumerate(counts):
            n = len(c)
            if n < 2 or sweep >= layers[g].out_features:
                continue
            a = weights[g] / c[:, None] if normalized else weights[g]
            features = torch.cat([a, weights[g + 1].T], 1)
            d = torch.cdist(features, features).square()
            largest = d.max()
            smallest, place = d.fill_diagonal_(math.inf).flatten().min(0)
            if smallest > beta * largest:
                continue
            i, j = sorted(divmod(int(place), n))
            rest = [k for k in range(n) if k not in (i, j)]
            v = weights[g + 1]
            mean = (c[i] * v[:, i] + c[j] * v[:, j]) / (c[i] + c[j])
            weights[g] = torch.cat([weights[g][rest], (weights[g][i] + weights[g][j])[None]])
            weights[g + 1] = torch.cat([v[:, rest], mean[:, None]], 1)
            counts[g] = torch.cat([c[rest], (c[i] + c[j])[None]])
            pair = {members[g][i], members[g][j]}
            joined = tuple(sorted(sum(pair, ())))
            members[g] = [members[g][k] for k in rest] + [joined]
            history.append((sweep, g, pair, smallest.item()))
        if len(history) == before:
            return history
    raise AssertionError


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("beta", [0.4, 0.6, 0.9])
def test_check_8_updates_merge_what_full_recomputation_merges(
    beta: float, normalized: bool
) -> None:
    model = mlp(10, 30, 40, 20, 5)
    result = merged(model, vectors(2, 10), beta=beta, normalize_counts=normalized)
    expected = recomputed(model, beta, normalized)
    layers = list(result.complexity)
    assert len(expected) > 3
    assert [(m.sweep, layers.index(m.layer), {m.first, m.second}) for m in result.history] == [
        (sweep, g, pair) for sweep, g, pair, _ in expected
    ]
    distances = torch.tensor([m.distance for m in result.history])
    torch.testing.assert_close(distances, torch.tensor([e[3] for e in expected]))


def test_check_8_gram_matrices_and_weights_agree_after_every_merge() -> None:
    """A stream that a layer both reads and writes, blocks of pixels, and a norm, too."""
    model = seeded(Stream)
    (group,) = groups = [g for g in channel_groups(model, PICTURE) if len(g.producers) > 1]
    (features,) = code._follow(model, groups, ["sum_mean"], exact=False)
    for _ in range(group.size - 1):
        features.merge_(*features.nearest(normalized=False)[0])
        for side in (features.producing, features.reading):
            slices = [w.left().transpose(0, axis).flatten(1) for w, axis in side.weights]
            full = torch.cat(slices, 1)
            n = len(features.members)
            torch.testing.assert_close(side.gram[:n, :n], full @ full.T)


class Stream(nn.Module):
    """x + f(x) with f one convolution: rows and columns of one weight are the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.inner = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(6 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + torch.relu(self.norm(self.inner(x)))
        return self.head(self.flatten(x))


# ---- merging


class Products(TorchDispatchMode):
    """Counts the multiply-adds of matrix products, those in place included."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "mm" in function.__name__:
            left, right = args[-2:]
            self.macs += left.numel() * right.shape[-1]
        return function(*args, **(kwargs or {}))


def test_a_merge_costs_far_less_than_a_gram_matrix() -> None:
    """n² f for the Gram matrices, then 3 n² of a neighbour for a merge between linear layers."""
    model, x = mlp(200, 30, 40, 100), vectors(1, 200)
    with Products() as start:
        merged(model, x, beta=0)
    with Products() as all_merges:
        result = merged(model, x, beta=1)
    assert len(result.history) == 29 + 39
    grams = 30**2 * (200 + 40) + 40**2 * (30 + 100)
    assert start.macs > grams
    updates = all_merges.macs - start.macs
    assert 0 < updates <= 29 * 3 * 40**2 + 39 * 3 * 30**2
    assert updates < 0.1 * (29 * 30**2 * (200 + 40) + 39 * 40**2 * (30 + 100))


@pytest.mark.parametrize("rule", ["sum_mean", "mean_sum"])
def test_three_duplicates_need_normalized_counts(rule: str) -> None:
    model = two_layers(nn.ReLU())
    duplicate_(model, 1, 3, 4)
    assert merged(model, beta=1e-6, rule=rule).complexity == {"0": (4, 5)}
    result = merged(model, beta=1e-6, rule=rule, normalize_counts=True)
    assert result.groups == {"0": [[0], [1, 3, 4], [2]]}
    assert difference(model, result.model) < 1e-9


def planted(noise: float, copies: int, seed: int = 0) -> tuple[nn.Module, list[list[int]]]:
    """A network whose 6 hidden features are there several times each, in a random order."""
    small = mlp(5, 6, 4, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    of = torch.arange(6).repeat(copies)[torch.randperm(6 * copies, generator=generator)]
    model = mlp(5, 6 * copies, 4)
    for source, target in ((small[0], model[0]), (small[2], model[2])):
        along = 0 if source is small[0] else 1
        target.weight.data = source.weight.data.index_select(along, of) / copies**along
        target.weight.data += noise * torch.randn(target.weight.shape, generator=generator)
    model[0].bias.data, model[2].bias.data = small[0].bias.data[of], small[2].bias.data
    return model, sorted((of == k).nonzero().flatten().tolist() for k in range(6))


@pytest.mark.parametrize("copies", [2, 3])
def test_planted_duplicates_are_recovered(copies: int) -> None:
    x = vectors(50, 5)
    for seed in range(5):
        model, expected = planted(1e-4, copies, seed)
        result = merged(model, x, beta=1e-3, normalize_counts=True)
        assert result.groups == {"0": expected}
        assert result.relative_complexity == {"0": pytest.approx(1 / copies)}
        assert difference(model, result.model, x) < 0.01
        exact, _ = planted(0.0, copies, seed)
        assert difference(exact, merged(exact, x, beta=1e-9, normalize_counts=True).model, x) < 1e-9


def test_counts_weigh_the_means() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)))
    model[0].weight.data = torch.tensor([[1.0, 0], [1, 0.1], [1, 0.5]], dtype=torch.float64)
    model[2].weight.data = torch.tensor([[1.0, 1.0, 4.0]], dtype=torch.float64)
    result = merged(model, vectors(1, 2), beta=1)
    torch.testing.assert_close(result.model[2].weight.data, vectors(1, 1) * 0 + 2)  # (2·1 + 4) / 3
    torch.testing.assert_close(
        result.model[0].weight.data, torch.tensor([[3, 0.6]], dtype=torch.float64)
    )
    mirrored = merged(model, vectors(1, 2), beta=1, rule="mean_sum").model
    torch.testing.assert_close(mirrored[0].weight.data[0], result.model[0].weight.data[0] / 3)
    assert mirrored[2].weight.item() == pytest.approx(6)


def test_a_residual_stream_is_merged_in_all_its_layers() -> None:
    model = seeded(lambda: nets.ResNet(2, [6, 8], [1, 1]))
    stream, inner, *_ = channel_groups(model, PICTURE)
    assert len(stream.producers) == 2
    for name in (*stream.producers, *stream.norms):
        for tensor in model.get_submodule(name).state_dict().values():
            if tensor.dim():
                tensor[5] = tensor[2]
    for name in stream.consumers:
        weight = model.get_submodule(name).weight.data
        weight[:, 5] = weight[:, 2]
    result = merged(model, beta=1e-9, bn="exact")
    assert result.complexity[stream.name] == (5, 6)
    assert result.groups[stream.name][2] == [2, 5]
    assert result.complexity[inner.name] == (6, 6)
    assert difference(model, result.model) < 1e-9


def test_a_layer_that_reads_and_writes_one_stream() -> None:
    model = seeded(Stream)
    for key, tensor in model.state_dict().items():
        if key.startswith("head"):
            if tensor.dim() == 2:
                tensor[:, 4 * 36 :][:, :36] = tensor[:, 36 : 2 * 36]
        elif tensor.dim():
            tensor[4] = tensor[1]
            if key == "inner.weight":
                tensor[:, 4] = tensor[:, 1]
    result = merged(model, beta=1e-9, bn="exact")
    assert result.complexity == {"stem": (5, 6)}
    assert result.model.head.in_features == 5 * 36
    assert difference(model, result.model) < 1e-9


def test_features_are_blocks_of_pixels_behind_a_flattened_picture() -> None:
    model = seeded(
        lambda: nets.ConvNet(2, [5, 6], norm=None, head="flatten", image_size=(6, 6), hidden=[4])
    )
    *_, last, _ = channel_groups(model, PICTURE)
    expected = model[2].weight.data.flatten(1), model[5].weight.data.reshape(4, 6, 36)
    features = torch.cat([expected[0], expected[1].transpose(0, 1).flatten(1)], 1)
    torch.testing.assert_close(
        feature_distance(model, last), torch.cdist(features, features).square()
    )
    counts = torch.tensor([2.0, 1, 1, 1, 1, 1])
    scaled = torch.cat([expected[0] / counts[:, None], features[:, expected[0].shape[1] :]], 1)
    torch.testing.assert_close(
        feature_distance(model, last, counts), torch.cdist(scaled, scaled).square()
    )


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        ([nn.ReLU(), nn.Dropout(0.3)], "sum_mean"),
        ([nn.LeakyReLU(), nn.MaxPool2d(2)], "sum_mean"),
        ([nn.Identity()], "sum_mean"),
        ([nn.BatchNorm2d(4), nn.ReLU()], "sum_mean"),
        ([nn.BatchNorm2d(4, affine=False), nn.ReLU()], "mean_sum"),
        ([nn.ReLU(), nn.Softplus()], "mean_sum"),
        ([nn.GELU()], "mean_sum"),
    ],
)
def test_rule_follows_what_is_between(body: list[nn.Module], rule: str) -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 1), *body, nn.Conv2d(4, 1, 1))
    (group,) = channel_groups(model, PICTURE.float())
    assert code._rule(model, group, "auto") == rule


@pytest.mark.parametrize(
    ("between", "rule"),
    [
        (lambda x: x + x.relu(), "sum_mean"),
        (lambda x: x.relu() + 0.5, "mean_sum"),
        (lambda x: 1 - x.relu(), "mean_sum"),
        (lambda x: x * x.relu(), "mean_sum"),
    ],
)
def test_sums_are_homogeneous_but_not_with_numbers(between, rule: str) -> None:
    model = seeded(lambda: Between(between))
    duplicate_(model.layers, 0, 2)
    (group,) = channel_groups(model, vectors(1, 3))
    assert code._rule(model, group, "auto") == rule
    x = vectors(9, 3)
    result = merged(model, x, beta=1e-9)
    assert result.complexity == {"layers.0": (3, 4)}
    assert difference(model, result.model, x) < 1e-9
    if rule == "mean_sum":
        wrong = merged(model, x, beta=1e-9, rule="sum_mean").model
        assert difference(model, wrong, x) > 1e-4


class Between(nn.Module):
    def __init__(self, between) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1](self.between(self.layers[0](x)))


def test_every_operation_that_channels_may_pass_has_a_rule() -> None:
    """An operation new to `channel_groups` must be sorted into one of the two sets."""
    from paperworks.compress import channels

    passed = channels.ELEMENTWISE | channels.POOLINGS | channels.RESHAPINGS
    assert passed == code.HOMOGENEOUS | code.ELEMENTWISE
    assert not code.HOMOGENEOUS & code.ELEMENTWISE


def test_an_unknown_operation_is_named() -> None:
    group = ChannelGroup("0", 4, ("0",), ("1",), operations=("relu", "sort"))
    with pytest.raises(ValueError, match="'0' go through 'sort'"):
        code._rule(mlp(3, 4, 2), group, "auto")
    assert code._rule(mlp(3, 4, 2), group, "mean_sum") == "mean_sum"


def test_skipped_layers_stay_but_count() -> None:
    model = mlp(4, 8, 8, 3)
    x = vectors(2, 4)
    result = merged(model, x, beta=0.9, skip=["2"])
    assert result.complexity["2"] == (8, 8)
    assert result.groups["2"] == [[i] for i in range(8)]
    assert result.complexity["0"][0] < 8
    first = merged(model, x, beta=0.9).history[0]
    assert result.history[0] == first  # layer 0, whose columns are rows of layer 2


def test_max_ratio_limits_the_sweeps() -> None:
    result = merged(mlp(4, 10, 6, 2), vectors(1, 4), beta=1, max_ratio=0.5)
    assert result.complexity == {"0": (5, 10), "2": (3, 6)}


def test_the_model_is_left_as_it_was_and_modes_are_kept() -> None:
    model = seeded(lambda: nets.ConvNet(2, [6, 8]))
    model[1].train()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    result = merged(model, beta=0.5)
    assert len(result.history) > 1
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [module.training for module in result.model.modules()] == modes
    assert all(p.requires_grad for p in result.model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    model = two_layers(nn.ReLU(), norm="affine").to(dtype)
    result = merged(model, PICTURE.to(dtype), beta=1e-6, bn="exact")
    assert result.complexity == {"0": (4, 5)}
    assert all(p.dtype == dtype for p in result.model.parameters())
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]
    assert difference(model, result.model, PICTURE.to(dtype)) < tolerance


def test_the_result_saves_and_trains() -> None:
    result = merged(seeded(lambda: nets.ConvNet(2, [6, 8])), beta=0.5)
    again = copy.deepcopy(result.model)
    again.load_state_dict(result.model.state_dict())
    again.train()(PICTURE).sum().backward()
    assert all(p.grad is not None for p in again.parameters())


def test_equal_distances_of_zero_everywhere() -> None:
    model = mlp(3, 4, 2)
    for layer in (model[0], model[2]):
        layer.weight.data.fill_(1.0)
        layer.bias.data.fill_(1.0)
    result = merged(model, vectors(1, 3), beta=0, normalize_counts=True)
    assert result.complexity == {"0": (1, 4)}
    assert result.history[0].relative == 0
    assert difference(model, result.model, vectors(5, 3)) < 1e-9


# ---- the curve, and neuron merging


def test_the_curve_is_a_run_for_each_beta() -> None:
    model, x = mlp(4, 8, 6, 2), vectors(3, 4)
    curve = complexity_curve(
        model, x, [0.0, 0.3, 1.0], evaluate=lambda m: difference(m, model, x), bn="exact"
    )
    assert list(curve) == ["beta", "layer", "kept", "size", "params", "metric"]
    for beta, rows in curve.groupby("beta"):
        result = merged(model, x, beta=beta)
        assert dict(zip(rows.layer, zip(rows.kept, rows["size"]))) == result.complexity
        assert set(rows.params) == {result.n_params}
        assert set(rows.metric) == {difference(result.model, model, x)}
    assert complexity_curve(model, x, [0.1]).metric.isna().all()


@pytest.mark.parametrize("norm", [None, "affine"])
def test_neuron_merging_is_exact_for_scaled_copies(norm: str | None) -> None:
    """Row 3 is twice row 1, behind the norm, too: folded without loss, dropped with one."""
    model = two_layers(nn.ReLU(), norm)
    model[0].weight.data[3] *= 3
    model[0].bias.data[3] *= 3
    if norm:  # γ (3 z − 3 μ) / (3 σ) = y: half the scale then makes the smaller one
        model[1].running_mean[3] *= 3
        eps = model[1].eps
        model[1].running_var[3] = 9 * (model[1].running_var[3] + eps) - eps
        model[1].weight.data[3] *= 0.5
        model[1].bias.data[3] *= 0.5
    model[0].weight.data[[0, 2, 4]] *= 10
    with torch.no_grad():
        small = neuron_merging(model, PICTURE, {"0": 4})
        assert small[0].out_channels == 4
        assert difference(model, small) < 1e-9
        dropped = neuron_merging(model, PICTURE, {"0": 4}, threshold=1.0)
        assert difference(model, dropped) > 1e-2


def test_neuron_merging_keeps_the_largest_and_folds_only_what_is_alike() -> None:
    model = hand()
    model[0].weight.data[2] *= 5
    small = neuron_merging(model, vectors(1, 2), {"0": 1})
    torch.testing.assert_close(small[0].weight.data, model[0].weight.data[2:])
    assert small[2].weight.item() == 1  # the others point away
    small = neuron_merging(model, vectors(1, 2), {"0": 2})
    kept = model[0].weight.data[1:]  # the longer of (1, 0) and (1, .1)
    torch.testing.assert_close(small[0].weight.data, kept)
    expected = [1 + 1 / math.sqrt(1.01), 1]
    assert small[2].weight.data[0].tolist() == pytest.approx(expected)


def test_neuron_merging_drops_channels_of_a_stream() -> None:
    model = seeded(lambda: nets.ResNet(2, [6, 8], [1, 1]))
    widths = {group.name: group.size - 2 for group in channel_groups(model, PICTURE)}
    small = neuron_merging(model, PICTURE, widths)
    found = {group.name: group.size for group in channel_groups(small, PICTURE)}
    assert found == widths
    assert neuron_merging(model, PICTURE, {}).state_dict().keys() == model.state_dict().keys()


# ---- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 1.5}, r"beta must be in \[0, 1\], got 1.5"),
        ({"beta": -0.1}, r"beta must be in \[0, 1\], got -0.1"),
        ({"beta": math.nan}, r"beta must be in \[0, 1\], got nan"),
        ({"max_ratio": 0}, "max_ratio must be positive, got 0"),
        ({"rule": "sum"}, "rule must be one of .* got 'sum'"),
        ({"bn": "no"}, "bn must be one of .* got 'no'"),
        ({"skip": "conv"}, "skip must be a collection of names, got the text 'conv'"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IterativeFeatureMerging(**options)


def test_convolutions_with_groups_are_named() -> None:
    model = seeded(lambda: nets.MobileNet(2, 8, 2))
    (name, *_) = [n for n, m in model.named_modules() if getattr(m, "groups", 1) > 1]
    with pytest.raises(ValueError, match=f"'{name}' is a convolution with groups"):
        merged(model)
    groups = channel_groups(model, PICTURE)
    group = next(group for group in groups if group.grouped)
    with pytest.raises(ValueError, match="is a convolution with groups"):
        feature_distance(model, group)
    with pytest.raises(ValueError, match="is a convolution with groups"):
        neuron_merging(model, PICTURE, {group.name: 1})
    rest = merged(model, beta=1, skip=[g.name for g in groups if g.grouped])
    assert rest.complexity[group.name] == (group.size, group.size)
    assert all(rest.complexity[g.name][0] == 1 for g in groups if not g.grouped)


def test_what_cannot_be_merged() -> None:
    x = vectors(2, 4)
    with pytest.raises(ValueError, match="Linear has no channels that may be merged"):
        merged(nn.Linear(4, 2).double(), x)
    model = mlp(4, 5, 2)
    with pytest.raises(ValueError, match="MLP has no channels"):
        merged(model, x, skip=["0"])
    with pytest.raises(ValueError, match="skip: '7' produces no free channels, only 0"):
        merged(model, x, skip=["7"])
    bare = two_layers(nn.ReLU(), norm="bare")
    with pytest.raises(ValueError, match="'1' is a norm without scale"):
        merged(bare, rule="sum_mean")
    model[2].weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match="the weight of '2' is not finite"):
        merged(model, x)


def test_untraceable_models_and_written_sizes_are_named() -> None:
    class Branching(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else x

    class Fixed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[0](x).view(-1, 6))

    with pytest.raises(ValueError, match="cannot trace Branching"):
        merged(Branching(4, 4).double(), vectors(2, 4))
    model = Fixed(nn.Linear(4, 6), nn.Linear(6, 2)).double()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="sizes written into it"):
        merged(model, vectors(2, 4), beta=1)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_attention_and_shared_weights_are_left_alone() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 5)))
    model[2].weight = model[1].weight
    with pytest.raises(ValueError, match="no channels that may be merged"):
        merged(model, vectors(1, 4))
    model = seeded(lambda: Attending())
    result = merged(model, vectors(2, 3, 4), beta=1)
    assert result.complexity == {"mlp.0": (1, 6)}


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        return self.mlp(self.attend(h, h, h)[0])


@pytest.mark.parametrize(
    ("widths", "threshold", "message"),
    [
        ({"0": 0}, 0.0, r"widths\['0'\] must be between 1 and 5, got 0"),
        ({"0": 6}, 0.0, r"widths\['0'\] must be between 1 and 5, got 6"),
        ({"0": 2.5}, 0.0, r"widths\['0'\] must be an integer, got 2.5"),
        ({"9": 2}, 0.0, "widths: '9' produces no free channels, only 0"),
        ({"0": 2}, 1.5, r"threshold must be in \[0, 1\], got 1.5"),
    ],
)
def test_bad_widths(widths: dict, threshold: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        neuron_merging(mlp(4, 5, 2), vectors(1, 4), widths, threshold)


def test_bad_curves_and_counts() -> None:
    model, x = mlp(4, 5, 2), vectors(1, 4)
    with pytest.raises(ValueError, match="betas must hold at least one"):
        complexity_curve(model, x, [])
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\], got 3"):
        complexity_curve(model, x, [0.1, 3])
    (group,) = channel_groups(model, x)
    for counts in (torch.ones(4), torch.zeros(5)):
        with pytest.raises(ValueError, match="counts must be 5 positive numbers"):
            feature_distance(model, group, counts)
