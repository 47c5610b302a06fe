"""Groups by hand on small networks, and networks shrunk against networks masked."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from paperworks import nets
from paperworks.compress import ChannelGroup, channel_groups, footprint, macs, remove_channels


@pytest.fixture(autouse=True)
def seeded():
    """Modules draw their weights from the global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def rand(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def unlike(model):
    """Norms with statistics and factors of their own, in evaluation mode."""
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                tensor.data.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return model.eval()


def silenced(model, groups, dropped):
    """A copy whose consumers ignore the dropped channels: what removal has to equal."""
    model = copy.deepcopy(model)
    for group in groups:
        for name in group.consumers:
            weight = model.get_submodule(name).weight
            weight.data[:, group.positions(dropped[group.name], weight.shape[1])] = 0
    return model


def check_removal(model, x, share=0.5):
    """Removes some channels of every group and compares with the silenced model."""
    model = unlike(model)
    groups = channel_groups(model, x)
    generator = torch.Generator().manual_seed(3)
    masks, dropped = {}, {}
    for group in groups:
        keep = torch.rand(group.size, generator=generator) < share
        keep[0], keep[-1] = True, False
        dropped[group.name] = (~keep).nonzero().flatten()
        for name in group.producers:
            weight = model.get_submodule(name).weight
            rows = keep.repeat_interleave(len(weight) // group.size)
            masks[f"{name}.weight"] = rows.reshape(-1, *[1] * (weight.dim() - 1)).expand_as(weight)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    small = remove_channels(model, masks, x)
    torch.testing.assert_close(small(x), silenced(model, groups, dropped)(x))
    assert footprint(small)["total"] < footprint(model)["total"]
    assert macs(small, x) < macs(model, x)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    return groups, small


class Residual(nn.Module):
    """A stream of four channels that two blocks add to."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1)) for _ in range(2)
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((2, 3)))


class Gated(nn.Module):
    """Squeeze and excitation: the gate multiplies the channels that it reads."""

    def __init__(self):
        super().__init__()
        self.conv, self.down, self.up = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1)
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = self.conv(x)
        gate = self.up(self.down(F.adaptive_avg_pool2d(x, 1)).relu()).sigmoid()
        return self.last(x * gate)


class Views(nn.Module):
    """Flattening as people write it."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(16, 3)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        return self.head(x.view(x.size(0), -1))


def test_a_nested_chain():
    model = nn.Sequential(
        nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Sequential(nn.ReLU(), nn.Dropout())),
        nn.Linear(8, 6),
        nn.GELU(),
        nn.Linear(6, 2),
    )
    assert channel_groups(model, rand(3, 5)) == [
        ChannelGroup("0.0", 8, ("0.0",), ("1",), norms=("0.1",), operations=("ReLU", "Dropout")),
        ChannelGroup("1", 6, ("1",), ("3",), operations=("GELU",)),
    ]
    check_removal(model, rand(3, 5))


def test_flattened_pictures():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5), nn.Tanh(),
        nn.Linear(5, 2),
    )  # fmt: skip
    groups, small = check_removal(model, rand(2, 1, 8, 8))
    assert [(g.size, g.consumers) for g in groups] == [(4, ("4",)), (5, ("6",))]
    assert small[4].in_features == 9 * small[0].out_channels


def test_a_residual_stream_is_one_group():
    groups, _ = check_removal(Residual(), rand(2, 1, 5, 5))
    stream = groups[0]
    assert stream.producers == ("stem.0", "blocks.0.2", "blocks.1.2")
    assert stream.consumers == ("blocks.0.0", "blocks.1.0", "head")
    assert stream.norms == ("stem.1",)
    assert [g.name for g in groups] == ["stem.0", "blocks.0.0", "blocks.1.0"]


def test_a_stream_loses_only_what_all_its_producers_drop():
    model = unlike(Residual())
    keep = torch.tensor([True, False, True, False])
    other = torch.tensor([True, False, False, True])
    masks = {"stem.0.weight": keep, "blocks.0.2.weight": other, "blocks.1.2.weight": other}
    assert remove_channels(model, masks, rand(2, 1, 5, 5)).head.in_features == 3
    del masks["blocks.1.2.weight"]
    assert remove_channels(model, masks, rand(2, 1, 5, 5)).head.in_features == 4


@pytest.mark.parametrize(("groups", "units"), [(8, 8), (4, 4), (2, 2)])
def test_grouped_convolutions_go_group_by_group(groups, units):
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, groups=groups), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 2, 1),
    )  # fmt: skip
    found, small = check_removal(model, rand(2, 1, 8, 8))
    assert [(g.size, g.grouped, g.norms) for g in found] == [(units, ("3",), ("1", "4"))]
    share = small[0].out_channels / 8
    assert share < 1
    assert small[3].groups == groups * share
    assert (small[3].in_channels, small[3].out_channels) == (8 * share, 16 * share)


def test_mobilenet():
    groups, _ = check_removal(nets.MobileNet(1, width=8, blocks=3, expansion=2), rand(2, 1, 8, 8))
    # strides keep one block from being residual, which ends a stream and begins another
    assert [g.size for g in groups] == [8, 16, 16, 8, 16]
    assert [len(g.producers) for g in groups] == [2, 1, 1, 2, 1]
    assert [len(g.grouped) for g in groups] == [0, 1, 1, 0, 1]


def test_gates_and_views():
    groups, _ = check_removal(Gated(), rand(2, 1, 5, 5))
    assert [(g.producers, g.consumers) for g in groups] == [
        (("conv", "up"), ("down", "last")),
        (("down",), ("up",)),
    ]
    (group,), _ = check_removal(Views(), rand(2, 1, 6, 6))
    assert (group.size, group.consumers) == (4, ("head",))


