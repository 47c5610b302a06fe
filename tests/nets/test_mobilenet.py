"""The small MobileNetV2."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

from paperworks.nets import MobileNet
from paperworks.nets.mobilenet import InvertedResidual


def seeded():
    return torch.Generator().manual_seed(0)


def test_the_number_of_parameters():
    width, expansion, blocks, classes = 8, 4, 3, 10
    hidden = width * expansion
    stem = 9 * width + 2 * width
    block = width * hidden + 2 * hidden + 9 * hidden + 2 * hidden + hidden * width + 2 * width
    head = width * classes + classes
    net = MobileNet(1, width, blocks, expansion, num_classes=classes)
    assert sum(p.numel() for p in net.parameters()) == stem + blocks * block + head


def test_a_block_is_the_equation():
    block = InvertedResidual(3, 3, expansion=2, norm=None, activation="relu").double()
    x = torch.rand(2, 3, 5, 5, generator=seeded(), dtype=torch.float64)
    expand, depthwise, project = (m.conv for m in (block.expand, block.depthwise, block.project))
    h = torch.einsum("oi,nihw->nohw", expand.weight[..., 0, 0], x) + expand.bias[:, None, None]
    h = nn.functional.pad(h.relu(), [1] * 4).unfold(2, 3, 1).unfold(3, 3, 1)
    h = torch.einsum("nchwij,cij->nchw", h, depthwise.weight[:, 0])
    h = (h + depthwise.bias[:, None, None]).relu()
    y = torch.einsum("oi,nihw->nohw", project.weight[..., 0, 0], h) + project.bias[:, None, None]
    torch.testing.assert_close(block(x), x + y)


def test_a_block_whose_projection_is_zero_is_the_identity():
    block = InvertedResidual(4, 4, expansion=3)
    nn.init.zeros_(block.project.norm.weight)
    x = torch.rand(2, 4, 5, 5, generator=seeded())
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(("out", "stride"), [(5, 1), (4, 2)])
def test_no_residual_where_shapes_differ(out, stride):
    block = InvertedResidual(4, out, expansion=3, stride=stride)
    nn.init.zeros_(block.project.norm.weight)
    assert not block(torch.rand(2, 4, 5, 5, generator=seeded())).any()


def test_expansion_one_has_no_expanding_step():
    block = InvertedResidual(4, 4, expansion=1)
    assert isinstance(block.expand, nn.Identity)
    assert block.depthwise.conv.groups == 4


@settings(max_examples=20, deadline=None)
@given(
    channels=st.sampled_from([1, 3]),
    blocks=st.integers(1, 4),
    size=st.integers(4, 17),
    norm=st.sampled_from(["batch", None]),
)
def test_any_picture_size(channels, blocks, size, norm):
    net = MobileNet(channels, 4, blocks, 2, norm, num_classes=7)
    assert net(torch.zeros(2, channels, size, size)).shape == (2, 7)
    assert len(net.blocks) == blocks
    assert net.get_submodule(f"blocks.{blocks - 1}").expand.conv.bias is not None or norm


def test_strides():
    def resolution(**arguments):
        net = MobileNet(1, 4, **arguments)
        return net.blocks(net.stem(torch.zeros(2, 1, 8, 8))).shape[-1]

    assert resolution(blocks=4) == 4
    assert resolution(blocks=2, strides=[1, 1]) == 8
    assert resolution(blocks=3, strides=[2, 1, 2]) == 2
    assert resolution(blocks=1, strides=[1], stem_stride=2) == 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    net = MobileNet(1, 4, 2).to(dtype)
    assert net(torch.zeros(2, 1, 8, 8, dtype=dtype)).dtype == dtype


def test_it_traces_copies_reloads_and_trains():
    net = MobileNet(1, 4, 2, activation="hardswish").eval()
    x = torch.rand(3, 1, 8, 8, generator=seeded())
    assert torch.equal(fx.symbolic_trace(net)(x), net(x))
    assert torch.equal(copy.deepcopy(net)(x), net(x))
    twin = MobileNet(1, 4, 2, activation="hardswish").eval()
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(x), net(x))
    net.train()(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 0}, "in_channels must be a positive integer"),
        ({"in_channels": 1, "width": 2.5}, "width must be a positive integer"),
        ({"in_channels": 1, "blocks": 0}, "blocks must be a positive integer"),
        ({"in_channels": 1, "expansion": -1}, "expansion must be a positive integer"),
        ({"in_channels": 1, "blocks": 2, "strides": [1]}, "strides must be 2 positive integers"),
        ({"in_channels": 1, "blocks": 1, "strides": [0]}, "strides must be 1 positive integers"),
        ({"in_channels": 1, "norm": "layer"}, "norm must be 'batch' or None"),
        ({"in_channels": 1, "activation": "relu7"}, "activation must be one of"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        MobileNet(**arguments)
