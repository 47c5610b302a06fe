"""The full-scale code of the study on little data of the same schema, and its networks."""

import math

import pytest
import torch

from paperworks.studies import n2n as study
from paperworks.study.contract import Setting
from paperworks.study.run import Run

TINY = {
    "batch": 20, "teacher_epochs": 1, "epochs": 1, "final_epochs": 1, "iterations": 1,
    "rollouts": 1, "learned": 1,
}  # fmt: skip


@pytest.mark.slow
def test_every_full_cell_runs_on_tiny_data(tiny_hub, monkeypatch):
    narrow = {"resnet18": [1, 1, 1, 1], "resnet34": [2, 1, 1, 1]}
    monkeypatch.setattr(study, "RESIDUAL", narrow)
    monkeypatch.setattr(study, "STAGE_WIDTHS", (10, 10, 12, 12))
    monkeypatch.setitem(study.CHAINS, "vgg19", ([10] * 6, [1, 3]))
    seen = set()
    for experiment in study.study.experiments:
        for cell in experiment.cells("full"):
            tiny = {key: value for key, value in TINY.items() if key in cell}
            run = Run(0, methods=experiment.methods)
            metrics = experiment.trial(Setting(cell | tiny), run)
            numbers = [m for m in metrics.values() if isinstance(m, float)]
            assert all(map(math.isfinite, numbers)), cell
            seen.add((experiment.name, cell.method, cell.teacher, cell.data))
    assert len(seen) == 2 * 6 + 2


def test_networks_have_the_sizes_of_the_literature():
    with torch.device("meta"):
        sizes = {
            name: study.size(study.make_network(name, torch.Size([3, 32, 32]), 10)) / 1e6
            for name in ("vgg19", "resnet18", "resnet34")
        }
    assert sizes == pytest.approx({"vgg19": 20.04, "resnet18": 11.17, "resnet34": 21.28}, rel=1e-3)


def test_a_thinned_teacher_has_at_least_as_many_parameters():
    setting = next(iter(study.searches.cells("smoke")))
    task = study.Task(Setting(setting), Run(0, methods=study.searches.methods))
    for parameters in (500, 5000, 20_000):
        thin = study.size(task.thinned(parameters))
        assert parameters <= thin < 1.3 * parameters + 200
