"""The face-off of compression: budgets are kept, what is stored is what was tested."""

import copy

import pandas as pd
import pytest
import torch

import paperworks
from paperworks.compress import (
    SNNKLinear,
    dense_state_dict,
    float_state_dict,
    footprint,
    load_codebooks,
    prunable,
)
from paperworks.studies import compress_faceoff as study
from paperworks.study.contract import Setting
from paperworks.study.run import Run


@pytest.fixture(scope="module")
def task():
    return study.Pictures(Setting(study.TINY), Run(0, methods=study.METHODS))


@pytest.fixture(scope="module")
def compressed(task):
    """What a method makes of the task's network, and the steps that it takes; made once."""
    made = {}

    def make(method, budget):
        if (method, budget) not in made:
            before = task.training_steps
            with torch.random.fork_rng():
                model, tensors = study.METHODS[method](task, budget, 1.0)
            made[method, budget] = model.eval(), tensors, task.training_steps - before
        return made[method, budget]

    return make


CELLS = [
    (cell.method, cell.budget)
    for experiment in (study.pictures, study.half)
    for cell in experiment.cells("desk")
]
FIRST = dict(reversed(CELLS))
"""The budget at which each method chooses its rate."""


def kept(cell):
    """A cell whose budget is tested, the first of each method's always."""
    return pytest.param(*cell, marks=[] if cell in FIRST.items() else [pytest.mark.slow])


@pytest.mark.parametrize(("method", "budget"), [kept(c) for c in CELLS if c[0] != "n2n"])
def test_budgets_are_kept_and_the_network_is_left_alone(method, budget, task, compressed):
    """Of n2n, one child for each stage need not be small enough."""
    before = copy.deepcopy(task.network.state_dict())
    _, tensors, _ = compressed(method, budget)
    share = footprint(tensors)["total"] / footprint(task.network)["total"]
    assert 0.4 * budget < share < study.LEEWAY * budget
    after = task.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("method", list(study.METHODS))
def test_what_is_stored_is_the_model(method, task, compressed):
    """Put back into a network of the right shape, the tensors compute what was tested."""
    model, tensors, _ = compressed(method, FIRST[method])
    restored = copy.deepcopy(model)
    for parameter in restored.parameters():
        torch.nn.init.zeros_(parameter)
    if method in ("nearest", "flexround"):
        restored.load_state_dict(float_state_dict(tensors))
    elif method in ("magnitude", "rigl"):
        restored.load_state_dict(dense_state_dict(tensors))
    elif method == "codebooks":
        restored = load_codebooks(task.network, tensors)
    elif method == "random_features":
        trained = {name: t for name, t in tensors.items() if name != "seed"}
        restored.load_state_dict(trained, strict=False)
        (name,) = task.hidden
        generator = torch.Generator().manual_seed(int(tensors["seed"]))
        old, m = task.network.get_submodule(name), len(model.get_submodule(name).features.G)
        again = SNNKLinear.from_linear(old, m, generator=generator)
        restored.get_submodule(name).features = again.features
    else:
        restored.load_state_dict(tensors)
    assert torch.equal(restored(task.inputs), model(task.inputs))


@pytest.mark.parametrize("method", list(study.texts.methods))
def test_sentence_methods_keep_budgets_of_the_layers(method):
    task = study.Texts(Setting(study.TOY), Run(0))
    with torch.random.fork_rng():
        model, tensors = study.METHODS[method](task, 1 / 8, 1.0)
    model.eval()
    dense = sum(weight.nbytes for weight in prunable(task.network).values())
    kinds = ("integers", "indices", "kept", "values", "weight")  # no tables, scales and biases
    stored = sum(t.nbytes for name, t in tensors.items() if name.endswith(kinds))
    assert 0.1 * dense < stored < 0.13 * dense
    assert 0 < task.quality(model, "test") <= 1 == task.quality(task.network, "test")


def test_texts_of_a_file_are_in_one_part():
    file = torch.arange(60) // 3
    sizes = {"train": 5, "val": 5, "test": 5}
    parts = study.choose_texts(file, sizes, torch.Generator().manual_seed(0))
    assert [len(ids) for ids in parts.values()] == [5, 5, 5]
    files = [set(file[ids].tolist()) for ids in parts.values()]
    assert len(set.union(*files)) == sum(map(len, files))


def test_neighbours_are_the_nearest_by_cosine():
    angle = torch.tensor([0.0, 0.1, 0.3, 2.0])
    z = torch.stack([angle.cos(), angle.sin()], 1)
    nearest = study.nearest_neighbours(z, k=1)
    assert nearest.nonzero().tolist() == [[0, 1], [1, 0], [2, 1], [3, 2]]


def test_all_who_train_try_three_rates_and_count_their_steps(task, compressed):
    for experiment in study.study.experiments:
        tried = {m: len(experiment.tune.candidates(m)) for m in experiment.methods}
        assert tried.pop("nearest", 0) == 0
        assert set(tried.values()) == {3}
    steps = {method: compressed(method, budget)[2] for method, budget in FIRST.items()}
    assert steps.pop("nearest") == 0
    assert steps.pop("sortednet") == study.SUBMODELS * task.steps
    assert steps.pop("snnet") == 2 * task.steps
    assert steps.pop("n2n") >= task.steps
    assert set(steps.values()) == {task.steps}


def whole(task, budget, rate):
    """A user's rival: the network as it is."""
    return copy.deepcopy(task.network), task.network.state_dict()


def test_a_rival_joins():
    results = paperworks.run(
        "compress_faceoff", scale="smoke", claims=["C1"], jobs=0, add={"whole": whole}
    )
    assert not results.failures, results.failures[0].error
    frame = results.frame().set_index("method")
    assert frame.loc["whole", "bytes"] == frame.loc["whole", "macs"] == 1
    assert frame.loc["whole", "accuracy"] == frame.loc["whole", "dense_accuracy"]


def test_the_frontier_shows_every_method_and_below_those_that_save_multiply_adds():
    cells = study.pictures.cells("desk") + study.half.cells("desk")
    measured = {"accuracy": 0.8, "dense_accuracy": 0.9, "bytes": 0.2, "macs": 1.0}
    place = {"experiment": "digits", "seed": 0}
    frame = pd.DataFrame([{**cell, **measured, **place} for cell in cells])
    frame.loc[frame["method"] == "channels", "macs"] = 0.3
    figure = study.digits_frontier(frame)
    upper, lower = figure.axes
    labels = [[line.get_label() for line in axes.lines[1:]] for axes in (upper, lower)]
    assert labels[0] == [method.replace("_", " ") for method in study.METHODS]
    assert labels[1] == ["channels"]
    assert study.sentences_frontier(frame).axes  # not run: empty axes
    figure.canvas.draw()


@pytest.mark.slow
def test_every_method_runs_at_full_scale_on_little_data(tiny_hub):
    few = {"steps": 2, "inputs": 12, "iterations": 1, "batch": 4, "epochs": 1, "network": "small"}
    for experiment in (study.pictures, study.half):
        first = {cell.method: cell for cell in reversed(list(experiment.cells("full")))}
        assert set(first) == set(experiment.methods)
        for cell in first.values():
            run = Run(0, methods=experiment.methods)
            metrics = experiment.trial(Setting(cell | few), run)
            assert 0 <= metrics["accuracy"] <= 1
            assert metrics["bytes"] < 1 or cell.method == "n2n"  # all of few may be misfits
