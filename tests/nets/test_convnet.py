import copy

import pytest
import torch
from torch import fx, nn

from paperworks.nets import ConvNet


def kinds(model):
    return [type(layer).__name__ for layer in model]


def test_layers_in_order():
    block = ["Conv2d", "BatchNorm2d", "ReLU"]
    head = ["AdaptiveAvgPool2d", "Flatten", "Linear"]
    assert kinds(ConvNet(1, [4, 8], pool_after=[1])) == block * 2 + ["MaxPool2d", *head]
    bare = ConvNet(1, [4, 8], pool_after=[0], norm=None, head=None, activation="gelu")
    assert kinds(bare) == ["Conv2d", "GELU", "MaxPool2d", "Conv2d", "GELU"]
    deep = ConvNet(1, [4], head="flatten", image_size=(8, 6), hidden=[5], num_classes=3)
    assert kinds(deep) == [*block, "Flatten", "Linear", "ReLU", "Linear"]
    assert [m.weight.shape for m in deep if isinstance(m, nn.Linear)] == [(5, 4 * 48), (3, 5)]


@pytest.mark.parametrize(("norm", "bias", "has"), [
    ("batch", None, False), (None, None, True), ("batch", True, True), (None, False, False),
])  # fmt: skip
def test_a_norm_makes_the_bias_needless(norm, bias, has):
    model = ConvNet(1, [4], norm=norm, bias=bias)
    assert (model[0].bias is not None) == has


def test_shapes():
    x = torch.rand(2, 3, 9, 13)
    assert ConvNet(3, [4, 4], pool_after=[0, 1], num_classes=7)(x).shape == (2, 7)
    assert ConvNet(3, [4, 6], pool_after=[0, 1], head=None)(x).shape == (2, 6, 2, 3)
    flat = ConvNet(3, [4, 6], pool_after=[0, 1], head="flatten", image_size=(9, 13))
    assert flat(x).shape == (2, 10)


def test_it_slices_traces_copies_and_reloads():
    model = ConvNet(1, [4, 4], pool_after=[0]).eval()
    x = torch.rand(2, 1, 8, 8)
    y = model(x)
    assert type(model[:2]) is nn.Sequential
    assert model[:2][0] is model[0]
    assert torch.equal(fx.symbolic_trace(model)(x), y)
    assert torch.equal(copy.deepcopy(model)(x), y)
    other = ConvNet(1, [4, 4], pool_after=[0]).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": []}, r"must be positive integers, at least one of widths, got 1, \[\]"),
        ({"widths": [4, 0]}, r"got 1, \[4, 0\], \[\]"),
        ({"hidden": [2.5]}, r"\[2.5\]"),
        ({"pool_after": [2]}, r"pool_after must be of the convolutions 0 to 1, got \[2\]"),
        ({"norm": "layer"}, "norm must be 'batch' or None, got 'layer'"),
        ({"head": "max"}, "head must be 'average', 'flatten' or None, got 'max'"),
        ({"head": "flatten"}, "needs an image_size of at least 2 pixels a side for 1 poolings"),
        ({"head": "flatten", "image_size": (1, 8)}, r"got \(1, 8\)"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConvNet(**{"in_channels": 1, "widths": [4, 4], "pool_after": [0]} | arguments)
