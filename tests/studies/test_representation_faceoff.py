"""The face-off of similarities: relations hold, rankings are counted right, zoos are read."""

import pytest
import torch
from torch import nn

import paperworks
from paperworks import data, nets
from paperworks.representation import ModelZoo
from paperworks.studies import representation_faceoff as study
from paperworks.study import UserError
from paperworks.study.run import Run

TINY = {"data_name": "digits", "references": 1, "copies": 2, "width": 12, "epochs": 2}


@pytest.fixture(scope="module")
def group():
    (group,) = study.population(Run(0), **TINY)
    return group


@pytest.fixture(scope="module")
def probe():
    x, y = data.load("digits").test[:60].tensors()
    return study.Probe(x, y, 10, torch.arange(20))


def networks(group, relation):
    return [study.rebuilt(state) for state in group["relatives"][relation]]


@pytest.mark.parametrize("relation", ["permuted", "rotated"])
def test_copies_compute_what_the_reference_computes(group, probe, relation):
    reference = study.rebuilt(group["reference"])
    a = study.View(reference, probe)
    for model in networks(group, relation):
        torch.testing.assert_close(model(probe.x), reference(probe.x), atol=1e-4, rtol=0)
        b = study.View(model, probe)
        assert not torch.allclose(a.latents, b.latents, atol=1e-2)
        assert study.METHODS["cka"](a, b, probe) == pytest.approx(1, abs=1e-4)
        assert study.METHODS["knowledge"](a, b, probe) == pytest.approx(1, abs=1e-3)
    found = study.METHODS["matching"](a, b, probe)
    assert (found > 0.999) == (relation == "permuted")


def test_all_methods_rank_a_permuted_copy_above_an_untrained_network(group, probe):
    a, copied, untrained = (
        study.View(model, probe)
        for model in (
            study.rebuilt(group["reference"]),
            networks(group, "permuted")[0],
            networks(group, "untrained")[0],
        )
    )
    for name, method in study.METHODS.items():
        alike, unlike = method(a, copied, probe), method(a, untrained, probe)
        assert alike > unlike or (name == "complexity" and alike == unlike == 0), name


def test_relatives_differ_as_their_relation_says(group):
    assert set(group["relatives"]) == {*study.RELATED, *study.UNRELATED}
    widths = {
        relation: states[0]["5.weight"].shape[1] for relation, states in group["relatives"].items()
    }
    assert widths.pop("other_width") == 9
    assert set(widths.values()) == {12}
    for states in group["relatives"].values():
        first, second = states
        assert any(not torch.equal(first[name], second[name]) for name in first)


def test_ink_has_ten_classes_of_the_pictures_themselves():
    x = data.load("digits").train.x
    labels = study.ink(x)
    assert labels.unique().tolist() == list(range(10))
    order = labels // 2
    assert x.flatten(1).sum(1)[order == 4].min() >= x.flatten(1).sum(1)[order == 3].max()


def test_auc():
    assert study.auc([3, 4], [1, 2]) == 1
    assert study.auc([1], [1]) == 0.5
    assert study.auc([1, 3], [2]) == 0.5


def test_a_reader_s_own_networks(tmp_path):
    zoo = ModelZoo(tmp_path / "zoo")
    sizes = [64, 20, 10]
    card = {"network": "MLP", "arguments": {"sizes": sizes}, "flatten": True}
    for name in ("a", "b"):
        zoo.add(name, nn.Sequential(nn.Flatten(), nets.MLP(sizes)), card)

    results = paperworks.run(
        "representation_faceoff",
        scale="smoke",
        claims=["C8"],
        set={"zoo": str(zoo.folder)},
        jobs=0,
        store=f"sqlite:///{tmp_path / 's.sqlite'}",
    )
    frame = results.frame()
    assert frame["auc_yours"].between(0, 1).all()
    assert (frame["yours"] < 1).all()
    with pytest.raises(UserError, match="must hold two networks or more, it holds 0"):
        study.own(str(tmp_path / "empty"), None)
