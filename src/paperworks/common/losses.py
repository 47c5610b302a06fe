"""Losses that several fields train with."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    teacher_temperature: float | None = None,
    kind: Literal["kl", "mse", "bce"] = "kl",
) -> Tensor:
    """How far a student's outputs are from a teacher's.

    With logits s and t over their temperatures, averaged over the samples:
    "kl" is `KL(softmax(t) || softmax(s))` over the last axis, "mse" the mean of `(s - t)^2`, "bce"
    the mean binary cross-entropy of `sigmoid(s)` to `sigmoid(t)`. There is no factor of the squared
    temperature; multiply by it to keep the gradient's size. No gradient goes to the teacher.
    Hinton et al. 2015, arXiv 1503.02531, section 2.

    Args:
        student: logits, shape (..., classes).
        teacher: logits of the same shape.
        temperature: what the student's logits are divided by.
        teacher_temperature: what the teacher's are; by default the same.
        kind: which of the three.

    Raises:
        ValueError: other shapes, a temperature that is not positive, an unknown kind.

    >>> import torch
    >>> distillation_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]]), kind="mse")
    tensor(2.)
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"teacher must have the student's shape {tuple(student.shape)}, got "
            f"{tuple(teacher.shape)}"
        )
    if teacher_temperature is None:
        teacher_temperature = temperature
    for name, value in (("temperature", temperature), ("teacher_temperature", teacher_temperature)):
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value!r}")
    s, t = student / temperature, teacher.detach() / teacher_temperature
    if kind == "mse":
        return F.mse_loss(s, t)
    if kind == "bce":
        return F.binary_cross_entropy_with_logits(s, t.sigmoid())
    if kind != "kl":
        raise ValueError(f"kind must be 'kl', 'mse' or 'bce', got {kind!r}")
    s, t = s.flatten(0, -2), t.flatten(0, -2)
    return F.kl_div(s.log_softmax(-1), t.log_softmax(-1), reduction="batchmean", log_target=True)
