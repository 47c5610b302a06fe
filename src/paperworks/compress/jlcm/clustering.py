"""Clusters of numbers, and of neurons whose weights are distributed alike."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from torch import Tensor

from paperworks.compress.blocks import checked_weight

Mode = Literal["codebook", "scale"]
Method = Literal["exact", "lloyd"]
QUANTILES = 16
SMALLEST_DEVIATION = 1e-8
"""Keeps a row of equal weights from a division by zero."""

Array = NDArray[np.float64]


def kmeans1d(
    values: Tensor,
    k: int,
    method: Method = "exact",
    *,
    weights: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """k-means of numbers: the k codewords of least squared error, and the nearest to each number.

        `min over c  sum_i weights_i * min_k (values_i - c_k)^2`

    For look-up tables of weights. In one dimension clusters are intervals, and the best ones can be
    found by dynamic programming ("exact": `O(k n log n)` time and `O(k n)` memory, n the number of
    distinct values). "lloyd" starts from k-means++ and ends in a local optimum; on sorted numbers a
    step takes `O(k log n)`, so that it costs hardly more than sorting: for millions of values.

    Args:
        values: numbers, of any shape and floating dtype.
        k: how many codewords. Where there are fewer distinct values, the largest is repeated.
        method: "exact" or "lloyd".
        weights: how much each value counts, of the same shape and positive; all alike by default.
        generator: draws the start of "lloyd"; a fresh one with seed 0 by default.

    Returns:
        `(codewords, indices)`: k numbers, ascending, in float32 (float64 for such values), and an
        int64 in [0, k) for each value, in its shape.

    Raises:
        ValueError: k is not positive, values are empty or not finite, weights are not positive or
            of another shape, an unknown method.
        TypeError: values are not floating point.

    Dynamic programming with monotone splits: Grønlund et al. 2017, arXiv 1701.07204 (from memory).

    >>> codewords, indices = kmeans1d(torch.tensor([0.0, 1.0, 9.0, 10.0, 11.0]), 2)
    >>> codewords, indices
    (tensor([ 0.5000, 10.0000]), tensor([0, 0, 1, 1, 1]))
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k must be a positive integer, got {k!r}")
    if method not in ("exact", "lloyd"):
        raise ValueError(f"method must be 'exact' or 'lloyd', got {method!r}")
    x = _checked(values)
    sorted_values, mass = _distinct(x, _checked_weights(values, weights))
    if len(sorted_values) <= k:
        codewords = np.pad(sorted_values, (0, k - len(sorted_values)), mode="edge")
    elif method == "exact":
        codewords = _exact(sorted_values, mass, k)
    else:
        codewords = _lloyd(sorted_values, mass, k, generator or torch.Generator().manual_seed(0))
    c = torch.from_numpy(codewords).to(x)
    return c, nearest(x, c)


def nearest(values: Tensor, codewords: Tensor) -> Tensor:
    """For each value the index of the nearest of ascending codewords, the lower one of two."""
    return torch.bucketize(values.contiguous(), (codewords[1:] + codewords[:-1]) / 2)


def group_neurons(
    weight: Tensor,
    groups: int,
    mode: Mode = "codebook",
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Which output neurons have weights of like distribution: one label for each row.

    k-means on each row's 16 quantiles, whose distance is that of Wasserstein between the
    distributions of the weights. With "scale", where the groups share a codebook and differ by a
    factor alone, on the logarithm of each row's standard deviation. Both clusterings are our
    reading; the paper's text was not available.

    Args:
        weight: shape (out, ...), any floating dtype; each row is one neuron.
        groups: how many groups; there may be fewer where rows are equal.
        mode: "codebook" or "scale".
        generator: draws the starts; a fresh one with seed 0 by default.

    Returns:
        int64 in [0, groups), shape (out,). Groups are numbered by how widely their rows spread.

    Raises:
        ValueError: groups is not positive or exceeds the neurons, the weight is empty, has no
            columns or is not finite, an unknown mode.
        TypeError: the weight is not floating point.

    Yvinec, Dapogny, Bailly 2023, arXiv 2309.17361.

    >>> weight = torch.tensor([[0.1, -0.1], [5.0, -5.0], [-0.1, 0.1], [-5.0, 5.1]])
    >>> group_neurons(weight, 2)
    tensor([0, 1, 0, 1])
    """
    rows = _checked_rows(weight)
    check_groups(groups, len(rows))
    if mode not in ("codebook", "scale"):
        raise ValueError(f"mode must be 'codebook' or 'scale', got {mode!r}")
    if mode == "scale":
        labels = kmeans1d(deviations(rows).log(), groups)[1].cpu()
    else:
        labels = _by_quantiles(rows, groups, generator or torch.Generator().manual_seed(0))
    spread = rows.cpu().square().mean(1)
    _, labels = labels.unique(return_inverse=True)  # one may be empty
    sizes = labels.bincount()
    width = spread.new_zeros(len(sizes)).index_add(0, labels, spread) / sizes
    return width.argsort().argsort()[labels].to(weight.device)


def check_groups(groups: int, neurons: int) -> None:
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
        raise ValueError(f"groups must be a positive integer, got {groups!r}")
    if groups > neurons:
        raise ValueError(f"groups ({groups}) exceed neurons ({neurons})")


def deviations(rows: Tensor) -> Tensor:
    """Each row's standard deviation, never zero."""
    return rows.std(1, correction=0).clamp_min(SMALLEST_DEVIATION)


# --- checks ---------------------------------------------------------------------------------------


def _checked(values: Tensor) -> Tensor:
    try:
        return checked_weight(values)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("weight", "values", 1)) from None


def _checked_rows(weight: Tensor) -> Tensor:
    checked = checked_weight(weight, per_channel=True)
    return checked.reshape(len(weight), -1)


