"""What the field's estimators share: the units of their targets, and first inducing points."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

Array = NDArray[Any]

_KMEANS_ROWS = 10_000
"""Rows from which k-means finds inducing points."""


class ScaledTargets:
    """Mixin: targets of one or several columns, modelled with mean 0 and deviation 1 if so asked.

    Attributes:
        normalize_y: whether; otherwise they are modelled as they are.
        y_mean_, y_scale_: of each column.
    """

    normalize_y: bool
    y_mean_: Array
    y_scale_: Array

    def _learn_scale(self, y: Array) -> None:
        columns = y.reshape(len(y), -1)
        self._single = y.ndim == 1
        self.y_mean_, self.y_scale_ = np.zeros(columns.shape[1]), np.ones(columns.shape[1])
        if self.normalize_y:
            deviation = columns.std(0)
            self.y_mean_ = columns.mean(0)
            self.y_scale_ = np.where(deviation > 1e-12 * abs(columns).max(), deviation, 1.0)

    def _scaled(self, y: Array) -> Array:
        """Targets (n, outputs) as they are modelled."""
        return (y.reshape(len(y), -1) - self.y_mean_) / self.y_scale_

    def _shaped(self, values: Array) -> Array:
        """Values (n, outputs), or (n,) where targets were."""
        return values[:, 0] if self._single else values

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()  # type: ignore[misc]
        tags.target_tags.multi_output = True
        return tags


def inducing_rows(X: Array, number: int, random: np.random.RandomState) -> Array:
    """So many centres of rows X (n, features) by k-means, or its distinct rows where they are few.

    Of more than 10,000 rows so many are drawn first.
    """
    if len(X) > _KMEANS_ROWS:
        X = X[random.choice(len(X), _KMEANS_ROWS, replace=False)]
    distinct = np.unique(X, axis=0)
    if len(distinct) <= number:
        return distinct
    return KMeans(number, n_init=1, random_state=random).fit(X).cluster_centers_


__all__ = ["ScaledTargets", "inducing_rows"]
