"""PFNs as scikit-learn estimators."""

from __future__ import annotations

import warnings
from importlib.resources import as_file, files
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor
from torch.nn import functional

from paperworks.incontext.pfn.bar import BarDistribution, CategoricalHead
from paperworks.incontext.pfn.model import PFN, load_pfn
from paperworks.incontext.pfn.training import context_moments, standardize_context

Array = NDArray[np.float64]

_CHUNK = 4096
"""Queries predicted at once."""


class _PFNEstimator(BaseEstimator):
    """The context as a network sees it: reduced to its features, padded, standardised."""

    _shipped: str

    def __init__(self, model: PFN | None = None, standardize: bool | None = None) -> None:
        self.model = model
        self.standardize = standardize

    def _fit_context(self, X: Any, y: NDArray[Any]) -> None:
        """Keep the context; `y` is (outputs, n): each row a context of its own."""
        model = self.model
        if model is not None and not isinstance(model, PFN):
            raise TypeError(f"model must be a PFN or None, got {type(model).__name__}")
        self.model_ = self._load() if model is None else model
        self._check_head(self.model_.head)
        longest = int(self.model_.max_context)
        if longest and len(X) > longest:
            warnings.warn(
                f"{len(X)} rows are more than the {longest} that the model was trained with: it "
                "uses them all, and extrapolates",
                UserWarning,
                stacklevel=3,
            )
        self._learn_columns(X.astype(np.float64))
        self._X = self._columns(X)
        self._y = torch.from_numpy(y.astype(np.float64))

    def _load(self) -> PFN:
        with as_file(files(__package__) / f"{self._shipped}.safetensors") as file:
            return load_pfn(file).double()

    def _check_head(self, head: Any) -> None:
        raise NotImplementedError

    def _learn_columns(self, X: Array) -> None:
        """Principal components of standardised columns, where there are too many columns."""
        F = self.model_.num_features
        self.components_ = None
        if X.shape[1] <= F:
            return
        self._mean, std = X.mean(0), X.std(0)
        informative = std > 10 * np.finfo(float).eps * np.abs(X).max(0)
        self._std = np.where(informative, std, np.inf)
        _, _, components = np.linalg.svd((X - self._mean) / self._std, full_matrices=False)
        largest = np.abs(components).argmax(1)
        sign = np.sign(components[np.arange(len(components)), largest])
        components = (sign[:, None] * components)[:F]
        scores = (X - self._mean) / self._std @ components.T
        size = np.sqrt(np.square(scores).mean())
        self.components_ = components / (size if size > 0 else 1.0)

    def _columns(self, X: Any) -> Tensor:
        """(n, F): columns, or their principal components, and zeros for those that lack."""
        X = X.astype(np.float64)
        if self.components_ is not None:
            X = (X - self._mean) / self._std @ self.components_.T
        lacking = self.model_.num_features - X.shape[1]
        return functional.pad(torch.from_numpy(X), (0, lacking))

    def _logits(self, X: ArrayLike) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (outputs, queries, …) in float64; location and scale of y, (outputs, 1)."""
        check_is_fitted(self)
        queries = self._columns(validate_data(self, X, reset=False))
        model, n = self.model_, len(self._X)
        x, y = torch.cat([self._X, queries])[None], self._y
        location, scale = torch.zeros(len(y), 1), torch.ones(len(y), 1)
        chosen = bool(model.standardize) if self.standardize is None else self.standardize
        if chosen:
            if self.components_ is None:
                x, _ = standardize_context(x, y[:1], n)
            if isinstance(model.head, BarDistribution):
                location, std = context_moments(y)
                scale = torch.where(std > 0, std, 1.0)
                y = (y - location) / scale
        x = x.to(model.x_mean).expand(len(y), -1, -1)
        context, y = x[:, :n], y.to(x)
        with torch.no_grad():
            parts = [model(context, y, part) for part in x[:, n:].split(_CHUNK, dim=1)]
        return torch.cat(parts, dim=1).cpu().double(), location, scale


class PFNClassifier(ClassifierMixin, _PFNEstimator):
    """Small tables classified in one forward pass, with nothing to tune.

    q(y | x, D) of a `PFN` with the training rows as its context D: `fit` stores them. Without a
    `model` it is one that is shipped, trained by `python -m paperworks.incontext.pfn.train` on
    Bayesian neural networks with at most 10 features and contexts of at most 99 rows.

    - Columns are standardised by the training rows and rescaled by F_max/F; lacking ones are zeros.
      Columns that are constant in training say nothing.
    - Of more columns than the model has, the leading principal components of the standardised
      columns are kept, as many as it has, all divided by one number (mean square 1): to divide each
      by its own deviation would blow up what is noise.
    - More rows than it was trained with are used, with a warning.
    - More than two classes with a model for two: one against the rest, probabilities normalised.

    Args:
        model: a PFN with a `CategoricalHead` (its y are labels 0, 1, …); the shipped one by
            default.
        standardize: whether columns are standardised; by default as the model was trained.

    Attributes:
        classes_, n_features_in_: as scikit-learn has them.
        model_: the PFN.
        components_: principal components (F_max, features) after that division, or None where
            columns are used.

    Raises:
        ValueError: in `fit`, a model without a `CategoricalHead` or with too few classes (three at
            least, and fewer than the table), and what scikit-learn refuses: missing values first.
        TypeError: a model that is no PFN.

    Source: arXiv 2112.10510, section 6 (tabular data). One against the rest and principal
    components are ours.

    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> PFNClassifier().fit(X[::3], y[::3]).score(X, y) > 0.85
    True
    """

    _shipped = "classifier"

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Store rows X (n, features) and labels y (n,), of any kind."""
        X, y = validate_data(self, X, y)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        self._fit_context(X, labels[None])
        head_classes = int(self.model_.head.num_outputs)  # type: ignore[arg-type]
        K = len(self.classes_)
        if K > head_classes > 2:
            raise ValueError(f"y has {K} classes, and the model knows {head_classes}")
        if head_classes < K:
            self._y = (torch.arange(K)[:, None] == torch.from_numpy(labels)).double()
        return self

    def predict_proba(self, X: ArrayLike) -> Array:
        """Probabilities of `classes_`, (n, classes)."""
        logits, _, _ = self._logits(X)
        K = len(self.classes_)
        if len(logits) == 1:
            p = logits[0, :, :K].softmax(-1)
        else:
            p = functional.normalize(logits.softmax(-1)[..., 1].T, p=1, dim=1)
        return p.numpy()

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The most probable class."""
        p = self.predict_proba(X)
        return self.classes_[p.argmax(1)]

    def _check_head(self, head: Any) -> None:
        if not isinstance(head, CategoricalHead):
            raise ValueError(f"model must have a CategoricalHead, got {type(head).__name__}")


class PFNRegressor(RegressorMixin, _PFNEstimator):
    """Predictive distributions for small tables in one forward pass, with nothing to tune.

    q(y | x, D) of a `PFN` with the training rows as its context D. Without a `model` it is one that
    is shipped, trained by `python -m paperworks.incontext.pfn.train` on Gaussian processes of many
    lengthscales and on Bayesian neural networks, with at most 10 features and contexts of 4 to 99
    rows. Columns, rows and their limits are treated as in `PFNClassifier`; y is standardised by the
    training rows and mapped back.

    Args:
        model: a PFN with a `BarDistribution`; the shipped one by default.
        standardize: whether columns and y are standardised; by default as the model was trained. A
            model of your own prior that was trained without wants data of that prior's scale.

    Attributes:
        n_features_in_: as scikit-learn has it.
        model_: the PFN.
        components_: principal components (F_max, features), or None where columns are used.

    Raises:
        ValueError: in `fit`, a model without a `BarDistribution`, and what scikit-learn refuses:
            missing values first.
        TypeError: a model that is no PFN.

    Source: arXiv 2112.10510, sections 4 and 5; the shipped prior is ours.

    >>> X = np.linspace(0, 3, 40)[:, None]
    >>> model = PFNRegressor().fit(X, np.sin(X[:, 0]))
    >>> mean, std = model.predict(X, return_std=True)
    >>> mean.shape, std.shape, model.predict_quantile(X, [0.1, 0.9]).shape
    ((40,), (40,), (40, 2))
    """

    _shipped = "regressor"

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Store rows X (n, features) and targets y (n,)."""
        X, y = validate_data(self, X, y, y_numeric=True)
        self._fit_context(X, np.asarray(y)[None])
        return self

    def predict(self, X: ArrayLike, return_std: bool = False) -> Any:
        """Predictive means (n,), and their standard deviations with `return_std`."""
        logits, location, scale = self._logits(X)
        head = self._bars()
        mean = (location + scale * head.mean(logits))[0].numpy()
        return (mean, (scale * head.variance(logits).sqrt())[0].numpy()) if return_std else mean

    def predict_quantile(self, X: ArrayLike, q: float | ArrayLike) -> Array:
        """Predictive quantiles: (n,) of a number q in (0, 1), (n, k) of k of them."""
        levels = torch.as_tensor(np.asarray(q, dtype=np.float64))
        if levels.ndim > 1 or not ((levels > 0) & (levels < 1)).all():
            raise ValueError(
                f"q must be a number or numbers between 0 and 1, got {levels.tolist()}"
            )
        logits, location, scale = self._logits(X)
        logits = logits[0] if levels.ndim == 0 else logits[0][:, None]
        return (location[0] + scale[0] * self._bars().quantile(logits, levels)).numpy()

    def log_density(self, X: ArrayLike, y: ArrayLike) -> Array:
        """log q(y | x, D) of rows X and values y (n,), in the units of y."""
        logits, location, scale = self._logits(X)
        values = torch.as_tensor(np.asarray(y, dtype=np.float64))
        if values.shape != logits.shape[1:2]:
            raise ValueError(f"y must be ({logits.shape[1]},), got {tuple(values.shape)}")
        z = (values - location[0]) / scale[0]
        return (self._bars().log_prob(logits[0], z) - scale[0].log()).numpy()

    def _bars(self) -> BarDistribution:
        head = self.model_.head
        assert isinstance(head, BarDistribution)
        return head.cpu() if head.borders.is_cuda else head

    def _check_head(self, head: Any) -> None:
        if not isinstance(head, BarDistribution):
            raise ValueError(f"model must have a BarDistribution, got {type(head).__name__}")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = True
        return tags
