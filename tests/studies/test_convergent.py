"""The full-scale code of the study on few pictures, and what its trials measure."""

from functools import partial

import numpy as np
import pandas
import pytest
import torch
from torch import nn

from paperworks.representation import Matching, match_units
from paperworks.studies import convergent as study
from paperworks.study.contract import Setting
from paperworks.study.run import Run, Streams


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def seen(monkeypatch):
    """Let trials see these activations, in halves."""

    def see(x, y):
        half = len(x) // 2
        parts = {
            "fit": {"x": x[:half], "y": y[:half]},
            "score": {"x": x[half:], "y": y[half:]},
            "accuracy": 1.0,
        }
        monkeypatch.setattr(study, "observed", lambda *args: parts)

    return see


def cell(**keys):
    return Setting(study.SMALL | {"layer": "first", "weights": "trained"} | keys)


# --- full scale -----------------------------------------------------------------------------------


def test_alexnet_has_the_layers_that_are_named():
    model = study.alexnet(7, hidden=8).eval()
    relus = [module for module in model if isinstance(module, nn.ReLU)]
    assert len(relus) == len(study.LAYERS["alexnet"])
    shapes = []
    for relu in relus:
        relu.register_forward_hook(lambda *args: shapes.append(tuple(args[2].shape[1:])))
    assert model(torch.rand(1, 3, 227, 227)).shape == (1, 7)
    assert shapes[:5] == [(96, 55, 55), (256, 27, 27), (384, 13, 13), (384, 13, 13), (256, 13, 13)]
    with torch.device("meta"):
        parameters = study.alexnet(1000).parameters()
    assert sum(p.numel() for p in parameters) == pytest.approx(62.4e6, rel=0.01)


@pytest.mark.slow
def test_alexnets_are_trained_and_compared(photo_folder, monkeypatch):
    monkeypatch.setattr(study, "alexnet", partial(study.alexnet, hidden=8))
    small = {
        "data": f"folder:{photo_folder}?size=227&channels=3",
        "train": 0.5,
        "test": 0.3,
        "epochs": 1,
        "batch": 6,
        "most_rows": 300,
    }
    run = Run(0, methods={**study.PAIRINGS, **study.PREDICTORS})
    full = [
        (study.matching, study.paired.cells("full")[0]),
        (study.matching, study.paired.full[-1] | {"method": "bipartite"}),
        (study.prediction, study.fitted.cells("full")[0]),
        (study.penalties, study.swept.full[4]),
        (study.maps, study.mapped.full[0]),
    ]
    for trial, setting in full:
        metrics = trial(Setting(setting | small), run)
        assert all(np.isfinite(value).all() for value in metrics.values())


def test_pictures_from_the_hub_are_observed(tiny_hub):
    recipe = {key: cell()[key] for key in study.RECIPE} | {"train": 1.0, "test": 1.0}
    recipe["data"] = "hub:ILSVRC/imagenet-1k?size=16&channels=3"
    found = study.observations(
        Run(0), layer="middle", epochs=1, most_rows=100, **recipe | {"batch": 16, "crop": 2}
    )
    for half in ("fit", "score"):
        assert found[half]["x"].shape == found[half]["y"].shape == (100, 32)
    assert len(found["ids"]) == 12
    assert 0 <= found["accuracy"] <= 1


# --- networks -------------------------------------------------------------------------------------


class Given(Streams):
    """Streams whose fixtures are given."""

    made: dict

    def fixture(self, build, **args):
        return self.made


def test_both_networks_are_read_at_the_same_pictures_and_positions():
    frun, recipe = Given(0), {key: cell()[key] for key in study.RECIPE}
    with frun.seeded("weights"):
        model = study.untrained("convnet", study.load(frun, recipe))
    same = {"weights": model.state_dict(), "accuracy": 0.1}
    frun.made = {"a": same, "b": same, "ids": torch.arange(3)}
    found = study.observations(frun, layer="first", epochs=0, most_rows=700, **recipe)
    for half in ("fit", "score"):
        assert torch.equal(found[half]["x"], found[half]["y"])
        assert found[half]["x"].shape == (700, 16)
    assert not torch.equal(found["fit"]["x"], found["score"]["x"])


