import pytest
import torch
from torch.nn import functional as F

from paperworks.common import distillation_loss


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64)


def test_each_kind_is_its_formula(logits):
    s, t = logits
    p, q = (t / 3).softmax(-1), (s / 2).softmax(-1)
    kl = (p * (p / q).log()).sum(-1).mean()
    torch.testing.assert_close(distillation_loss(s, t, 2, 3), kl)
    mse = ((s / 2 - t / 2) ** 2).mean()
    torch.testing.assert_close(distillation_loss(s, t, 2, kind="mse"), mse)
    p, q = t.sigmoid(), s.sigmoid()
    bce = -(p * q.log() + (1 - p) * (1 - q).log()).mean()
    torch.testing.assert_close(distillation_loss(s, t, kind="bce"), bce)


def test_a_cold_teacher_is_the_label(logits):
    s, t = logits
    cold = distillation_loss(s, t, 1, 1e-6)
    torch.testing.assert_close(cold, F.cross_entropy(s.flatten(0, 1), t.argmax(-1).flatten()))


@pytest.mark.parametrize("kind", ["kl", "mse", "bce"])
def test_least_at_the_teacher_and_no_gradient_to_it(logits, kind):
    s, t = logits.requires_grad_().unbind()
    distillation_loss(t.detach().clone().requires_grad_(), t, kind=kind)
    at_teacher = t.detach().clone().requires_grad_()
    distillation_loss(at_teacher, t, kind=kind).backward()
    assert at_teacher.grad.abs().max() < 1e-12
    (gradient,) = torch.autograd.grad(distillation_loss(s, t, kind=kind), logits)
    assert gradient[0].any()
    assert not gradient[1].any()


def test_bad_input(logits):
    s, t = logits
    with pytest.raises(ValueError, match=r"teacher must have the student's shape \(5, 3, 4\), got"):
        distillation_loss(s, t[:1])
    with pytest.raises(ValueError, match=r"temperature must be positive, got 0"):
        distillation_loss(s, t, 0)
    with pytest.raises(ValueError, match=r"teacher_temperature must be positive, got -1"):
        distillation_loss(s, t, 1, -1)
    with pytest.raises(ValueError, match=r"kind must be 'kl', 'mse' or 'bce', got 'l1'"):
        distillation_loss(s, t, kind="l1")
