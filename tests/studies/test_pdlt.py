"""The full-scale code of the study on few pictures, and what its trials measure."""

from __future__ import annotations

import math

import numpy as np
import pandas
import pytest
import torch
from torch import nn

from paperworks import nets
from paperworks.studies import pdlt as study
from paperworks.study.contract import Setting
from paperworks.study.run import Run


def generator():
    return torch.Generator().manual_seed(0)


def test_full_scale_on_few_pictures(tiny_hub):
    small = {"width": 5, "hidden": 2, "steps": 2, "batch": 8, "data": "hub:uoft-cs/cifar10?size=8"}
    for experiment, more in ((study.trained, {"lr": 0.01}), (study.trained_by_adam, {})):
        setting = Setting(experiment.full[0] | small | more)
        for method in ("critical", "default"):
            run = Run(0, methods=study.METHODS)
            metrics = study.training(Setting(setting | {"method": method}), run)
            assert 0 <= metrics["accuracy"] <= 1
            assert not metrics["diverged"]


def test_full_scale_of_the_drawn_networks():
    cells = (study.monte_carlo.full[0], study.off.full[0])
    for trial, cell in zip((study.fluctuations, study.phases), cells):
        metrics = trial(Setting(cell | {"width": 6, "draws": 30}), Run(0))
        assert all(np.isfinite(value).all() for value in metrics.values())


def test_a_folder_of_pictures_serves(photo_folder):
    small = {"data": f"folder:{photo_folder}?size=8&channels=1", "width": 5, "hidden": 2}
    sizes = {"train": 0.5, "val": 0.25, "test": 0.25, "steps": 2, "batch": 8}
    setting = Setting(study.trained.smoke[0] | small | sizes | {"method": "critical"})
    assert 0 <= study.training(setting, Run(0, methods=study.METHODS))["accuracy"] <= 1


def test_averages_over_networks_by_hand():
    first = [torch.tensor([[1.0, 2.0, 3.0]])]  # one layer, one network, three neurons
    second = [torch.tensor([[1.0, 1.0, 1.0]])]
    kernel, pair = study.measure(iter([first, second]))
    assert kernel.tolist() == pytest.approx([(14 / 3 + 1) / 2])
    assert pair.tolist() == pytest.approx([((4 + 9 + 36) / 3 + 1) / 2])


def test_drawn_networks_are_networks():
    """Two layers of many small networks: variances, and independence of layers' weights."""
    x = torch.full((4,), 2.0)
    batches = study.networks("tanh", x, 3, 2, 20_000, 0.5, 0.25, generator())
    layers = [torch.cat(parts) for parts in zip(*batches)]
    assert [z.shape for z in layers] == [(20_000, 3), (20_000, 3)]
    assert layers[0].square().mean().item() == pytest.approx(0.25 + 0.5 * 4, rel=0.02)
    expected = 0.25 + 0.5 * layers[0].tanh().square().mean()
    assert layers[1].square().mean().item() == pytest.approx(expected.item(), rel=0.02)
    assert abs((layers[0] * layers[1]).mean().item()) < 0.02


@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_methods_draw_the_variances_that_they_say(activation):
    gain = 5 / 3 if activation == "tanh" else 1
    critical = study.criticality(study.FUNCTIONS[activation])
    expected = {
        "critical": (critical.C_W, critical.C_b),
        "xavier": (gain**2, 0),
        "kaiming": (2, 0),
        "default": (1 / 3, 1 / 3 / 200),
    }
    for name, method in study.METHODS.items():
        network = nets.MLP([200] * 8, activation)
        method(network, activation, generator())
        layers = [layer for layer in network if isinstance(layer, nn.Linear)]
        C_W = np.mean([200 * layer.weight.var().item() for layer in layers])
        C_b = np.mean([layer.bias.square().mean().item() for layer in layers])
        assert (C_W, C_b) == pytest.approx(expected[name], rel=0.12), name


def test_default_is_that_of_the_linear_layer():
    layer = nn.Linear(300, 400)
    largest = [part.abs().max().item() for part in (layer.weight, layer.bias)]
    study.default(layer, "tanh", generator())
    again = [part.abs().max().item() for part in (layer.weight, layer.bias)]
    assert again == pytest.approx(largest, rel=0.02)


def test_slope_by_hand():
    assert study.slope(np.arange(4), torch.tensor([1.0, 3.0, 5.0, 7.0])) == pytest.approx(2)


@pytest.mark.parametrize("scale", ["desk", "full"])
def test_the_figure_is_drawn_at_every_scale(scale):
    rows = []
    for setting in study.monte_carlo.cells(scale):
        curve = list(np.linspace(1, 0.1, setting["depth"]))
        names = ("kernel", "kernel_theory", "vertex", "vertex_theory")
        curves = dict.fromkeys(names, curve)
        rows += [{"experiment": "fluctuations", "seed": s, **setting, **curves} for s in (100, 101)]
    canvas = study.theory_and_networks(pandas.DataFrame(rows))
    canvas.draw_without_rendering()
    assert all(len(axes.lines) >= 2 * len(study.FUNCTIONS) for axes in canvas.axes)
    assert study.theory_and_networks(pandas.DataFrame(rows[:1])).axes  # one trial
    assert study.theory_and_networks(pandas.DataFrame(rows)[:0]).axes


def test_inputs_have_a_kernel_of_one():
    x = study.one_input(Run(0), 7, 0.7, 1.9, 0.2)
    assert 0.2 + 1.9 * x.square().mean().item() == pytest.approx(0.7)
    assert math.isfinite(x.sum().item())
