"""Mutual information between units."""

from __future__ import annotations

import torch
from torch import Tensor

from paperworks.representation.convergent.rows import check_rows

_TILE, _ROWS = 1280, 4096
"""One-hot columns and rows of one product: 21 MB a side."""


def mutual_information(x: Tensor, y: Tensor, bins: int = 10, correct_bias: bool = True) -> Tensor:
    """Mutual information of every unit of A with every unit of B, in nats.

        I = Σ_kl p_kl ln(p_kl / (p_k p_l)),   less (B_x - 1)(B_y - 1) / (2N)

    over the cells of a histogram of each pair. Unlike a correlation it sees relations that are not
    linear, and does not see their sign. A unit's first bin holds its exact zeros, where it has any
    (most activations after a ReLU), and the others are equally filled by the rest; without zeros
    all bins are. Equal numbers share a bin.

    The bias of the histogram (Miller & Madow 1955) is subtracted unless told otherwise, B being the
    bins that are not empty; a result may then be slightly negative. In nats it has no ln 2: the
    official helper subtracts a bias in bits from an information in nats, which is not followed.
    That zeros have a bin only where there are zeros is ours. arXiv 1511.07543, section 3.2.

    Cost: 2·N·p·q·bins² operations, as products of one-hot matrices; memory N·(p + q) bytes.

    Args:
        x: A's activations (rows, p), floating point.
        y: B's for the same inputs and positions in the same order, (rows, q).
        bins: of each axis, 2 to 256.
        correct_bias: subtract the bias.

    Returns:
        (p, q), float64, on x's device; 0 for a unit that does not vary.

    Raises:
        TypeError: x or y is not a floating-point tensor.
        ValueError: no matrices, not equally many rows, none, numbers that are not finite, or bins
            out of range.

    >>> x = torch.tensor([[1.0], [1.0], [0.0], [0.0]])
    >>> y = torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    >>> mutual_information(x, y, bins=2, correct_bias=False).round(decimals=4)  # ln 2 and none
    tensor([[0.6931, 0.0000]], dtype=torch.float64)
    """
    check_rows(x, y)
    if isinstance(bins, bool) or not isinstance(bins, int) or not 2 <= bins <= 256:
        raise ValueError(f"bins must be an integer from 2 to 256, got {bins!r}")
    x, y = _binned(x.detach(), bins), _binned(y.detach().to(x.device), bins)
    n, units = x.shape[1], max(1, _TILE // bins)
    information = x.new_empty(len(x), len(y), dtype=torch.float64)
    for i in range(0, len(x), units):
        for j in range(0, len(y), units):
            p = _joint_counts(x[i : i + units], y[j : j + units], bins) / n
            information[i : i + units, j : j + units] = _divergence(p)
    if correct_bias:
        filled_x, filled_y = (_filled(z, bins).double() for z in (x, y))
        information -= torch.outer(filled_x - 1, filled_y - 1) / (2 * n)
    return information


def _binned(x: Tensor, bins: int) -> Tensor:
    """The bin of each activation, (units, rows)."""
    n, units = len(x), max(1, 2**24 // max(1, len(x)))
    k = torch.arange(1, bins, device=x.device)
    found = []
    for unit in x.T.split(units):
        unit = unit.to(torch.promote_types(x.dtype, torch.float32))
        unit = torch.where(unit == 0, -torch.inf, unit).contiguous()  # zeros come first
        zeros = (unit == -torch.inf).sum(1, keepdim=True)
        rest = zeros + (n - zeros) * (k - 1) // (bins - 1)
        place = torch.where(zeros > 0, rest, n * k // bins).clamp_max(n - 1)
        edges = unit.sort(1).values.gather(1, place)
        found.append(torch.searchsorted(edges, unit, right=True).to(torch.uint8))
    return torch.cat(found)


def _joint_counts(x: Tensor, y: Tensor, bins: int) -> Tensor:
    """How many rows fall into each cell of each pair, (units of x, bins, units of y, bins)."""
    counts = x.new_zeros(len(x) * bins, len(y) * bins, dtype=torch.float64)
    with torch.autocast(x.device.type, enabled=False):  # half precision would round counts
        for a, b in zip(x.split(_ROWS, 1), y.split(_ROWS, 1)):
            counts += _one_hot(a, bins) @ _one_hot(b, bins).T
    return counts.reshape(len(x), bins, len(y), bins)


def _one_hot(x: Tensor, bins: int) -> Tensor:
    levels = torch.arange(bins, device=x.device, dtype=torch.uint8)
    return (x[:, None] == levels[:, None]).float().flatten(0, 1)


def _divergence(p: Tensor) -> Tensor:
    """Σ p_kl ln p_kl - Σ p_k ln p_k - Σ p_l ln p_l, for p of shape (units, bins, units, bins)."""
    p_x, p_y = p.sum(3)[:, :, 0], p.sum(1)[0]
    joint = torch.special.xlogy(p, p).sum((1, 3))
    return joint + torch.special.entr(p_x).sum(1)[:, None] + torch.special.entr(p_y).sum(1)


def _filled(x: Tensor, bins: int) -> Tensor:
    """How many bins of each unit are not empty."""
    present = torch.zeros(len(x), bins, dtype=torch.bool, device=x.device)
    return present.scatter_(1, x.long(), True).sum(1)