def test_two_networks_of_a_seed_differ_and_repeat():
    recipe = {key: cell()[key] for key in study.RECIPE}
    first, again = (study.pair(Streams(1), epochs=1, **recipe) for _ in range(2))
    a, b = ([*first[name]["weights"].values()] for name in ("a", "b"))
    assert not any(torch.equal(x, y) for x, y in zip(a, b))
    assert all(torch.equal(x, y) for x, y in zip(a, again["a"]["weights"].values()))
    raw = study.pair(Streams(1), epochs=0, **recipe)
    assert not torch.equal(raw["a"]["weights"]["0.weight"], a[0])


def test_the_rate_falls_at_equal_distances(monkeypatch):
    seen = {}
    monkeypatch.setattr(study.nets, "fit", lambda *args, **keys: seen.update(keys))
    part = study.data.Split(torch.rand(40, 1, 8, 8), torch.arange(40))
    study.train(
        nn.Linear(1, 1), part, 10, Streams(0), {"batch": 10, "lr": 1.0, "drops": 3, "crop": 0}
    )
    assert seen["steps"] == 40
    rates = [seen["schedule"](step) for step in (0, 9, 10, 20, 30, 39, 40)]
    assert rates == pytest.approx([1, 1, 0.1, 0.01, 1e-3, 1e-3, 1e-3])


# --- methods and trials ---------------------------------------------------------------------------


def test_one_to_one_has_the_error_of_its_correlation():
    x, y = gaussian(400, 6).double().numpy(), gaussian(400, 4, seed=1).double().numpy()
    y += x[:, [2, 0, 5, 1]] * [3, -2, 1, 0.5] + 10
    found = study.OneToOne().fit(x, y)
    c = np.corrcoef(x.T, y.T)[:6, 6:]
    half = 0.5 * np.square(y - found.predict(x)).mean(0) / y.var(0)
    np.testing.assert_allclose(half, 0.5 * (1 - np.square(c).max(0)))
    assert np.count_nonzero(found.coef_, axis=1).tolist() == [1] * 4


def test_few_to_one_takes_the_weakest_penalty_that_uses_few():
    x = gaussian(600, 20).double().numpy()
    few, many = x[:, :4].sum(1, keepdims=True), x.sum(1, keepdims=True)
    assert study.FewToOne().fit(x, few).best_.alpha == 0.02
    assert study.FewToOne().fit(x, np.hstack([few, many])).best_.alpha > 0.1
    dead = np.zeros((600, 6))
    with_dead = study.FewToOne().fit(x, np.hstack([few, many, dead])).best_
    assert with_dead.alpha == study.FewToOne().fit(x, np.hstack([few, many])).best_.alpha


def test_predictions_are_scored_in_deviations_of_the_other_half(seen):
    x = gaussian(2000, 5)
    y = 7 * torch.stack([x[:, 0] + x[:, 1], x[:, 2], torch.zeros(2000)], 1) + 3  # the last is dead
    seen(x, y)
    measured = {
        name: study.predicted(method(), cell(), Run(0)) for name, method in study.PREDICTORS.items()
    }
    assert measured["dense"]["half_mse"] < 1e-3
    assert measured["dense"]["nonzeros"] == 5
    assert measured["one_to_one"]["half_mse"] == pytest.approx(0.125, abs=0.02)
    assert measured["one_to_one"]["nonzeros"] == 1
    assert measured["sparse"]["half_mse"] < 0.01
    assert measured["sparse"]["nonzeros"] == 1.5


