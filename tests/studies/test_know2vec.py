"""The full-scale code of the study on few pictures, and what its trials measure."""

from __future__ import annotations

import numpy as np
import pandas
import pytest
import torch
from torch import nn

from paperworks import data, nets
from paperworks.representation import query_knowledge
from paperworks.studies import know2vec as study
from paperworks.study.contract import Setting
from paperworks.study.run import Run, Streams


def cell(**keys):
    return Setting(study.SMALL | {"held_out": 0} | keys)


class Here(Run):
    """A run that computes its fixture on the spot, once."""

    made: dict | None = None

    def fixture(self, build, *, seed=0, **args):
        self.made = self.made or build(Streams(seed), **args)
        return self.made


# --- full scale -----------------------------------------------------------------------------------


@pytest.fixture
def tiny_encoder(monkeypatch):
    class Tiny(nn.Module):
        def forward(self, x):
            return type("Output", (), {"logits": x.mean((2, 3))})()

    monkeypatch.setattr(study, "pretrained", lambda name: study.Logits(Tiny()))


def test_full_scale_on_few_pictures(tiny_hub, tiny_encoder):
    small = {"ways": 2, "tasks": 3, "copies": 1, "zoo_steps": 1, "zoo_batch": 4, "shots": 2}
    small |= {"hidden": 4, "query_hidden": 4, "dim": 4, "steps": 1, "batch": 4, "per_task": 2}
    small |= {"data": "hub:uoft-cs/cifar100?size=16", "test_per_task": 2, "held_out": 1}
    run = Here(0, methods=study.METHODS)
    for name in ("lstm", "noise", "nearest", "leep", "brute_force"):
        metrics = study.retrieval(Setting(study.found.full[0] | {"method": name} | small), run)
        assert all(np.isfinite(value) for value in metrics.values())
    metrics = study.map_(Setting(study.mapped.full[0] | small), run)
    assert all(np.isfinite(values).all() for values in metrics.values())


def test_pictures_reach_the_encoder_in_the_units_of_imagenet(tiny_encoder):
    mean = torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
    encode = study.reference("some/net", mean.expand(2, 3, 4, 4))
    torch.testing.assert_close(encode(mean.expand(2, 3, 4, 4)), torch.zeros(2, 3))
    grey = torch.tensor([[0.229, 0.224, 0.225]]).reshape(1, 3, 1, 1) + mean
    torch.testing.assert_close(encode(grey), torch.ones(1, 3))


@pytest.mark.slow
def test_a_network_of_transformers_is_read(monkeypatch):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1])
    tiny = transformers.ResNetForImageClassification(config)
    auto = transformers.AutoModelForImageClassification
    monkeypatch.setattr(auto, "from_pretrained", lambda name: tiny)
    encode = study.reference("microsoft/resnet-18", torch.rand(2, 3, 16, 16))
    assert encode(torch.rand(3, 3, 16, 16)).shape == (3, config.num_labels)


def test_a_folder_of_pictures_serves(photo_folder):
    setting = cell(data=f"folder:{photo_folder}?size=8&channels=1", ways=2, shots=1)
    market, _, test = study.opened(setting, Here(0))
    assert market.knowledge.shape[:2] == (3, 1)  # all pairs of three classes
    assert test.features.shape[:2] == (6, 2)


# --- the zoo --------------------------------------------------------------------------------------


def test_nobody_sees_anothers_pictures(monkeypatch):
    seen = {}

    def load(*args, **keywords):
        seen["whole"] = found = original(*args, **keywords)
        return found

    original = data.load
    monkeypatch.setattr(study.data, "load", load)
    parts = study.pictures(Streams(0), cell())
    sizes = {name: len(y) for name, (x, y) in parts.items()}
    assert sizes == {"models": 601, "pool": 400, "training": 398, "test": 398}
    whole = seen["whole"]
    ids = [part.ids for part in (whole.train, whole.val, whole.test)]
    assert len(torch.cat(ids).unique()) == 1797
    both = torch.cat([parts["training"][0], parts["test"][0]])
    assert len(both.flatten(1).unique(dim=0)) == len(whole.test.x.flatten(1).unique(dim=0))
    counts = [parts[name][1].bincount() for name in ("training", "test")]
    assert (counts[0] - counts[1]).abs().max() <= 1


def test_tasks_are_different_sets_in_ascending_order():
    tasks = study.quadruples(10, 4, 40, torch.Generator().manual_seed(0))
    assert tasks.shape == (40, 4)
    assert (tasks.diff() > 0).all()
    assert len(tasks.unique(dim=0)) == 40
    assert len(study.quadruples(5, 4, 40, torch.Generator().manual_seed(0))) == 5


def test_principal_components_are_white():
    pool = torch.randn(300, 1, 6, 6) @ torch.randn(6, 6) + 1
    z = study.reference("pca", pool)(pool)
    assert z.shape == (300, 32)
    torch.testing.assert_close(z.T.cov(), torch.eye(32), atol=1e-3, rtol=0)
    torch.testing.assert_close(z.mean(0), torch.zeros(32), atol=1e-4, rtol=0)


