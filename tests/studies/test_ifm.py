"""The full-scale code of the study on tiny data of the same schema, its methods and its metrics."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from paperworks.compress import channel_groups
from paperworks.studies import ifm as study
from paperworks.study import UserError
from paperworks.study.contract import Setting
from paperworks.study.run import Run

FULL = {cell["network"]: cell for cell in study.narrow.full}
TINY = {"epochs": 1, "train": 0.5, "val": 0.2, "batch": 8}


def checkpoint(folder, labels=3, layer_type="basic"):
    """A ResNet as it lies on the hub."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[2, 1], layer_type=layer_type,
        num_labels=labels,
    )  # fmt: skip
    transformers.ResNetForImageClassification(config).save_pretrained(folder)
    return str(folder)


def run(seed=0):
    return Run(seed, methods=study.narrow.methods)


def job(model, **fields):
    example = torch.rand(1, 2, 8, 8)
    widths = {group.name: group.size - 2 for group in channel_groups(model, example)}
    fields = {"generator": torch.Generator().manual_seed(0), "example": example} | fields
    return SimpleNamespace(**{"beta": 0.1, "widths": widths} | fields)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ifm", "neuron_merging"])
def test_cifar_is_trained_and_narrowed(method, tiny_hub):
    cell = FULL["vgg16"] | TINY | {"network": "4,M,6,6", "betas": "0.3,0.9"}
    metrics = study.narrowing(Setting(cell, method=method), run())
    assert len(metrics["accuracies"]) == len(metrics["kept_shares"]) == 2
    assert metrics["kept_shares"][1] < 1
    assert 0 <= metrics["original_accuracy"] <= 1


@pytest.mark.slow
def test_checkpoints_for_imagenet_are_traced(tiny_hub, tmp_path):
    cell = FULL["microsoft/resnet-50"] | {"train": 0.5, "val": 0.2, "betas": "0.1,0.9"}
    cell |= {"network": checkpoint(tmp_path, layer_type="bottleneck"), "untouched": 5}
    cell |= {"data": "hub:ILSVRC/imagenet-1k?size=40&channels=3"}
    metrics = study.narrowing(Setting(cell, method="ifm"), run())
    assert metrics["kept_shares"][0] >= metrics["kept_shares"][1] < 1
    widths = study.merged_widths(run(), **{key: cell[key] for key in study.MERGING})[1]
    assert {int(name.split(".")[0]) for name, kept in widths.items() if kept == 1} <= {5}


@pytest.mark.slow
def test_checkpoints_compute_what_transformers_computes(tmp_path):
    transformers = pytest.importorskip("transformers")
    name = checkpoint(tmp_path)
    chain = study.pretrained_resnet(name, 3).eval()
    whole = transformers.ResNetForImageClassification.from_pretrained(name).eval()
    x = torch.rand(2, 3, 40, 40)
    with torch.no_grad():
        torch.testing.assert_close(chain(x), whole(study.ImageNetUnits()(x)).logits)
    with pytest.raises(UserError, match="knows 3 classes, the data have 7"):
        study.pretrained_resnet(name, 7)


@pytest.mark.parametrize(
    ("name", "convolutions", "parameters"),
    [("vgg11", 8, 9.2e6), ("vgg16", 13, 14.7e6), ("vgg19", 16, 20.0e6), ("resnet18", 20, 11.2e6),
     ("resnet50", 53, 23.5e6)],
)  # fmt: skip
def test_networks_are_those_of_their_names(name, convolutions, parameters):
    with torch.device("meta"):
        model = study.make_network(name, 1, 3, 10)
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == convolutions
    assert study.count(model) == pytest.approx(parameters, rel=0.01)


@pytest.mark.parametrize("name", list(study.UNTOUCHED))
def test_stem_and_first_stage_of_residual_networks_are_left_alone(name):
    with torch.device("meta"):
        model = study.make_network(name, 1, 3, 10)
    second = next(i for i, block in enumerate(model) if halves(block))
    assert study.UNTOUCHED[name] == second


def halves(block):
    return any(m.stride == (2, 2) for m in block.modules() if isinstance(m, nn.Conv2d))


def test_twice_as_wide():
    model = study.make_network("4,M,6", 2, 1, 3)
    assert [m.out_channels for m in model if isinstance(m, nn.Conv2d)] == [8, 12]
    assert [type(m).__name__ for m in model][3] == "MaxPool2d"


def test_pruning_keeps_the_largest_rows():
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    model[0].weight.data = torch.tensor([[1.0], [-4.0], [3.0], [2.0]]).repeat(1, 2)[..., None, None]

    def kept(method, seed=0):
        generator = torch.Generator().manual_seed(seed)
        small = study.METHODS[method](model, job(model, generator=generator))
        return small[0].weight[:, 0].flatten().tolist()

    assert kept("l1") == [-4, 3]
    assert len({tuple(kept("random", seed)) for seed in range(9)}) > 1


def test_neuron_merging_takes_the_threshold_that_validates_best():
    model = nn.Sequential(nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Conv2d(6, 3, 1))
    candidates = []

    def validate(small):
        candidates.append(small)
        return float(len(candidates) == 3)

    assert study.fold(model, job(model, validate=validate)) is candidates[2]
    assert len(candidates) == len(study.THRESHOLDS)


def test_a_rival_needs_no_more_than_the_stated_convention():
    cell = Setting(study.narrow.smoke[0], method="mine")
    seen = []

    def mine(model, job):
        seen.append((job.beta, job.widths))
        return model

    metrics = study.narrowing(cell, Run(0, methods={"mine": mine}))
    assert metrics["kept_shares"] == [1.0, 1.0]
    assert metrics["accuracies"] == [metrics["original_accuracy"]] * 2
    assert [beta for beta, _ in seen] == [0.4, 0.8]
    assert list(seen[0][1]) == ["0", "3", "7"]


def test_the_budget_by_hand():
    assert study.in_budget([1.0, 0.95, 0.9, 0.7, 0.59]) == 3
    assert study.in_budget([1.0, 0.95, 0.3]) == 1  # none inside: the nearest to 75 %
    assert study.in_budget([1.0, 1.0]) == 0


def test_the_choice_by_hand():
    assert study.choose([1.0, 0.9, 0.7, 0.4], [0.99, 0.97, 0.95, 0.5], 0.95) == 2
    assert study.choose([1.0, 0.9, 0.7, 0.4], [0.99, 0.93, 0.94, 0.5], 0.95) == 2
    assert study.choose([1.0, 0.95], [0.99, 0.99], 0.95) == 1  # never narrow enough: it shows


def test_the_rate_falls_in_stairs():
    rates = [study.stairs(step, 160) for step in (0, 79, 80, 119, 120, 160)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_branches_of_the_tree_do_not_cross():
    places = study.leaves([(1, 4), (2, 3), (1, 2)], 6)
    assert sorted(places.values()) == list(range(6))
    assert places == {1: 0, 4: 1, 2: 2, 3: 3, 0: 4, 5: 5}


def test_figures_without_any_merge_are_drawn():
    import pandas as pd

    cell = study.layers.smoke[0]
    metrics = study.complexity(Setting(cell, beta=0.0), run())
    assert metrics["tree_first"] == []
    assert all(map(math.isfinite, metrics["kept"]))
    frame = pd.DataFrame([{**cell, "beta": 0.0, "seed": 0, "experiment": "complexity"} | metrics])
    for draw in (study.complexity_by_beta, study.merge_tree):
        draw(frame).canvas.draw()
        draw(frame.iloc[:0]).canvas.draw()
