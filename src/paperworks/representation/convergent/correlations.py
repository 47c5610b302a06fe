"""Correlations between units, in one go or streamed."""

from __future__ import annotations

import torch
from torch import Tensor

from paperworks.representation.convergent.rows import check_rows

_BLOCK = 2**20
"""So many numbers of one side are in double precision at a time."""


class CorrelationAccumulator:
    """Correlation of every unit of A with every unit of B, from batches of activations.

        c_ij = E[(x_i - μ_i)(y_j - ν_j)] / (σ_i τ_j)

    For more observations than fit into memory: p·q + 4(p + q) numbers are kept, whatever their
    count. Moments are kept in float64 about the running means (Chan, Golub & LeVeque 1983), as
    E[xy] - E[x]E[y] loses all its digits where means are large beside deviations. Everything is
    computed on the device of the first batch.

    A unit that never varies is dead: its correlations are 0, and `dead` names it. arXiv
    1511.07543, section 2.

    Args:
        p: units of A.
        q: units of B.

    Attributes:
        count: observations so far.

    Raises:
        ValueError: p or q is not a positive integer.

    >>> accumulator = CorrelationAccumulator(2, 1)
    >>> x = torch.tensor([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0]])  # the second unit is dead
    >>> c = accumulator.update(x[:2], -x[:2, :1]).update(x[2:], -x[2:, :1]).compute()
    >>> c.round(decimals=4)
    tensor([[-1.],
            [ 0.]], dtype=torch.float64)
    >>> accumulator.dead
    (tensor([1]), tensor([], dtype=torch.int64))
    """

    def __init__(self, p: int, q: int) -> None:
        for name, value in (("p", p), ("q", q)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        self.p, self.q = p, q
        self.count = 0
        self._product = torch.empty(0)  # Σ (x_i - μ_i)(y_j - ν_j)
        self._x = self._y = _Moments(torch.empty(0))

    @torch.no_grad()
    def update(self, x: Tensor, y: Tensor) -> CorrelationAccumulator:
        """Add observations.

        Args:
            x: A's activations (rows, p), floating point.
            y: B's for the same inputs and positions, (rows, q); on any device.

        Raises:
            TypeError: x or y is not a floating-point tensor.
            ValueError: no matrices of p and q columns, not equally many rows, none, or numbers that
                are not finite. Nothing was added then.
        """
        check_rows(x, y)
        if (x.shape[1], y.shape[1]) != (self.p, self.q):
            raise ValueError(
                f"x and y must have p = {self.p} and q = {self.q} columns, got {x.shape[1]} and "
                f"{y.shape[1]}"
            )
        if self.count == 0:
            self._product = x.new_zeros(self.p, self.q, dtype=torch.float64)
            self._x, self._y = (_Moments(z[0].to(x.device, torch.float64)) for z in (x, y))
        rows = max(1, _BLOCK // max(self.p, self.q))
        for a, b in zip(x.split(rows), y.split(rows)):
            self._add(a, b)
        return self

    def compute(self) -> Tensor:
        """Correlations (p, q) of what was seen so far, float64.

        Raises:
            ValueError: fewer than 2 rows were seen.
        """
        if self.count < 2:
            raise ValueError(f"a correlation needs 2 rows or more, got {self.count}")
        return self._normalise_(self._product.clone())

    @property
    def dead(self) -> tuple[Tensor, Tensor]:
        """Indices of the units of A, and of B, that have not varied so far."""
        return self._x.dead(), self._y.dead()

    def _add(self, x: Tensor, y: Tensor) -> None:
        n = len(x)
        weight = self.count * n / (self.count + n)
        self.count += n
        x, delta_x = self._x.add(x, weight, n / self.count)
        y, delta_y = self._y.add(y, weight, n / self.count)
        self._product.addmm_(x.T, y).addr_(delta_x, delta_y, alpha=weight)

    def _normalise_(self, c: Tensor) -> Tensor:
        c *= self._x.inverse_deviation()[:, None]
        c *= self._y.inverse_deviation()
        return c.clamp_(-1, 1)


class _Moments:
    """Mean and sum of squared deviations of one side's units, relative to its first row.

    Relative to it, a unit that never varies gives exact zeros.
    """

    def __init__(self, first: Tensor) -> None:
        self.first = first
        self.mean = torch.zeros_like(first)
        self.square = torch.zeros_like(first)

    def add(self, x: Tensor, weight: float, share: float) -> tuple[Tensor, Tensor]:
        """The centred block, and how far its mean is from the mean so far."""
        x = x.to(self.first.device, torch.float64) - self.first
        mean = x.mean(0)
        x -= mean
        delta = mean - self.mean
        self.square += x.square().sum(0) + weight * delta.square()
        self.mean += share * delta
        return x, delta

    def dead(self) -> Tensor:
        return (self.square == 0).nonzero().flatten()

    def inverse_deviation(self) -> Tensor:
        return torch.where(self.square > 0, self.square.rsqrt(), 0)


def correlation(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Correlation of every unit of A with every unit of B, or of A's units among themselves.

        c_ij = E[(x_i - μ_i)(y_j - ν_j)] / (σ_i τ_j)

    Both sides are read in blocks, so beside them it needs little more memory than the result. For
    the units of one network, `correlation(x).fill_diagonal_(-1)` leaves a unit's own copy out of a
    matching: the control that says how alike units of one network are. For more observations than
    fit into memory, and to know which units are dead, see `CorrelationAccumulator`. arXiv
    1511.07543, section 2.

    Args:
        x: A's activations (rows, p), floating point.
        y: B's for the same inputs and positions in the same order, (rows, q); x by default.

    Returns:
        (p, q), float64, on x's device; 0 for a unit that does not vary.

    Raises:
        TypeError: x or y is not a floating-point tensor.
        ValueError: no matrices, not equally many rows, fewer than 2, or numbers that are not
            finite.

    >>> x = torch.tensor([[0.0, 3.0], [1.0, 0.0], [2.0, 0.0]])
    >>> correlation(x, x[:, :1]).round(decimals=4)
    tensor([[ 1.0000],
            [-0.8660]], dtype=torch.float64)
    """
    y = x if y is None else y
    check_rows(x, y, at_least=2)
    accumulator = CorrelationAccumulator(x.shape[1], y.shape[1]).update(x, y)
    return accumulator._normalise_(accumulator._product)  # its own, no copy of it
