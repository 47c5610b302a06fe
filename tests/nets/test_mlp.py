"""The multilayer perceptron."""

import copy

import pytest
import torch
from torch import fx, nn

from paperworks.nets import MLP, make_activation


def test_by_hand():
    net = MLP([2, 2, 1])
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 2.0], [-1.0, 0.0]]))
        net[0].bias.copy_(torch.tensor([0.5, 0.0]))
        net[2].weight.copy_(torch.tensor([[2.0, 3.0]]))
        net[2].bias.fill_(-1.0)
    # relu(1 + 4 + .5, -1) = (5.5, 0); 2 * 5.5 - 1
    assert net(torch.tensor([[1.0, 2.0]])).item() == 10.0


def test_layers_in_order():
    net = MLP([4, 8, 6, 3], activation="tanh", norm="layer", dropout=0.1, bias=False)
    kinds = [type(layer).__name__ for layer in net]
    assert kinds == ["Linear", "LayerNorm", "Tanh", "Dropout"] * 2 + ["Linear"]
    assert [layer.bias for layer in net if isinstance(layer, nn.Linear)] == [None] * 3


def test_the_number_of_parameters():
    sizes = [64, 128, 32, 10]
    count = sum(p.numel() for p in MLP(sizes).parameters())
    assert count == 64 * 128 + 128 + 128 * 32 + 32 + 32 * 10 + 10
    norms = sum(p.numel() for p in MLP(sizes, norm="batch").parameters()) - count
    assert norms == 2 * (128 + 32)


def test_without_a_hidden_layer_it_is_linear():
    assert [type(layer) for layer in MLP([3, 2])] == [nn.Linear]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("norm", [None, "layer", "batch"])
def test_dtypes(dtype, norm):
    net = MLP([5, 4, 2], norm=norm).to(dtype)
    assert net(torch.ones(3, 5, dtype=dtype)).dtype == dtype


def test_any_leading_shape():
    assert MLP([5, 4, 2], norm="layer")(torch.zeros(2, 3, 5)).shape == (2, 3, 2)


def test_a_slice_is_a_plain_chain_that_shares_its_layers():
    net = MLP([5, 4, 2])
    body = net[:-1]
    assert type(body) is nn.Sequential
    assert body[0] is net[0]
    assert net[-1].out_features == 2


def test_it_traces_copies_and_reloads():
    net = MLP([5, 4, 2], activation="gelu", norm="batch").eval()
    x = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fx.symbolic_trace(net)(x), net(x))
    assert torch.equal(copy.deepcopy(net)(x), net(x))
    twin = MLP([5, 4, 2], activation="gelu", norm="batch").eval()
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(x), net(x))


@pytest.mark.parametrize("activation", ["silu", nn.SiLU, nn.SiLU(), torch.nn.functional.silu])
def test_an_activation_by_any_name(activation):
    x = torch.linspace(-2, 2, 5)
    torch.testing.assert_close(make_activation(activation)(x), x * x.sigmoid())
    assert MLP([5, 4, 2], activation)(x).shape == (2,)


def test_every_name_is_elementwise():
    from paperworks.nets.activations import _BY_NAME

    x = torch.linspace(-2, 2, 5)
    for name in _BY_NAME:
        module = make_activation(name)
        torch.testing.assert_close(module(x)[2:3], module(x[2:3]))


def test_activations_with_parameters_are_not_shared():
    net = MLP([3, 4, 4, 2], activation=nn.PReLU())
    assert net[1].weight is not net[3].weight
    assert len([p for p in net.parameters() if p.numel() == 1]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": [4]}, "sizes must be at least two positive integers"),
        ({"sizes": [4, 0]}, "sizes must be at least two positive integers"),
        ({"sizes": [4, 2.5, 1]}, "sizes must be at least two positive integers"),
        ({"sizes": [4, 2], "norm": "group"}, "norm must be 'layer', 'batch' or None"),
        ({"sizes": [4, 2], "dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"sizes": [4, 3, 2], "activation": "rellu"}, "activation must be one of elu, gelu"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        MLP(**arguments)


@pytest.mark.parametrize("activation", [3, int])
def test_no_activation(activation):
    with pytest.raises(TypeError, match="activation must be a name, a module"):
        make_activation(activation)