def test_penalties_are_alphas_or_the_papers_decays(seen):
    x = gaussian(1000, 4)
    seen(x, x[:, :2] + gaussian(1000, 2, seed=1))
    by_alpha = study.penalties(cell(kind="alpha", penalty=0.2), Run(0))
    assert study.penalties(cell(kind="decay", penalty=0.1), Run(0)) == by_alpha  # of two units
    assert study.penalties(cell(kind="decay", penalty=0.0), Run(0))["nonzeros"] == 4


def test_pairs_are_measured_without_dead_units(seen):
    x = gaussian(1000, 10).relu()
    x[:, 3] = 0
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    seen(x, x[:, order])
    run = Run(0, methods=study.PAIRINGS)
    found = {name: study.matching(cell(method=name), run) for name in study.PAIRINGS}
    for name in ("semi", "bipartite", "greedy", "mutual_information"):
        assert found[name]["correlation"] == pytest.approx(1)
        assert found[name]["spread"] == pytest.approx(0)
        assert found[name]["quantiles"] == [1] * 33
    assert abs(found["random"]["correlation"]) < 0.5
    assert found["semi"]["dead"] == pytest.approx(0.1)
    assert found["semi"]["within"] < 0.2


def test_all_convolutions_are_pooled(seen):
    x = gaussian(500, 6)
    seen(x, x)
    pooled = study.matching(cell(method="bipartite", layer="convs"), Run(0, methods=study.PAIRINGS))
    assert pooled["correlation"] == pytest.approx(1)


def test_a_map_has_matched_units_on_its_diagonal(seen):
    x = gaussian(1000, 20)
    seen(x, x.flip(1) + 0.1 * gaussian(1000, 20, seed=1))
    cells = np.reshape(study.maps(cell(), Run(0))["cells"], (study.MAP, study.MAP))
    assert cells.diagonal().min() > 0.95
    assert (np.diff(cells.diagonal()) <= 0).all()
    assert np.abs(cells - np.diag(cells.diagonal())).max() < 0.2


@pytest.mark.parametrize("scale", ["desk", "full"])
def test_figures_are_drawn_at_every_scale(scale):
    metrics = {
        "matching": {"correlation": 0.5, "quantiles": np.linspace(1, 0, 33).tolist()},
        "maps": {"cells": [0.5] * study.MAP**2},
        "prediction": {"half_mse": 0.3},
        "penalties": {"half_mse": 0.3},
    }
    frame = pandas.DataFrame(
        [
            {"experiment": experiment.name, "seed": seed, **setting, **metrics[experiment.name]}
            for experiment in study.study
            for setting in experiment.cells(scale)
            for seed in (100, 101)
        ]
    )
    for figure in study.study.figures:
        canvas = figure.draw(frame)
        assert canvas.axes
        canvas.draw_without_rendering()
    empty = frame[frame["experiment"] == "prediction"]
    for figure in (study.matched_units, study.map_of_units):
        assert figure(empty).axes


def test_a_rival_needs_no_more_than_the_stated_conventions(seen):
    x = gaussian(300, 4)
    seen(x, x)

    def in_order(x, y, generator) -> Matching:
        return match_units(torch.eye(x.shape[1]))

    class Mean:
        def fit(self, X, Y):
            self.mean = Y.mean(0)

        def predict(self, X):
            return np.tile(self.mean, (len(X), 1))

    run = Run(0, methods={"mine": in_order, "mean": Mean})
    assert study.matching(cell(method="mine"), run)["correlation"] == pytest.approx(1)
    measured = study.prediction(cell(method="mean"), run)
    assert measured["half_mse"] == pytest.approx(0.5, abs=0.05)
    assert measured["nonzeros"] == 4


def test_other_pictures_decide_channels_and_classes(photo_folder):
    name = f"folder:{photo_folder}?size=16&channels=3"
    setting = cell(data=name, train=0.6, test=0.3, method="bipartite", layer="fc")
    metrics = study.matching(setting, Run(0, methods=study.PAIRINGS))
    assert -1 <= metrics["correlation"] <= 1
