import copy

import pytest
import torch
from torch import fx, nn

from paperworks.nets import Residual, ResNet


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def convolutions(model):
    return [m for m in model.modules() if isinstance(m, nn.Conv2d)]


def test_resnet_18_and_34_for_small_pictures_have_their_numbers_of_parameters():
    with torch.device("meta"):
        assert parameters(ResNet(3, [64, 128, 256, 512], [2, 2, 2, 2])) == 11_173_962
        assert parameters(ResNet(3, [64, 128, 256, 512], [3, 4, 6, 3])) == 21_282_122


def test_a_block_is_body_plus_shortcut():
    model = ResNet(3, [4, 8], [1, 1]).eval()
    first, second = (m for m in model if isinstance(m, Residual))
    x = torch.rand(2, 4, 6, 6)
    assert isinstance(first.shortcut, nn.Identity)
    assert torch.equal(first(x), first.body(x) + x)
    assert torch.equal(second(x), second.body(x) + second.shortcut(x))
    assert second(x).shape == (2, 8, 3, 3)


@pytest.mark.parametrize("preactivation", [False, True])
@pytest.mark.parametrize("norm", ["batch", None])
@pytest.mark.parametrize(("block", "per_block"), [("basic", 2), ("bottleneck", 3)])
def test_any_kind(block, per_block, norm, preactivation):
    model = ResNet(1, [4, 6], [2, 1], block, preactivation, norm, "gelu", 3)
    x = torch.rand(2, 1, 9, 7)
    assert model(x).shape == (2, 3)
    projections = 2 if block == "bottleneck" else 1
    assert len(convolutions(model)) == 1 + 3 * per_block + projections
    assert all((m.bias is None) == (norm == "batch") for m in convolutions(model))
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert bool(norms) == (norm == "batch")
    body = next(m for m in model if isinstance(m, Residual)).body
    assert isinstance(body[-1], nn.Conv2d) == (preactivation or norm is None)


def test_it_traces_copies_and_reloads():
    model = ResNet(1, [4, 6], [1, 1]).eval()
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(fx.symbolic_trace(model)(x), model(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    other = ResNet(1, [4, 6], [1, 1]).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": []}, r"must be as many positive integers"),
        ({"blocks": [1]}, r"got \[4, 8\], \[1\]"),
        ({"blocks": [1, 0]}, r"\[1, 0\]"),
        ({"block": "wide"}, "block must be 'basic' or 'bottleneck', got 'wide'"),
        ({"norm": "layer"}, "norm must be 'batch' or None, got 'layer'"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**{"in_channels": 1, "widths": [4, 8], "blocks": [1, 1]} | arguments)
