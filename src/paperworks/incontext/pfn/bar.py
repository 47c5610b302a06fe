"""What a PFN says about y: a density in buckets for numbers, probabilities for classes."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from paperworks.incontext.iclinear.tasks import check_counts

_QUARTILE = NormalDist().inv_cdf(0.75)  # 0.67449, the median of a half-normal of scale 1


class Head(Protocol):
    """What turns a network's outputs into a distribution of y."""

    num_outputs: int

    def log_prob(self, logits: Tensor, y: Tensor) -> Tensor:
        """Logits (..., num_outputs) and y (...) to log densities (...)."""


class BarDistribution(nn.Module):
    """The Riemann distribution: a density that is constant in each bucket, with two tails.

    log q(y) = log softmax(logits)_b − log w_b for y in bucket b of width w_b. With `full_support`
    the outer buckets are half-normals from their inner borders outward whose medians lie at their
    outer borders, scale = w/0.67449: any y has a density. Reach for it to turn regression into
    classification: any shape of predictive density, bimodal ones included.

    Args:
        borders: (B + 1,), strictly increasing.
        full_support: half-normals outside; False: no density outside the borders, where
            `log_prob` is −∞ (the official code gives the outer buckets' density there).

    Attributes:
        borders: a buffer: saved with the model, and moves with it.
        num_outputs: B.

    Raises:
        ValueError: borders that are not a strictly increasing, finite sequence, or one bucket only
            with full support.

    Source: arXiv 2112.10510, section 4 and appendix (half-normals).

    >>> bars = BarDistribution(torch.tensor([0.0, 1.0, 3.0]), full_support=False)
    >>> bars.log_prob(torch.zeros(2, 2), torch.tensor([0.5, 2.0]))
    tensor([-0.6931, -1.3863])
    >>> bars.mean(torch.zeros(2)), bars.quantile(torch.zeros(2), 0.75)
    (tensor(1.2500), tensor(2.))
    """

    borders: Tensor

    def __init__(self, borders: Tensor, full_support: bool = True) -> None:
        super().__init__()
        borders = torch.as_tensor(borders)
        borders = borders if borders.is_floating_point() else borders.float()
        least = 3 if full_support else 2
        if borders.ndim != 1 or len(borders) < least or not borders.isfinite().all():
            raise ValueError(
                f"borders must be at least {least} finite numbers, got shape {tuple(borders.shape)}"
            )
        if not (borders.diff() > 0).all():
            at = int((borders.diff() <= 0).nonzero()[0])
            raise ValueError(
                f"borders must be strictly increasing, got {borders[at].item():g} and then "
                f"{borders[at + 1].item():g}"
            )
        self.register_buffer("borders", borders.detach().clone())
        self.num_outputs = len(borders) - 1
        self.full_support = full_support

    @classmethod
    def from_samples(
        cls, y: Tensor, num_buckets: int, full_support: bool = True
    ) -> BarDistribution:
        """Buckets that hold equally many of these samples, of a prior's y for instance.

        Borders lie midway between neighbouring order statistics; the outermost are the least and
        the greatest sample.

        Raises:
            ValueError: fewer than two samples a bucket, samples that are not finite, or so many
                equal ones that borders fall together.

        >>> BarDistribution.from_samples(torch.arange(8.0), 4).borders
        tensor([0.0000, 1.5000, 3.5000, 5.5000, 7.0000])
        """
        check_counts(num_buckets=num_buckets)
        y = torch.as_tensor(y).flatten()
        if len(y) < 2 * num_buckets:
            raise ValueError(f"y: {num_buckets} buckets need twice as many samples, got {len(y)}")
        if not y.isfinite().all():
            raise ValueError("y must be finite")
        ordered = y.sort().values
        inner = (torch.arange(1, num_buckets, device=y.device) * len(y)) // num_buckets
        middle = (ordered[inner - 1] + ordered[inner]) / 2
        borders = torch.cat([ordered[:1], middle, ordered[-1:]])
        if not (borders.diff() > 0).all():
            raise ValueError(
                "y has too many equal values: borders must be strictly increasing; use fewer "
                "buckets, or classes for discrete y"
            )
        return cls(borders, full_support)

    def log_prob(self, logits: Tensor, y: Tensor) -> Tensor:
        """Log density at y (...) of logits (..., B)."""
        self._check(logits)
        y = y.to(logits)
        bucket = self._bucket(y)
        shape = torch.broadcast_shapes(logits.shape[:-1], y.shape)
        chosen = logits.log_softmax(-1).expand(*shape, -1).gather(
            -1, bucket.expand(shape)[..., None]
        )[..., 0]  # fmt: skip
        inside = -self._widths(logits).log()[bucket]
        if not self.full_support:
            outside = (y < self._lowest(logits)) | (y > self._highest(logits))
            return (chosen + inside).masked_fill(outside, -math.inf)
        scale, anchor = self._tail(bucket, logits)
        tail = math.log(2 / math.pi) / 2 - scale.log() - ((y - anchor) / scale).square() / 2
        return chosen + torch.where(self._is_outer(bucket), tail, inside)

    def mean(self, logits: Tensor) -> Tensor:
        """(..., B) → (...)."""
        self._check(logits)
        return (logits.softmax(-1) * self._moments(logits)[0]).sum(-1)

    def variance(self, logits: Tensor) -> Tensor:
        """(..., B) → (...)."""
        self._check(logits)
        means, variances = self._moments(logits)
        spread = (means - self.mean(logits)[..., None]).square()
        return (logits.softmax(-1) * (variances + spread)).sum(-1)

    def cdf(self, logits: Tensor, y: Tensor) -> Tensor:
        """P(Y ≤ y) for logits (..., B) and y (...)."""
        self._check(logits)
        y = torch.as_tensor(y).to(logits)
        bucket = self._bucket(y)
        shape = torch.broadcast_shapes(logits.shape[:-1], y.shape)
        p = logits.softmax(-1).expand(*shape, -1)
        which = bucket.expand(shape)[..., None]
        below = (p.cumsum(-1) - p).gather(-1, which)[..., 0]
        share = ((y - self.borders.to(logits)[bucket]) / self._widths(logits)[bucket]).clamp(0, 1)
        if self.full_support:
            scale, anchor = self._tail(bucket, logits)
            beyond = torch.erf((y - anchor).abs() / scale / math.sqrt(2))
            share = torch.where(bucket == 0, 1 - beyond, share)
            share = torch.where(bucket == self.num_outputs - 1, beyond, share)
        return below + p.gather(-1, which)[..., 0] * share

    def quantile(self, logits: Tensor, p: Tensor | float) -> Tensor:
        """The y with P(Y ≤ y) = p, for logits (..., B) and p (...) that broadcast.

        Raises:
            ValueError: a p outside [0, 1].
        """
        self._check(logits)
        p = torch.as_tensor(p, dtype=logits.dtype, device=logits.device)
        if not ((p >= 0) & (p <= 1)).all():
            raise ValueError("p must lie in [0, 1]")
        shape = torch.broadcast_shapes(logits.shape[:-1], p.shape)
        level = p.expand(shape).double()[..., None].contiguous()
        mass = logits.double().softmax(-1).expand(*shape, -1)
        up_to = mass.cumsum(-1)
        up_to = up_to / up_to[..., -1:]
        bucket = torch.searchsorted(up_to[..., :-1].contiguous(), level)
        within = mass.gather(-1, bucket)
        share = (level - up_to.gather(-1, bucket) + within) / within.clamp(min=1e-300)
        # only p = 1 reaches the end of a tail, only 0 its start
        edge = torch.finfo(torch.float64).eps
        share = torch.where((level > 0) & (level < 1), share.clamp(edge, 1 - edge), level)
        bucket, share = bucket[..., 0], share[..., 0]
        y = self.borders.double()[bucket] + share * self._widths(logits.double())[bucket]
        if self.full_support:
            scale, anchor = self._tail(bucket, logits.double())
            reach = scale * math.sqrt(2)
            y = torch.where(bucket == 0, anchor - reach * torch.erfinv(1 - share), y)
            last = bucket == self.num_outputs - 1
            y = torch.where(last, anchor + reach * torch.erfinv(share), y)
        return y.to(logits)

    def sample(
        self, logits: Tensor, num_samples: int = 1, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws of shape (num_samples, ...) for logits (..., B); generator on their device."""
        check_counts(num_samples=num_samples)
        u = logits.new_empty(num_samples, *logits.shape[:-1]).uniform_(generator=generator)
        return self.quantile(logits, u)

    def _check(self, logits: Tensor) -> None:
        if logits.shape[-1:] != (self.num_outputs,):
            raise ValueError(
                f"logits must have shape (..., {self.num_outputs}), got {tuple(logits.shape)}"
            )

    def _widths(self, like: Tensor) -> Tensor:
        return self.borders.to(like).diff()

    def _lowest(self, like: Tensor) -> Tensor:
        return self.borders[0].to(like)

    def _highest(self, like: Tensor) -> Tensor:
        return self.borders[-1].to(like)

    def _bucket(self, y: Tensor) -> Tensor:
        """A border belongs to the bucket below it, the lowest to bucket 0."""
        return (torch.searchsorted(self.borders.to(y), y.contiguous()) - 1).clamp(
            0, self.num_outputs - 1
        )

    def _is_outer(self, bucket: Tensor) -> Tensor:
        return (bucket == 0) | (bucket == self.num_outputs - 1)

    def _tail(self, bucket: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and inner border of the half-normal at the side where a bucket lies."""
        borders = self.borders.to(like)
        scale = self._widths(like)[bucket] / _QUARTILE
        return scale, torch.where(bucket == 0, borders[1], borders[-2])

    def _moments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance inside each bucket."""
        borders, widths = self.borders.to(like), self._widths(like)
        means, variances = (borders[1:] + borders[:-1]) / 2, widths.square() / 12
        if self.full_support:
            ends = torch.tensor([0, self.num_outputs - 1], device=like.device)
            side = torch.tensor([-1.0, 1.0]).to(like)
            scale, anchor = self._tail(ends, like)
            means = means.index_copy(0, ends, anchor + side * scale * math.sqrt(2 / math.pi))
            variances = variances.index_copy(0, ends, scale.square() * (1 - 2 / math.pi))
        return means, variances


class CategoricalHead(nn.Module):
    """Probabilities of classes 0, …, K − 1: log q(y) = log softmax(logits)_y.

    For two classes it is the binary cross-entropy in log odds logits₁ − logits₀.

    Args:
        num_classes: K, at least 2.

    Raises:
        ValueError: fewer than two classes.

    >>> CategoricalHead(2).log_prob(torch.zeros(1, 2), torch.tensor([1]))
    tensor([-0.6931])
    """

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        check_counts(num_classes=num_classes)
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        self.num_outputs = num_classes

    def log_prob(self, logits: Tensor, y: Tensor) -> Tensor:
        """Logits (..., K) and labels y (...), whole numbers of any dtype, to log probabilities."""
        return -functional.cross_entropy(
            logits.reshape(-1, self.num_outputs), y.reshape(-1).long(), reduction="none"
        ).view(y.shape)
