"""What is asked of activations: a row an observation, a column a unit."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def check_rows(x: Tensor, y: Tensor, at_least: int = 1) -> None:
    """Raise unless x and y are finite matrices with equally many rows, and enough of them."""
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {describe(value)}")
        if value.dim() != 2 or value.shape[1] == 0:
            raise ValueError(
                f"{name} must have shape (rows, units), got {tuple(value.shape)}: "
                "paperworks.common.unit_rows makes it so"
            )
    if len(x) != len(y):
        raise ValueError(f"x and y must hold the same observations, got {len(x)} and {len(y)} rows")
    if len(x) < at_least:
        raise ValueError(f"x and y need {at_least} rows or more, got {len(x)}")
    for name, value in (("x", x), ("y", y)):
        if not all(end.isfinite() for end in value.detach().aminmax()):
            raise ValueError(f"{name} has values that are not finite")


def check_similarity(similarity: Tensor, name: str = "similarity") -> None:
    """Raise unless this is a finite matrix."""
    if not isinstance(similarity, Tensor) or not similarity.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {describe(similarity)}")
    if similarity.dim() != 2 or similarity.numel() == 0:
        raise ValueError(f"{name} must have shape (p, q), got {tuple(similarity.shape)}")
    if similarity.isnan().any():
        raise ValueError(f"{name} contains NaN (dead units?)")
    if similarity.isinf().any():
        raise ValueError(f"{name} must be finite")


def describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return type(value).__name__
