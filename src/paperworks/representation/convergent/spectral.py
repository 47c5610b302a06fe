"""Groups of units of two networks that span much the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import linkage
from scipy.linalg import eigh
from scipy.spatial.distance import squareform
from sklearn.cluster import KMeans
from torch import Tensor

from paperworks.representation.convergent.rows import check_similarity


def spectral_matching(
    between: Tensor, n_clusters: int, random_state: int | np.random.RandomState | None = 0
) -> tuple[Tensor, Tensor]:
    """Cluster the units of both networks together, by their correlations between the networks.

        L = I - D^{-1/2} W D^{-1/2},   W = [[0, C], [Cᵀ, 0]],   C = max(0, `between`)

    The rows of the eigenvectors of L's `n_clusters` smallest eigenvalues, scaled to length 1, are
    clustered by k-means. Reach for it where units have no single partner, but a group of units here
    goes with a group of units there. A cluster with units of one network only has no counterpart in
    the other. `cluster_tree` says which clusters are closest.

    That spectral, then hierarchical clustering finds groups of similar units is arXiv 1511.07543,
    section 4 (40 clusters for conv1); these formulas are from memory, those of Ng, Jordan & Weiss
    2002. Memory and time: (p + q)² and (p + q)³.

    Args:
        between: correlations (p, q).
        n_clusters: how many clusters, at most p + q.
        random_state: for k-means.

    Returns:
        For each unit of A (p,) and of B (q,) its cluster, LongTensors; -1 for a unit, dead ones
        among them, that has no positive correlation at all and so belongs nowhere.

    Raises:
        TypeError: between is not a floating-point tensor.
        ValueError: no matrix, NaN or infinite numbers in it; n_clusters below 1 or above the units
            that have a positive correlation.

    >>> between = torch.tensor([[0.9, 0.8, 0.0], [0.7, 0.9, 0.0], [0.0, 0.0, 0.9]])
    >>> labels_a, labels_b = spectral_matching(between, 2)
    >>> (labels_a == labels_a[0]).tolist(), (labels_b == labels_a[0]).tolist()
    ([True, True, False], [True, True, False])
    """
    c = _positive(between)
    p, q = c.shape
    if isinstance(n_clusters, bool) or not isinstance(n_clusters, int) or n_clusters < 1:
        raise ValueError(f"n_clusters must be a positive integer, got {n_clusters!r}")
    if n_clusters > p + q:
        raise ValueError(f"n_clusters must be at most p + q = {p + q}, got {n_clusters}")
    w = np.block([[np.zeros((p, p)), c], [c.T, np.zeros((q, q))]])
    degree = w.sum(1)
    connected = np.flatnonzero(degree)
    if n_clusters > len(connected):
        raise ValueError(
            f"n_clusters must be at most the {len(connected)} units that have a positive "
            f"correlation, got {n_clusters}"
        )
    labels = np.full(p + q, -1, dtype=np.int64)
    embedded = _embedding(w[np.ix_(connected, connected)], degree[connected], n_clusters)
    kmeans = KMeans(n_clusters, n_init=10, random_state=random_state).fit(embedded)
    labels[connected] = kmeans.labels_
    on_device = torch.from_numpy(labels).to(between.device)
    return on_device[:p], on_device[p:]


def cluster_tree(between: Tensor, labels_a: Tensor, labels_b: Tensor) -> NDArray[Any]:
    """Merge clusters of units bottom-up, the most alike first.

        s(g, h) = mean of max(0, c_ij) over units i of A and j of B, one in g and the other in h

    Clusters are at the distance 1 - s, and merged ones at the mean distance of their members
    (average linkage). Hand the result to scipy's `dendrogram` to draw it, or to `fcluster` for a
    coarser clustering. arXiv 1511.07543, section 4, merges clusters hierarchically; this distance
    is ours.

    Args:
        between: correlations (p, q).
        labels_a: the cluster 0, ..., k-1 of each unit of A, as `spectral_matching` gives it; -1 for
            none.
        labels_b: likewise of B.

    Returns:
        scipy's linkage matrix (k-1, 4): the two merged, their distance, how many clusters are
        inside.

    Raises:
        TypeError: between is not a floating-point tensor.
        ValueError: no matrix, NaN or infinite numbers in it; labels of other lengths; fewer than
            two clusters.

    >>> between = torch.tensor([[0.9, 0.8, 0.0], [0.7, 0.9, 0.1], [0.0, 0.0, 0.9]])
    >>> tree = cluster_tree(between, torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2]))
    >>> tree[0].tolist()  # 0 and 1 become one, at 1 - (0.8 + 0.7) / 2
    [0.0, 1.0, 0.25, 2.0]
    """
    c = _positive(between)
    for name, labels, n in (("labels_a", labels_a, c.shape[0]), ("labels_b", labels_b, c.shape[1])):
        if labels.shape != (n,):
            raise ValueError(f"{name} must have shape ({n},), got {tuple(labels.shape)}")
    k = int(max(labels_a.max(), labels_b.max())) + 1
    if k < 2:
        raise ValueError(f"a tree needs at least two clusters, got {k}")
    a, b = (
        (labels.cpu().numpy()[:, None] == np.arange(k)) * 1.0 for labels in (labels_a, labels_b)
    )
    pairs = np.outer(a.sum(0), b.sum(0))
    total = a.T @ c @ b
    similarity = (total + total.T) / np.maximum(pairs + pairs.T, 1)
    distance = 1 - similarity
    np.fill_diagonal(distance, 0)
    tree: NDArray[Any] = linkage(squareform(distance, checks=False), "average")
    return tree


def _positive(between: Tensor) -> NDArray[np.float64]:
    check_similarity(between, "between")
    return between.detach().double().cpu().numpy().clip(min=0)


def _embedding(w: NDArray[Any], degree: NDArray[Any], k: int) -> NDArray[Any]:
    """Rows of the eigenvectors of L's k smallest, W's k largest eigenvalues, of length 1."""
    scale = degree**-0.5
    n = len(w)
    vectors = eigh(scale[:, None] * w * scale, subset_by_index=[n - k, n - 1])[1]
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)
