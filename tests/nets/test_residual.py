import copy

import pytest
import torch
from torch import fx
from torch.nn import functional as F

from paperworks.nets import ResidualMLP


def test_it_is_the_equation():
    model = ResidualMLP(5, width=4, depth=2, num_classes=3, expansion=3).double()
    x = torch.rand(7, 5, dtype=torch.float64)
    h = x @ model.embed.weight.T + model.embed.bias
    for block in model.blocks:
        z = F.layer_norm(h, (4,), block.norm.weight, block.norm.bias)
        h = h + block.fc2(F.gelu(block.fc1(z)))
        assert block.fc1.weight.shape == (12, 4)
    h = (h - h.mean(1, keepdim=True)) / (h.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(model(x), h @ model.head.weight.T + model.head.bias)


def test_it_traces_copies_and_reloads():
    model = ResidualMLP(5, width=4, depth=2)
    x = torch.rand(2, 3, 5)
    assert model(x).shape == (2, 3, 10)
    assert torch.equal(fx.symbolic_trace(model)(x), model(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    other = ResidualMLP(5, width=4, depth=2)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("name", ["in_features", "width", "depth", "num_classes", "expansion"])
@pytest.mark.parametrize("value", [0, 2.5])
def test_bad_input(name, value):
    arguments = {"in_features": 5, "width": 4, "depth": 2} | {name: value}
    with pytest.raises(ValueError, match=rf"{name} must be a positive integer, got {value}"):
        ResidualMLP(**arguments)
