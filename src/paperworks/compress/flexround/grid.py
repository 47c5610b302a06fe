"""The uniform grid that weights are rounded to, and weights stored on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from paperworks.compress.blocks import checked_weight

SMALLEST_SCALE = 1e-8
"""Keeps a row of zeros from a grid of step 0."""


def quant_range(bits: int, symmetric: bool = True) -> tuple[int, int]:
    """Smallest and largest integer that `bits` bits hold.

    `-2^(b-1), 2^(b-1)-1` if symmetric, else `0, 2^b-1`. An integer `q` stands for the weight
    `scale * (q - zero_point)`; the zero point is 0 if symmetric.

    Raises:
        ValueError: bits is not an integer in [2, 8].

    >>> quant_range(4), quant_range(4, symmetric=False)
    ((-8, 7), (0, 15))
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise ValueError(f"bits must be in [2, 8], got {bits!r}")
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)


def fit_scale(
    w: Tensor,
    bits: int,
    *,
    symmetric: bool = True,
    per_channel: bool = False,
    method: Literal["mse", "minmax"] = "mse",
    p: float = 2.4,
    steps: int = 100,
) -> tuple[Tensor, Tensor]:
    """Step and zero point of the uniform grid that suits a weight.

    "minmax" spans all of `w`: `(max(w, 0) - min(w, 0)) / (2^b - 1)`, or `2 max|w| / (2^b - 1)` if
    symmetric. "mse" shrinks that range to the fractions `1/steps, ..., 1` and keeps what minimises
    `mean |w - w_hat|^p` after rounding to nearest; for an asymmetric grid it tries every zero point
    with every range (weights of one sign have theirs at an end of the grid). It costs `steps`
    passes over `w`, `2^b` times as many where zero points are tried.

    Args:
        w: weight, shape (out, ...), any floating dtype and strides.
        bits: 2 to 8.
        symmetric: whether the zero point is 0.
        per_channel: one grid for each `w[i]` instead of one for all of `w`.
        method: "mse" or "minmax".
        p: exponent of the error, 2.4 in the official code.
        steps: how many ranges "mse" tries.

    Returns:
        `(scale, zero_point)`: the step, at least 1e-8, in float32 (float64 for such a `w`), and an
        int32 in [0, 2^b - 1] (0 if symmetric); both of shape (), or (out, 1, ...) per channel.

    Raises:
        ValueError: bits outside [2, 8], an unknown method, p or steps not positive, a weight that
            is empty or contains non-finite values, a scalar where rows are asked for.
        TypeError: w is not floating point.

    From the calibration of the paper's code (BRECQ's for pictures); that a symmetric "minmax"
    grid spans `2 max|w|` is our reading.

    >>> scale, zero_point = fit_scale(torch.tensor([-0.5, 0.0, 1.0]), 2, symmetric=False)
    >>> scale, zero_point
    (tensor(0.5000), tensor(1, dtype=torch.int32))
    """
    quant_range(bits)
    if method not in ("mse", "minmax"):
        raise ValueError(f"method must be 'mse' or 'minmax', got {method!r}")
    if not p > 0 or steps < 1:
        raise ValueError(f"p and steps must be positive, got {p!r} and {steps!r}")
    rows = checked_weight(w, per_channel).reshape(len(w) if per_channel else 1, -1)
    if symmetric:
        scale, zero_point = _symmetric(rows, bits, method, p, steps)
    else:
        scale, zero_point = _asymmetric(rows, bits, method, p, steps)
    shape = (len(w), *[1] * (w.dim() - 1)) if per_channel else ()
    return scale.reshape(shape), zero_point.to(torch.int32).reshape(shape)


@dataclass(frozen=True, eq=False)
class IntegerWeight:
    """A weight on a uniform grid: `scale * (integers - zero_point)`.

    Args:
        integers: int8, or uint8 on an asymmetric grid, of the weight's shape.
        scale: the grid's step, shape () or (out, 1, ...).
        zero_point: int32 of the scale's shape.

    >>> IntegerWeight(
    ...     torch.tensor([-2, 1], dtype=torch.int8),
    ...     torch.tensor(0.5),
    ...     torch.tensor(0, dtype=torch.int32),
    ... ).dequantize()
    tensor([-1.0000,  0.5000])
    """

    integers: Tensor
    scale: Tensor
    zero_point: Tensor

    def dequantize(self) -> Tensor:
        """The weight in the scale's dtype."""
        return self.scale * (self.integers.to(torch.int32) - self.zero_point)


def _symmetric(rows: Tensor, bits: int, method: str, p: float, steps: int) -> tuple[Tensor, Tensor]:
    widest = 2 * rows.abs().amax(1, keepdim=True) / (2**bits - 1)
    zero_point = torch.zeros_like(widest)
    if method == "minmax":
        return widest.clamp_min(SMALLEST_SCALE), zero_point
    low, high = quant_range(bits)
    return _search(rows, widest, [0], low, high, p, steps)


def _asymmetric(
    rows: Tensor, bits: int, method: str, p: float, steps: int
) -> tuple[Tensor, Tensor]:
    low, high = quant_range(bits, symmetric=False)
    smallest = rows.amin(1, keepdim=True).clamp_max(0)
    largest = rows.amax(1, keepdim=True).clamp_min(0)
    widest = (largest - smallest) / high
    if method == "minmax":
        scale = widest.clamp_min(SMALLEST_SCALE)
        return scale, (-smallest / scale).round().clamp(low, high)
    two_sided = ((smallest < 0) & (largest > 0)).any()
    zero_points = range(low, high + 1) if two_sided else (low, high)
    return _search(rows, widest, zero_points, low, high, p, steps)


def _search(
    rows: Tensor,
    widest: Tensor,
    zero_points: range | list[int] | tuple[int, ...],
    low: int,
    high: int,
    p: float,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """For each row the scale `widest * i / steps` and the zero point of the smallest error."""
    least = torch.full_like(widest, torch.inf)
    best_scale, best_zero = widest.clamp_min(SMALLEST_SCALE), torch.zeros_like(widest)
    for i in range(1, steps + 1):
        scale = (widest * (i / steps)).clamp_min(SMALLEST_SCALE)
        nearest = (rows / scale).round_()
        for z in zero_points:
            w_hat = nearest.clamp(low - z, high - z).mul_(scale)
            error = w_hat.sub_(rows).abs_().pow_(p).mean(1, keepdim=True)
            better = error < least
            least = torch.where(better, error, least)
            best_scale = torch.where(better, scale, best_scale)
            best_zero = torch.where(better, float(z), best_zero)
    return best_scale, best_zero