def test_networks_trained_together_are_as_if_trained_alone():
    setting = cell(zoo_steps=5, zoo_batch=16)
    x, y = study.pictures(Streams(0), setting)["models"]
    of_task = [study.task_rows(y, torch.tensor(t)) for t in ([0, 1, 2, 3], [4, 5, 6, 9])]
    models = [study.mlp(Streams(0), x, 8, 4) for _ in of_task]
    start = [{k: v.clone() for k, v in m.state_dict().items()} for m in models]
    together = study.train_together(Streams(1), setting, models, x, of_task)
    frun = Streams(1)
    drawn = [[study.drawn_rows(*rows, 16, frun) for rows in of_task] for _ in range(5)]
    for i, model in enumerate(together):
        alone = nn.Sequential(nn.Flatten(), *nets.MLP([64, 8, 4]))
        alone.load_state_dict(start[i])
        nets.fit(
            alone,
            [(x[step[i][0]], step[i][1]) for step in drawn],
            lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
            optimizer=torch.optim.Adam(alone.parameters(), setting.zoo_lr),
            steps=5,
        )
        for a, b in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_rows_of_a_task_carry_the_places_of_its_classes():
    rows, labels = study.task_rows(torch.tensor([5, 2, 9, 2, 7]), torch.tensor([2, 7, 9]))
    assert rows.tolist() == [1, 2, 3, 4]
    assert labels.tolist() == [0, 2, 0, 1]


# --- queries and methods --------------------------------------------------------------------------


def toy():
    """Two tasks of two classes, pictures that are their class, and four models: one is right."""
    y = torch.arange(4).repeat(6)
    phi = nn.functional.one_hot(y, 4).double() + 0.01 * torch.arange(24).unsqueeze(1)
    tasks = torch.tensor([[0, 1], [2, 3]])
    answers = torch.full((4, 24, 2), 0.5)
    answers[3] = nn.functional.one_hot((y == 3).long(), 2) * 0.8 + 0.1
    answers[0] = nn.functional.one_hot((y == 1).long(), 2) * 0.8 + 0.1
    part = {"phi": phi, "y": y, "answers": answers}
    return {"tasks": tasks, "training": part, "validation": part, "test": part}


def test_queries_are_means_of_different_pictures():
    fixture = toy()
    queries = study.draw_queries(fixture, "test", torch.tensor([1, 0]), 3, 4, Streams(0))
    assert queries.labels.tolist() == [1, 1, 1, 0, 0, 0]
    assert queries.rows.shape == (6, 2, 4)
    phi, y = fixture["test"]["phi"], fixture["test"]["y"]
    for q in range(6):
        rows = queries.rows[q].flatten()
        assert len(rows.unique()) == 8
        label = torch.searchsorted(fixture["tasks"][queries.labels[q]], y[rows])
        expected = query_knowledge(phi[rows], label, 2, lambda x: x, n_per_class=4)
        torch.testing.assert_close(queries.features[q], expected)
    few = study.draw_queries(fixture, "test", torch.tensor([0]), 2, 9, Streams(0))
    assert few.rows.shape == (2, 2, 9)  # a class of six pictures


def test_running_all_models_is_counted():
    fixture = toy()
    queries = study.draw_queries(fixture, "test", torch.tensor([0, 1]), 5, 3, Streams(0))
    market = study.Market(
        *[torch.zeros(4, 1, 2, 2, 4)] * 2,
        torch.zeros(0),
        torch.tensor([0, 0, 1, 1]),
        queries,
        cell(),
        0,
        {"test": fixture["test"]["answers"]},
    )
    answers = market.answers["test"]
    answers[1] = answers[0]
    answers[0] = 0.9 * answers[1] + 0.05  # as right, less sure
    for method in (study.brute_force, study.by_leep):
        market.asked = 0
        best = method(market)(queries).argmax(1)
        assert torch.equal(best, torch.tensor([1, 3])[queries.labels])
        assert market.asked == 10 * 4 * 2 * 3


def test_boundaries_are_replaced_by_nodes(monkeypatch):
    seen = {}
    monkeypatch.setattr(study, "know2vec", lambda market, knowledge: seen.update(k=knowledge))
    k = torch.randn(5, 2, 3, 3, 4)
    study.nodes_only(study.Market(k, *[torch.zeros(0)] * 3, None, cell(), 0, {}))
    for j in range(3):
        assert torch.equal(seen["k"][:, :, :, j], k.diagonal(dim1=2, dim2=3).mT)


def test_the_released_score_needs_no_good_query():
    tasks = torch.arange(4)
    labels = torch.arange(4)
    scores = torch.eye(4)
    assert study.batch_score(scores, tasks, labels, Run(0)) == 1
    scores[:, 0] = torch.tensor([3.0, 2, 2, 2])  # every query takes model 0
    assert study.share(tasks[scores.argmax(1)] == labels) == 0.25
    assert study.batch_score(scores, tasks, labels, Run(0)) == 1  # each model takes its query


@pytest.mark.parametrize("scale", ["desk", "full"])
def test_the_figure_is_drawn_at_every_scale(scale):
    curves = {"x": [0.0, 1.0], "y": [0.5, 1.0], "task": [0.0, 5.0], "is_query": [0.0, 1.0]}
    rows = [
        {"experiment": experiment.name, "seed": seed, **setting, **metrics}
        for experiment, metrics in ((study.found, {"top1": 0.5}), (study.mapped, curves))
        for setting in experiment.cells(scale, ["rival"] * (experiment is study.found))
        for seed in (100, 101)
    ]
    frame = pandas.DataFrame(rows)
    for part in (frame, frame[frame["experiment"] == "retrieval"]):
        canvas = study.vectors_and_scores(part)
        canvas.draw_without_rendering()
        assert len(canvas.axes) == 2
