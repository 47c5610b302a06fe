"""One unit from few others."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.linear_model import Lasso
from sklearn.utils.validation import check_is_fitted, validate_data


class SparsePrediction(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Predict each unit of B from few units of A.

        min over w_j of  ½ E(y_j - w_j x)² + α ‖w_j‖₁   for every unit j of B, x and y standardised

    Reach for it where units have no single partner: `n_nonzero_` says how many units of A make one
    of B, `coef_` which, and `half_mse` how well on other data. Predicting the mean scores 0.5; a
    single partner of correlation c scores ½(1 - c² + α²).

    Solved by coordinate descent (`sklearn.linear_model.Lasso`), whose zeros are exact. The paper
    trains by SGD, which leaves small weights everywhere. Its loss is a mean over q units and its
    penalty λ a sum, so that α = q·λ (our reading, from the released logs): `from_paper_decay`.
    arXiv 1511.07543, section 3.3.

    Args:
        alpha: α >= 0; 0 is least squares, the smallest solution.
        max_iter: passes of the coordinate descent.

    Attributes:
        coef_: w, (q, p), between standardised units.
        half_mse_: ½ E(y - wx)² of each unit of B on the data of the fit, (q,).
        n_nonzero_: units of A that each unit of B uses, (q,).
        dead_: units of B that do not vary. They are predicted without an error: leave them out of
            means.
        x_mean_, x_scale_, y_mean_, y_scale_: what standardises; a scale of 1 where nothing varies.
        n_iter_: passes used, (q,).

    >>> x = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    >>> y = 0.8 * x[:, :1] + 0.6 * x[:, :1] * x[:, 1:]  # correlation 0.8 with the first unit
    >>> map_ = SparsePrediction(alpha=0.1).fit(x, y)
    >>> map_.coef_.round(4), map_.n_nonzero_, map_.half_mse_.round(4)
    (array([[0.7, 0. ]]), array([1]), array([0.185]))
    """

    coef_: NDArray[Any]
    half_mse_: NDArray[Any]
    n_nonzero_: NDArray[Any]

    def __init__(self, alpha: float = 0.1, max_iter: int = 1000) -> None:
        self.alpha = alpha
        self.max_iter = max_iter

    @classmethod
    def from_paper_decay(cls, lam: float, q: int) -> SparsePrediction:
        """The estimator for the paper's decay λ with q units of B: α = q·λ.

        >>> SparsePrediction.from_paper_decay(1e-3, q=96).alpha
        0.096
        """
        return cls(alpha=lam * q)

    def fit(self, X: ArrayLike, Y: ArrayLike) -> SparsePrediction:
        """Fit on A's activations X (rows, p) and B's Y (rows, q), the same rows of both.

        Raises:
            ValueError: alpha is negative or max_iter not positive; not matrices of equally many
                rows, at least 2, or numbers that are not finite.
        """
        if not self.alpha >= 0:
            raise ValueError(f"alpha must be >= 0, got {self.alpha!r}")
        x: Any
        y: Any
        x, y = validate_data(
            self, X, Y, multi_output=True, y_numeric=True, dtype=_FLOAT, ensure_min_samples=2
        )
        self._one_target = y.ndim == 1
        y = y.astype(_FLOAT).reshape(len(x), -1)
        self.x_mean_, self.x_scale_ = _mean_and_scale(x)
        self.y_mean_, self.y_scale_ = _mean_and_scale(y)
        self.dead_ = np.flatnonzero(np.ptp(y, axis=0) == 0)
        x, y = (x - self.x_mean_) / self.x_scale_, (y - self.y_mean_) / self.y_scale_
        if self.alpha == 0:
            self.coef_ = np.linalg.lstsq(x, y)[0].T
            self.n_iter_ = np.ones(y.shape[1], dtype=int)
        else:
            # a fixed random_state, unused, keeps scikit-learn from drawing a seed globally
            options = {"fit_intercept": False, "precompute": True, "random_state": 0}
            lasso = Lasso(self.alpha, max_iter=self.max_iter, **options).fit(x, y)
            self.coef_ = lasso.coef_.reshape(y.shape[1], x.shape[1])
            self.n_iter_ = np.atleast_1d(lasso.n_iter_)
        self.n_nonzero_ = np.count_nonzero(self.coef_, axis=1)
        self.half_mse_ = _half_mse(y, x @ self.coef_.T)
        return self

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """B's activations (rows, q), in their own units, from A's (rows, p)."""
        predicted = self._standardised(X) * self.y_scale_ + self.y_mean_
        return predicted[:, 0] if self._one_target else predicted

    def half_mse(self, X: ArrayLike, Y: ArrayLike) -> NDArray[Any]:
        """½ E(y_j - w_j x)² of each unit of B, (q,), on other data in the units of the fit.

        Raises:
            ValueError: Y has not the shape (rows of X, q).
        """
        predicted = self._standardised(X)
        Y = np.asarray(Y, dtype=_FLOAT)
        Y = Y[:, None] if Y.ndim == 1 else Y
        if Y.shape != predicted.shape:
            raise ValueError(f"Y must have shape {predicted.shape}, got {Y.shape}")
        return _half_mse((Y - self.y_mean_) / self.y_scale_, predicted)

    def _standardised(self, X: ArrayLike) -> NDArray[Any]:
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=_FLOAT)
        predicted: NDArray[Any] = (X - self.x_mean_) / self.x_scale_ @ self.coef_.T
        return predicted


_FLOAT = np.float64


def _mean_and_scale(x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """A unit that does not vary has its value for a mean, whatever the rounding, and scale 1."""
    alive = np.ptp(x, axis=0) > 0
    return np.where(alive, x.mean(0), x[0]), np.where(alive, x.std(0), 1.0)


def _half_mse(y: NDArray[Any], predicted: NDArray[Any]) -> NDArray[Any]:
    half: NDArray[Any] = 0.5 * np.square(y - predicted).mean(0)
    return half
