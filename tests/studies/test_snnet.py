"""The full-scale code of the study on tiny random models of the same classes, and its metrics."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from paperworks import data
from paperworks.compress import StitchableNetwork, StitchConfig
from paperworks.studies import snnet as study
from paperworks.study import UserError
from paperworks.study.contract import Setting
from paperworks.study.run import Run

TINY = {"batch": 6, "epochs": 1, "finetune": 2, "warmup": 1, "pictures": 6}


@pytest.fixture
def photos(photo_folder):
    return f"folder:{photo_folder}?size=16&channels=3"


def deit(folder, width, labels=3):
    """A checkpoint as those of DeiT lie on the hub: of ViT's class."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=width, num_hidden_layers=2, num_attention_heads=2, intermediate_size=2 * width,
        image_size=16, patch_size=8, num_labels=labels,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def cell(photos, tmp_path):
    """The full cell of the stitched experiment, on networks and pictures that are there."""
    names = [deit(tmp_path / f"deit-{width}", width) for width in (8, 16)]
    paths = {"anchors": ",".join(names), "teacher": names[1], "data": photos}
    return study.stitched.full[0] | TINY | paths


@pytest.mark.slow
def test_deits_are_stitched(cell, monkeypatch):
    monkeypatch.setattr(study, "target_costs", lambda task: [10**6])
    run = Run(0, methods=study.stitched.methods)
    metrics = study.stitching(Setting(cell, method="snnet"), run)
    assert len(metrics["macs"]) == 2 + 4
    assert {"original_2", "tuned_2", "at_1"} <= set(metrics)
    assert 0 <= metrics["accuracy"] <= 1
    assert all(map(math.isfinite, metrics["accuracies"]))


@pytest.mark.slow
def test_a_teacher_and_mirrored_pictures_are_seen(cell):
    task = study.Task(Setting(cell), Run(0))
    x, (y, said) = next(iter(task))
    assert x.shape == (6, 3, 16, 16)
    assert x.min() < -1  # in the units of ImageNet
    assert torch.equal(said, task.teacher(x).argmax(1))
    z = torch.eye(3)[y] * 20
    alone = nn.functional.cross_entropy(z, y, label_smoothing=0.1)
    taught = nn.functional.cross_entropy(z, said)
    assert task.loss(z, (y, said)) == pytest.approx(((alone + taught) / 2).item())


@pytest.mark.slow
def test_networks_in_between_are_deits(cell):
    network = study.deit(128, 3)
    assert network(torch.rand(1, 3, 224, 224)).shape == (1, 3)
    assert len(network.blocks) == 12
    assert network.blocks[0].attention.num_attention_heads == 2


@pytest.mark.slow
def test_a_classifier_of_other_classes_is_refused(cell, tmp_path):
    name = deit(tmp_path / "seven", 8, labels=7)
    with pytest.raises(UserError, match="knows 7 classes, the data have 3"):
        study.Task(Setting(cell | {"teacher": name}), Run(0))


def test_other_pictures_decide_the_inputs_and_classes(photos):
    small = study.lone.smoke[0] | {"data": photos, "anchors": "4,6", "targets": "5,6"}
    run = Run(0, methods=study.lone.methods)
    metrics = study.alone(Setting(small, method="share", lr=1e-2), run)
    assert metrics["macs"] == 3 * 16 * 16 * 5 + 2 * 2 * 5 * 10 + 5 * 3
    assert metrics["epochs"] == (2 * 1 + 1) // 2


def test_the_rate_warms_up_and_falls():
    task = SimpleNamespace(batches=range(10), setting=SimpleNamespace(warmup=2))
    rates = [study.Task.schedule(task, step, 10) for step in range(101)]
    assert rates[0] == 1e-3
    assert rates[10] == pytest.approx(0.5)
    assert rates[20] == 1
    assert rates[60] == pytest.approx(0.01 + 0.99 / 2)
    assert rates[100] == pytest.approx(0.01)
    task.setting.warmup = 0
    assert study.Task.schedule(task, 0, 10) == 1


def test_above_the_line_by_hand():
    configs = [StitchConfig(0, 0), StitchConfig(1, 1), StitchConfig(2, 2)]
    configs += [StitchConfig(0, 1, 0, 0, 1, 0), StitchConfig(2, 1, 0, 0, 1, 0)]
    configs += [StitchConfig(1, 2, 0, 0, 0, 0)]
    net = SimpleNamespace(anchors=range(3), configs=configs)
    costs = np.array([10, 20, 40, 15, 25, 50])
    accuracies = np.array([0.5, 0.7, 0.9, 0.65, 0.7, 0.8])
    found = study.above_line(net, costs, accuracies)
    assert found == pytest.approx([0.05, -0.05, -0.1])  # of lines at 0.6, 0.75 and, flat, 0.9


def test_copies_share_ids_and_labels_but_not_their_noise():
    part = data.Split(torch.zeros(5, 1, 2, 2), torch.arange(5))
    several = study.copies(part, 0.3, 4, torch.Generator().manual_seed(0))
    assert several.x.shape == (20, 1, 2, 2)
    assert several.y.tolist() == several.ids.tolist() == list(range(5)) * 4
    assert several.x.std() == pytest.approx(0.3, rel=0.2)
    assert not torch.equal(several.x[:5], several.x[5:10])
    assert study.copies(part, 0.0, 4, torch.Generator()) is part


def test_arms_differ_in_what_they_are_named_for():
    def made(name):
        anchors = [study.nets.ResidualMLP(4, width, 3) for width in (4, 6, 8)]
        pictures = torch.rand(50, 4, generator=torch.Generator().manual_seed(1))
        return study.METHODS[name](anchors, pictures, torch.Generator().manual_seed(0))

    nets = {name: made(name) for name in study.METHODS}
    assert all(isinstance(net, StitchableNetwork) for net in nets.values())
    pairs = {n: {(c.source, c.target) for c in net.configs[3:]} for n, net in nets.items()}
    assert pairs["snnet"] == pairs["random_init"] == pairs["frozen"] == {(0, 1), (1, 2)}
    assert pairs["slow_to_fast"] == {(1, 0), (2, 1)}
    assert pairs["all_pairs"] == {(0, 1), (1, 2), (0, 2)}
    trained = {n: {name.split(".")[0] for name, p in net.named_parameters() if p.requires_grad}
               for n, net in nets.items()}  # fmt: skip
    assert trained["frozen"] == {"stitches"}
    assert trained["snnet"] == {"anchors", "stitches"}


def test_baselines_try_as_many_rates_as_an_anchor():
    tune = study.lone.tune
    assert [len(tune.candidates(m)) for m in study.lone.methods] == [len(study.RATES)]


def test_a_rival_needs_no_more_than_the_stated_conventions():
    def mine(anchors, pictures, generator):
        return StitchableNetwork(anchors, pictures[:1], window=1)

    cell = Setting(study.stitched.smoke[0], method="mine")
    metrics = study.stitching(cell, Run(0, methods={"mine": mine}))
    assert len(metrics["macs"]) == 3 + 2 * 2
    run = Run(0, methods={"mine": lambda epochs, networks: 1})
    assert study.alone(Setting(study.lone.smoke[0], method="mine", lr=1e-2), run)["epochs"] == 1