def test_tokens_have_their_channels_last():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    check_removal(model, rand(2, 6, 4))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.again, self.last = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.last(torch.relu(self.again(torch.relu(self.again(self.first(x))))))


def test_a_layer_that_runs_twice_joins_its_ends():
    (group,), _ = check_removal(Twice(), rand(3, 4))
    assert group.producers == ("first", "again")
    assert group.consumers == ("again", "last")


class Mixing(nn.Module):
    """Hidden channels meet something that is not known to leave them apart."""

    def __init__(self, operation, width=6):
        super().__init__()
        self.first, self.last, self.operation = nn.Linear(4, 6), nn.Linear(width, 2), operation

    def forward(self, x):
        return self.last(self.operation(self.first(x)))


@pytest.mark.parametrize(
    ("operation", "width"),
    [
        (nn.Softmax(-1), 6),
        (nn.LayerNorm(6), 6),
        (nn.PReLU(6), 6),
        (lambda h: h[:, :3], 3),
        (lambda h: torch.cat([h, h], 1), 12),
        (lambda h: h.flip(1), 6),
        (lambda h: h + torch.arange(6.0), 6),
        (lambda h: h.reshape(-1, 2, 3).flatten(1), 6),
        (lambda h: h + h.mean(1, keepdim=True), 6),
        (lambda h: h.unsqueeze(1).mean(1), 6),
    ],
)
def test_what_may_mix_channels_pins_them(operation, width):
    model = Mixing(operation, width)
    assert channel_groups(model, rand(3, 4)) == []
    keep = torch.tensor([True] * 5 + [False])
    with pytest.raises(ValueError, match="1 rows of 'first', whose channels must stay"):
        remove_channels(model, {"first.weight": keep}, rand(3, 4))


def test_outputs_inputs_and_shared_weights_stay():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    keep = torch.tensor([True, True, True, False])
    with pytest.raises(ValueError, match="reach the model's output"):
        remove_channels(model, {"2.weight": keep}, rand(3, 4))

    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.last(x + self.inner(x))

    assert channel_groups(Skip(), rand(3, 4)) == []
    model[2].weight = model[0].weight
    assert channel_groups(model, rand(3, 4)) == []


@settings(max_examples=20, deadline=None)
@given(widths=st.lists(st.integers(1, 6), min_size=3, max_size=5), data=st.data())
def test_any_chain_without_some_of_its_channels(widths, data):
    model = nets.MLP(widths, activation="tanh", norm="batch").double().eval()
    x = rand(4, widths[0]).double()
    groups = channel_groups(model, x)
    assert [g.size for g in groups] == widths[1:-1]
    masks, dropped = {}, {}
    for group in groups:
        keep = torch.tensor(data.draw(st.lists(st.booleans(), min_size=group.size,
                                               max_size=group.size)))  # fmt: skip
        keep[0] = True
        masks[f"{group.name}.weight"] = keep
        dropped[group.name] = (~keep).nonzero().flatten()
    small = remove_channels(model, masks, x)
    torch.testing.assert_close(small(x), silenced(model, groups, dropped)(x))
    sizes = [widths[0], *(int(m.sum()) for m in masks.values()), widths[-1]]
    fresh = nets.MLP(sizes, norm="batch").double()
    assert footprint(small) == footprint(fresh)


def test_modes_dtypes_requires_grad_and_names_are_kept():
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(), nn.Linear(6, 2)).bfloat16()
    model[0].weight.requires_grad_(False)
    model[1].eval()
    keep = torch.tensor([True, False] * 3)
    small = remove_channels(model, {"0.weight": keep}, rand(3, 4).bfloat16())
    assert [m.training for m in small] == [True, False, True]
    assert small[0].weight.dtype == torch.bfloat16
    assert [p.requires_grad for p in small.parameters()] == [False, True, True, True]
    assert list(small.state_dict()) == list(model.state_dict())
    torch.testing.assert_close(small[0].weight, model[0].weight[::2])
    torch.testing.assert_close(small[2].weight, model[2].weight[:, ::2])


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else x


class Hardcoded(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.conv(x).view(-1, 16))


def test_bad_input():
    model = nets.MLP([4, 6, 2])
    x = rand(3, 4)
    with pytest.raises(ValueError, match=r"no parameter '1\.weight'"):
        remove_channels(model, {"1.weight": torch.ones(6, dtype=torch.bool)}, x)
    with pytest.raises(ValueError, match=r"shape \(6, 4\) or \(6,\), got \(5,\)"):
        remove_channels(model, {"0.weight": torch.ones(5, dtype=torch.bool)}, x)
    with pytest.raises(ValueError, match="leave no channel of '0'"):
        remove_channels(model, {"0.weight": torch.zeros(6, dtype=torch.bool)}, x)
    with pytest.raises(ValueError, match="cannot trace Branching"):
        channel_groups(Branching(), rand(3, 2))
    keep = torch.tensor([True, True, True, False])
    with pytest.raises(ValueError, match="sizes written into it"):
        remove_channels(Hardcoded(), {"conv.weight": keep}, rand(2, 1, 4, 4))


def test_the_model_and_the_global_generator_are_left_alone():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)

        def forward(self, x):
            return self.last(F.dropout(self.norm(self.first(x)), training=self.training))

    model = Dropping().train()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    assert len(channel_groups(model, {"x": rand(3, 4)})) == 1
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training
