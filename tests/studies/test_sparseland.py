"""The full-scale networks and loaders on small local data, and what the trials hand to methods."""

import math

import pytest
import torch

from paperworks.compress import channel_groups, macs, prunable
from paperworks.studies import sparseland as study
from paperworks.study.contract import Setting
from paperworks.study.run import Run

TINY = {"width": 4, "epochs": 1, "batch": 16, "train": 0.8, "val": 0.2}


@pytest.mark.slow
def test_every_full_cell_runs_on_tiny_data(tiny_hub):
    seen = set()
    for experiment in study.study.experiments:
        for cell in experiment.cells("full"):
            usual = (cell.network, cell.data) == ("resnet20", "hub:uoft-cs/cifar10")
            kind = (experiment.name, cell.method, cell.network, cell.data)
            if kind in seen or not (usual or cell.method in ("rigl", "channels")):
                continue  # every method once, every network and data set with two
            seen.add(kind)
            tiny = {key: 2 for key in ("rounds", "every") if key in cell}
            small = Setting(cell | TINY | tiny | {"density": 0.25})
            metrics = experiment.trial(small, Run(0, methods=experiment.methods))
            assert all(map(math.isfinite, metrics.values())), kind
    assert {method for _, method, _, _ in seen} == {*study.METHODS, *study.STRUCTURES}
    assert len({(network, name) for _, _, network, name in seen}) == 7


@pytest.mark.parametrize(
    ("name", "width", "millions", "gigas"),
    [("resnet20", 16, 0.27, 0.041), ("vgg19", 64, 20.0, 0.40), ("resnet50", 64, 23.5, 1.30)],
)
def test_networks_have_the_sizes_of_the_literature(name, width, millions, gigas):
    with torch.random.fork_rng():
        network = study.make_network(name, width, (3, 32, 32), 10)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(millions * 1e6, rel=0.02)
    assert macs(network, torch.rand(1, 3, 32, 32)) == pytest.approx(gigas * 1e9, rel=0.02)


def test_imagenet_pictures_get_the_large_stem():
    with torch.random.fork_rng():
        network = study.make_network("resnet50", 64, (3, 224, 224), 1000).eval()
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(25.56e6, rel=0.001)
    assert network.blocks[0](network.pool(network.stem(torch.rand(1, 3, 224, 224)))).shape[2:] == (
        56,
        56,
    )


@pytest.mark.parametrize("name", ["resnet20", "resnet50", "vgg19"])
def test_channels_of_every_network_can_be_followed(name):
    with torch.random.fork_rng():
        network = study.make_network(name, 4, (3, 32, 32), 5)
    groups = channel_groups(network, torch.rand(2, 3, 32, 32))
    *_, classifier = prunable(network)
    producers = {producer for group in groups for producer in group.producers}
    assert producers == {key.rpartition(".")[0] for key in prunable(network)} - {
        classifier.rpartition(".")[0]
    }


def smoke(experiment, method, **changes):
    cell = next(c for c in experiment.cells("smoke") if c.method == method)
    return Setting(cell | changes)


def test_budgets_are_kept():
    run = Run(0, methods=study.METHODS | study.STRUCTURES)
    for method in ("erk", "uniform", "rigl", "gmp", "magnitude"):
        metrics = study.trial(smoke(study.accuracies, method), run)
        assert metrics["kept"] <= 0.03 + 1e-4
    for method in ("single_weights", "1_of_4", "channels"):
        metrics = study.trial(smoke(study.structures, method), run)
        assert 0.2 < metrics["kept"] <= 0.25
    small = study.trial(smoke(study.accuracies, "small_dense", density=0.1), run)
    assert 0.08 < small["kept"] <= 0.1
    assert study.trial(smoke(study.accuracies, "dense"), run)["training_cost"] == 1


def test_noise_is_the_same_for_all_methods_and_epochs():
    cell = smoke(study.accuracies, "erk")
    one, other = (study.Task(cell, Run(0)) for _ in range(2))
    assert torch.equal(one.parts["train"].x, other.parts["train"].x)
    clean = study.Task(Setting(cell, noise=0), Run(0))
    assert torch.equal(clean.parts["test"].ids, one.parts["test"].ids)
    added = one.parts["test"].x - clean.parts["test"].x
    assert added.std().item() == pytest.approx(0.3, rel=0.02)
    assert not torch.equal(one.parts["train"].x, study.Task(cell, Run(1)).parts["train"].x)


def test_sizes_are_those_of_the_brief():
    task = study.Task(study.accuracies.cells("desk")[0], Run(0))
    assert [len(task.parts[name]) for name in ("train", "val", "test")] == [600, 199, 997]
    assert task.steps == 600
    assert task.weights(256) == 84_480


def test_the_chosen_rate_is_the_best_of_validation(monkeypatch):
    right = {3e-4: 0.1, 1e-3: 0.9, 3e-3: 0.3, 1e-2: 0.2}
    tried = []

    def train(self, model, masks=None, *, rate):
        tried.append((rate, masks is not None))
        model.rate = rate

    monkeypatch.setattr(study.Task, "train", train)
    monkeypatch.setattr(study.Task, "accuracy", lambda self, model, part: right[model.rate])
    settings = study.shared(smoke(study.accuracies, "erk"))
    for kind in ("dense", "sparse"):
        assert study.choose_rate(Run(90), kind, **settings) == 1e-3
        assert tried == [(rate, kind == "sparse") for rate in study.RATES] * 3
        tried.clear()


def test_a_rival_needs_no_more_than_the_stated_convention():
    def rival(task):
        masks = task.random_masks(task.model, "uniform")
        return task.train(task.model, masks, rate="sparse")

    cell = smoke(study.accuracies, "erk")
    found = study.trial(cell, Run(0, methods={"erk": rival}))
    known = study.trial(Setting(cell, method="uniform"), Run(0, methods=study.METHODS))
    assert found == known


def test_crop_flip_moves_pixels_and_keeps_shapes():
    x = torch.rand(512, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    y = study.crop_flip(x, torch.Generator().manual_seed(1))
    same = [(a == b).all().item() for a, b in zip(x, y)]
    mirrored = [(a.flip(-1) == b).all().item() for a, b in zip(x, y)]
    assert y.shape == x.shape
    assert 0 < sum(same) < 100
    assert 0 < sum(mirrored) < 100
