"""Modules exchanged inside a copy: which, where, and what stays as it was."""

import copy

import pytest
import torch
from torch import nn

from paperworks.common.surgery import replace_modules


class Scaled(nn.Module):
    """A wrapper that keeps what it replaces."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return 2 * self.inner(x)


class Net(nn.Module):
    """One activation used under two names, and layers in containers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        self.first = nn.ReLU()
        self.again = self.first
        self.block = nn.Sequential(nn.Linear(3, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 2)))

    def forward(self, x):
        return self.block(self.again(self.layers[1](self.first(self.layers[0](x)))))


def wrap(name, old):
    return Scaled(old)


def test_the_copy_changes_and_the_model_does_not():
    net = Net()
    before = copy.deepcopy(net.state_dict())
    x = torch.ones(1, 3)
    output = net(x)
    changed, report = replace_modules(net, lambda name, _: name == "block.1.1", wrap)
    assert torch.equal(changed(x), 2 * output)
    assert torch.equal(net(x), output)
    assert isinstance(net.block[1][1], nn.Linear)
    assert net.state_dict().keys() == before.keys()
    assert not {id(p) for p in changed.parameters()} & {id(p) for p in net.parameters()}
    assert list(report.replaced) == ["block.1.1"]
    assert report.replaced["block.1.1"] is changed.block[1][1]


def test_classes_and_several_classes():
    linear, report = replace_modules(Net(), nn.Linear, wrap)
    assert list(report.replaced) == ["layers.0", "layers.1", "block.0", "block.1.1"]
    assert isinstance(linear.layers, nn.ModuleList)
    _, report = replace_modules(Net(), (nn.Linear, nn.ReLU), wrap)
    assert len(report.replaced) == 7


def test_parameters_are_counted():
    _, report = replace_modules(
        Net(), lambda name, _: name == "layers.0", lambda name, _: nn.Linear(3, 3, bias=False)
    )
    assert (report.parameters_before, report.parameters_after) == (12 + 12 + 8 + 6, 9 + 12 + 8 + 6)
    assert str(report) == "1 module replaced, 38 parameters before, 35 after\n  layers.0: Linear"


def test_a_shared_module_is_made_once_and_stays_shared():
    made = []

    def make(name, old):
        made.append(name)
        return nn.GELU()

    changed, report = replace_modules(Net(), nn.ReLU, make)
    assert made == ["first", "block.1.0"]
    assert list(report.replaced) == ["first", "again", "block.1.0"]
    assert changed.first is changed.again
    assert changed.first is not changed.block[1][0]
    only_first, _ = replace_modules(Net(), lambda name, _: name == "first", make)
    assert isinstance(only_first.again, nn.ReLU)


def test_the_outer_of_two_matches_is_replaced():
    changed, report = replace_modules(Net(), lambda name, _: name.startswith("block"), wrap)
    assert list(report.replaced) == ["block"]
    assert isinstance(changed.block.inner[1][1], nn.Linear)
    names = nn.ModuleDict({"a": nn.ReLU(), "ab": nn.ReLU()})  # a prefix is no parent
    assert list(replace_modules(names, nn.ReLU, wrap)[1].replaced) == ["a", "ab"]


def test_the_model_itself():
    linear = nn.Linear(2, 2)
    changed, report = replace_modules(linear, nn.Linear, wrap)
    assert list(report.replaced) == [""]
    assert isinstance(changed, Scaled)
    assert changed.inner is not linear
    nested, report = replace_modules(nn.Sequential(linear), nn.Module, wrap)
    assert list(report.replaced) == [""]
    assert isinstance(nested, Scaled)


def test_the_training_mode_is_the_old_one():
    net = Net()
    net.block.eval()
    changed, _ = replace_modules(net, nn.Linear, lambda name, old: nn.Dropout())
    assert changed.layers[0].training
    assert not changed.block[0].training


def test_bad_input():
    net = Net()
    with pytest.raises(ValueError, match="fits no module"):
        replace_modules(net, nn.Conv2d, wrap)
    with pytest.raises(TypeError, match="model must be a torch"):
        replace_modules("net", nn.ReLU, wrap)
    for match in (3, int, (nn.ReLU, int), "ReLU"):
        with pytest.raises(TypeError, match="match must be"):
            replace_modules(net, match, wrap)
    with pytest.raises(TypeError, match="got NoneType for 'first'"):
        replace_modules(net, nn.ReLU, lambda name, old: None)
    assert isinstance(net.first, nn.ReLU)
