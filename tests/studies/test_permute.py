"""What the study counts, and its full-scale code on small networks."""

import pytest
import torch

from paperworks.studies import permute as study
from paperworks.study.contract import Setting
from paperworks.study.run import Run


def run():
    return Run(0, methods=study.ENSEMBLES)


@pytest.mark.parametrize(
    ("right", "first"), [([1.0, 1.0], 1), ([0.2, 0.95, 0.5, 0.9, 1.0], 4), ([0.1, 0.2], 3)]
)
def test_the_number_from_which_on_enough_is_right(right, first):
    assert study.first_above(0.9, torch.tensor(right)) == first


def test_shares_by_size_are_those_of_means():
    answers = torch.tensor([[True, False]])
    outputs = torch.tensor([[[1.0, -1.0]], [[-3.0, -1.0]], [[5.0, -1.0]]])
    setting = Setting(orders=200)
    shares = study.by_size(outputs, answers, setting, run())
    torch.testing.assert_close(shares, torch.tensor([2 / 3, 2 / 3, 1.0]), atol=0.12, rtol=0)


def test_answers_are_images_of_questions():
    task = study.task_of(Setting(k=5), run())
    questions, answers = task.questions(3)
    assert len(questions) == 10
    torch.testing.assert_close(questions.norm(dim=1), torch.ones(10))
    assert answers.sum(1).tolist() == [3] * 10
    assert study.exact(study.linear(task, Setting(k=5), run())(3**0.5 * questions), answers).all()


def test_full_scale_is_the_official_training():
    cells = [Setting(cell) for cell in study.ensembles.full]
    assert [cell.k for cell in cells] == [2, 3, 5, 8, 10, 12, 15, 20, 25, 30]
    assert {(cell.width, cell.steps, cell.lr, cell.bias) for cell in cells} == {
        (50_000, 10_000, "official", 1)
    }
    small = {"width": 40, "steps": 20, "networks": 7, "orders": 2, "delta": 0.9}
    metrics = study.trained(Setting(cells[2] | small), run())
    assert len(metrics["exact_curve"]) == len(study.curve_sizes(7))
    assert 0 <= metrics["exact_single"] <= 1