def _checked_weights(values: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return torch.ones(values.shape)
    if weights.shape != values.shape or not (weights > 0).all():
        raise ValueError(
            f"weights must be positive and of shape {tuple(values.shape)}, got "
            f"{tuple(weights.shape)}"
        )
    return weights


def _by_quantiles(rows: Tensor, groups: int, generator: torch.Generator) -> Tensor:
    levels = (torch.arange(QUANTILES, dtype=rows.dtype, device=rows.device) + 0.5) / QUANTILES
    few = max(1, 2**24 // rows.shape[1])  # torch sorts no more at a time
    quantiles = torch.cat([part.quantile(levels, dim=1).T for part in rows.split(few)])
    features = quantiles.double().cpu().numpy()
    groups = min(groups, len(np.unique(features, axis=0)))
    if groups == 1:
        return torch.zeros(len(rows), dtype=torch.long)
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    return torch.from_numpy(KMeans(groups, n_init=4, random_state=seed).fit_predict(features))


def _distinct(values: Tensor, weights: Tensor) -> tuple[Array, Array]:
    """Ascending values, each once, and what those that were equal weigh together."""
    x, mass = (t.detach().double().cpu().flatten().numpy() for t in (values, weights))
    order = x.argsort(kind="stable")
    x, mass = x[order], mass[order]
    first = np.flatnonzero(np.concatenate([[True], x[1:] != x[:-1]]))
    return x[first], np.add.reduceat(mass, first)


# --- k-means on sorted values ---------------------------------------------------------------------


class _Intervals:
    """Masses, means and squared errors of intervals [a, b) of ascending values, from sums."""

    def __init__(self, x: Array, mass: Array) -> None:
        self.x = x
        self.middle = float(np.average(x, weights=mass))  # against cancellation
        centred = x - self.middle
        self.sums = [
            np.concatenate([[0.0], np.cumsum(part)])
            for part in (mass, mass * centred, mass * centred**2)
        ]

    def mean(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> Array:
        mass, first = (total[b] - total[a] for total in self.sums[:2])
        return self.middle + first / mass

    def error(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> Array:
        mass, first, second = (total[b] - total[a] for total in self.sums)
        return second - first**2 / mass


def _exact(x: Array, mass: Array, k: int) -> Array:
    """D_j(i) = min over t of D_(j-1)(t) + error of [t, i): the best j clusters of the first i."""
    n, intervals = len(x), _Intervals(x, mass)
    if k == 1:
        return intervals.mean(np.array([0]), np.array([n]))
    ends = np.arange(1, n + 1)
    best = np.concatenate([[0.0], intervals.error(np.zeros_like(ends), ends)])
    splits = []
    for j in range(2, k):
        best, split = _add_cluster(best, j, intervals)
        splits.append(split)
    starts = np.arange(k - 1, n)  # the last cluster ends at n
    bounds = [n, int(starts[np.argmin(best[starts] + intervals.error(starts, np.full(1, n)))])]
    for split in reversed(splits):
        bounds.append(int(split[bounds[-1]]))
    edges = np.array([*bounds, 0])[::-1]
    return intervals.mean(edges[:-1], edges[1:])


def _add_cluster(best: Array, j: int, intervals: _Intervals) -> tuple[Array, NDArray[np.int32]]:
    """The best j clusters of the first i values, for all i, and where the last of them starts.

    That start never falls as i grows: every other i is between two neighbours that are known
    already, so that a whole level takes one pass.
    """
    n = len(best) - 1
    split = np.full(n + 1, j - 1, dtype=np.int32)
    least = np.full(n + 1, np.inf)
    stride = 1 << (n - j).bit_length()
    while stride:
        i = np.arange(j - 1 + stride, n + 1, 2 * stride)
        low = split[i - stride]
        above = np.minimum(i + stride, n)
        high = np.where(i + stride <= n, np.minimum(split[above], i - 1), i - 1)
        counts = high - low + 1
        begin = np.cumsum(counts) - counts
        t = np.arange(counts.sum()) + np.repeat(low - begin, counts)
        costs = best[t] + intervals.error(t, np.repeat(i, counts))
        least[i] = np.minimum.reduceat(costs, begin)
        hits = np.flatnonzero(costs == np.repeat(least[i], counts))[::-1]
        split[i[np.searchsorted(begin, hits, "right") - 1]] = t[hits]  # the first of equals last
        stride //= 2
    return least, split


def _lloyd(x: Array, mass: Array, k: int, generator: torch.Generator, steps: int = 300) -> Array:
    """Clusters are intervals between midpoints; their means are the next codewords."""
    intervals, codewords = _Intervals(x, mass), _plus_plus(x, mass, k, generator)
    edges = np.array([])
    for _ in range(steps):
        inner = np.searchsorted(x, (codewords[1:] + codewords[:-1]) / 2, "right")
        if np.array_equal(edges, inner):
            break
        edges = inner
        a, b = np.concatenate([[0], edges]), np.concatenate([edges, [len(x)]])
        full = a < b  # an empty one stays where it is
        codewords[full] = intervals.mean(a[full], b[full])
    return codewords


def _plus_plus(x: Array, mass: Array, k: int, generator: torch.Generator) -> Array:
    """k-means++: each codeword a value, drawn with its squared distance from those before."""
    draws = torch.rand(k, generator=generator, dtype=torch.float64, device=generator.device)
    chance, distance, chosen = mass, np.full(len(x), np.inf), []
    for u in draws.tolist():
        total = np.cumsum(chance)
        chosen.append(x[min(np.searchsorted(total, u * total[-1], "right"), len(x) - 1)])
        distance = np.minimum(distance, (x - chosen[-1]) ** 2)
        chance = mass * distance
    return np.sort(np.array(chosen))
