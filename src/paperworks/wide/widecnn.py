"""What wide convolutional networks can learn: kernels of hierarchies of patches, and their theory.

Cagnetta, Favero and Wyart, "What Can Be Learnt With Wide Convolutional Neural Networks?"
(arXiv 2208.01003). An infinitely wide ReLU network with filters that do not overlap is regression
with `HierarchicalKernel`. How fast it learns depends on the size of the patches on which the target
lives, not on the size of the input: a function of adjacent pixels is learned fast, one of all of
them at a rate that falls with their number.

Rows have d entries. The first s₁ of them are the first patch, the next s₁ the second, and so on;
layer l joins s_l neighbours of layer l − 1. The network averages what is left after L layers.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score
from sklearn.utils import gen_batches
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from paperworks.wide.kernels import cnn_nngp_kernel, cnn_ntk_kernel, psd_safe_cholesky

if TYPE_CHECKING:
    from pandas import DataFrame

Kind = Literal["ntk", "rf"]
Array = NDArray[Any]

_BATCH = 2**22
"""Entries of the kernel that a prediction holds at once: 32 MB."""


# ---------------------------------------------------------------------------------------------
# The kernel
# ---------------------------------------------------------------------------------------------


class HierarchicalKernel:
    """Kernel of an infinitely wide ReLU network with filters that do not overlap.

    Over positions p, with κ₀(t) = (π − arccos t)/π, κ₁(t) = (√(1−t²) + (π − arccos t)t)/π and
    t the cosine, C(x,y)/√(C(x,x)C(y,y)):
    C⁰_p = T⁰_p = x_p·y_p of first patches;  for l = 1 … L:
    R = ⟨√(C(x,x)C(y,y)) κ₁⟩,  T ← ⟨κ₀ T⟩ + R,  C ← R, with the mean ⟨·⟩ over the s_{l+1}
    neighbours that the next layer joins, at l = L over all that are left. "rf" (random features:
    only the readout is trained; the NNGP kernel) is C, "ntk" (every layer is trained) is T. On
    first patches of norm 1 the diagonals are 1 and L + 1.

    Reach for it when the target may depend on neighbouring entries more than on distant ones:
    filter sizes say what is near. One filter of the size of the row is the fully connected network.

    Args:
        filter_sizes: s_1, …, s_L, one for each *hidden* layer: (2, 2, 2) has three. Their product,
            the size of a metapatch of the last layer, must divide the number of entries d.
        kind: "ntk" or "rf".
        normalize: divide each first patch by its norm, as in the paper, whose inputs lie on a
            product of spheres. A blank patch stays blank.
        order: indices of the entries of a row in the order in which patches are cut, shape (d,);
            see `quadtree_order` for pictures.

    Called with X (n, d), and Y (m, d) if it is another, it gives K (n, m) in the dtype and on the
    device of X: a tensor for tensors (differentiable), an array for anything else. It is computed
    in float64 and tiles, in the memory of the result; a pair takes (d/s₁)(1 + 1/s₂ + …) arc
    cosines. `cnn_ntk_kernel` is the same but for the factor 2/s₁, and knows other activations.

    Raises:
        ValueError: no filter sizes or not positive ones, another kind; when called: filter sizes
            that do not divide d, an order that is no permutation, shapes that do not fit, entries
            that are not finite.
        TypeError: a tensor that is not of a floating dtype, or a tensor and an array.

    Source: arXiv 2208.01003, section 2. Patches that are not of norm 1, which the paper does not
    have, follow the network: K(cx, y) = cK(x, y) for c > 0.

    >>> x = torch.tensor([[1.0, 0, 1, 0, 1, 0, 1, 0]])
    >>> y = torch.tensor([[0.0, 1, 1, 0, 1, 0, -1, 0]])
    >>> for sizes in [(2,), (2, 2), (2, 2, 2)]:
    ...     print(sizes, round(HierarchicalKernel(sizes)(x, y).item(), 6))
    (2,) 1.079577
    (2, 2) 1.42037
    (2, 2, 2) 1.762617
    """

    def __init__(
        self,
        filter_sizes: Sequence[int],
        kind: Kind = "ntk",
        normalize: bool = False,
        order: ArrayLike | None = None,
    ) -> None:
        self.filter_sizes = _checked_sizes(filter_sizes)
        if kind not in ("ntk", "rf"):
            raise ValueError(f'kind must be "ntk" or "rf", got {kind!r}')
        self.kind: Kind = kind
        self.normalize = normalize
        self.order = None if order is None else np.asarray(order)

    @overload
    def __call__(self, X: Tensor, Y: Tensor | None = None) -> Tensor: ...
    @overload
    def __call__(self, X: ArrayLike, Y: ArrayLike | None = None) -> Array: ...
    def __call__(self, X: Any, Y: Any = None) -> Any:
        """K(x, y) for all rows of X (n, d) and Y (m, d), or X, shape (n, m)."""
        if not isinstance(X, Tensor):
            return self(_tensor(X), None if Y is None else _tensor(Y)).numpy()
        x = self._patches(X, "X")
        y = None if Y is None else self._patches(Y, "Y")
        if y is not None and y.shape[1:] != x.shape[1:]:
            raise ValueError(f"Y must have rows of {X.shape[1]} entries, got {tuple(Y.shape)}")
        kernel = cnn_ntk_kernel if self.kind == "ntk" else cnn_nngp_kernel
        sizes = self.filter_sizes
        rows, columns = x.flatten(1)[:, None], None if y is None else y.flatten(1)[:, None]
        K = kernel(
            rows, columns, activation="relu", filter_sizes=sizes, strides=sizes, padding="valid",
            C_W=2.0,
        )  # fmt: skip
        return K.mul_(sizes[0] / 2).to(X.dtype)  # its first layer has C_W/s₁ where ours has 1

    @overload
    def diag(self, X: Tensor) -> Tensor: ...
    @overload
    def diag(self, X: ArrayLike) -> Array: ...
    def diag(self, X: Any) -> Any:
        """K(x, x) for each row of X (n, d), shape (n,): the mean of ‖x_p‖², times L + 1 if NTK."""
        if not isinstance(X, Tensor):
            return self.diag(_tensor(X)).numpy()
        layers = 1 + len(self.filter_sizes) if self.kind == "ntk" else 1
        return (layers * self._patches(X, "X").square().sum(-1).mean(-1)).to(X.dtype)

    def _patches(self, X: Tensor, name: str) -> Tensor:
        """First patches, in float64, (n, d/s₁, s₁)."""
        if not isinstance(X, Tensor) or not X.is_floating_point():
            got = X.dtype if isinstance(X, Tensor) else type(X).__name__
            raise TypeError(f"{name} must be a tensor of a floating dtype, like X, got {got}")
        if X.ndim != 2:
            raise ValueError(f"{name} must have shape (n, d), got {tuple(X.shape)}")
        if not X.isfinite().all():
            raise ValueError(f"{name} has entries that are not finite")
        d = X.shape[1]
        if d == 0 or d % math.prod(self.filter_sizes):
            sizes = ",".join(map(str, self.filter_sizes))
            raise ValueError(f"filter sizes ({sizes}) do not divide input dimension {d}")
        x = X.double()
        if self.order is not None:
            if self.order.shape != (d,) or not (np.sort(self.order) == np.arange(d)).all():
                raise ValueError(f"order must be a permutation of range({d}), got {self.order}")
            x = x[:, torch.from_numpy(self.order.astype(np.int64)).to(x.device)]
        patches = x.unflatten(1, (-1, self.filter_sizes[0]))
        if not self.normalize:
            return patches
        norm = torch.linalg.vector_norm(patches, dim=-1, keepdim=True)
        return patches / torch.where(norm > 0, norm, 1.0)

    def __repr__(self) -> str:
        extra = ", normalize=True" * self.normalize + ", order=..." * (self.order is not None)
        return f"HierarchicalKernel({self.filter_sizes}, {self.kind!r}{extra})"


def quadtree_order(
    height: int, width: int, branching: int = 2, *, channels: int = 1
) -> NDArray[np.int64]:
    """Order of the entries of a picture in which square blocks are contiguous.

    Entries of a block of branching × branching pixels come one after the other, then blocks of
    such blocks, as long as height and width are divisible; what is left is row by row. With it,
    filter sizes (4·channels, 4, 4) on 8 × 8 pixels are blocks of 2 × 2, 4 × 4 and 8 × 8. The
    channels of a pixel are neighbours.

    Args:
        height, width: of the picture in pixels, divisible by `branching`.
        branching: side of a block in blocks of the level below, at least 2.
        channels: of a picture (channels, height, width).

    Returns:
        Permutation of the flattened picture, shape (channels·height·width,), for the argument
        `order` of `HierarchicalKernel` and its estimators.

    Raises:
        ValueError: a size that is not positive, a branching below 2 or that divides no side.

    >>> quadtree_order(4, 4)
    array([ 0,  1,  4,  5,  2,  3,  6,  7,  8,  9, 12, 13, 10, 11, 14, 15])
    """
    if min(height, width, channels) < 1:
        raise ValueError(
            f"height, width and channels must be positive, got {height}, {width} and {channels}"
        )
    if branching < 2 or height % branching or width % branching:
        raise ValueError(
            f"branching must be at least 2 and divide height {height} and width {width}, got "
            f"{branching}"
        )
    pixels = np.arange(channels * height * width).reshape(channels, height, width)
    blocks = pixels.transpose(1, 2, 0)  # (rows, columns, entries of a block)
    while blocks.shape[0] % branching == 0 == blocks.shape[1] % branching:
        rows, columns = blocks.shape[0] // branching, blocks.shape[1] // branching
        split = blocks.reshape(rows, branching, columns, branching, -1)
        blocks = split.transpose(0, 2, 1, 3, 4).reshape(rows, columns, -1)
    return blocks.ravel()


def sample_patches_on_spheres(
    n: int, d: int, s: int, *, generator: torch.Generator, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Rows whose patches are independent and uniform on unit spheres, the inputs of the theory.

    Args:
        n: number of rows.
        d: entries of a row.
        s: entries of a patch, on the sphere of dimension s − 1; divides d.
        generator: draws them; the result is on its device.
        dtype: of the result.

    Returns:
        Shape (n, d).

    Raises:
        ValueError: `s` does not divide `d`, or a number that is not positive.

    >>> x = sample_patches_on_spheres(3, 8, 2, generator=torch.Generator().manual_seed(0))
    >>> round(x.unflatten(1, (4, 2)).norm(dim=2).sum().item(), 9)
    12.0
    """
    if min(n, d, s) < 1 or d % s:
        raise ValueError(f"n, d and s must be positive and s divide d, got {n}, {d} and {s}")
    x = torch.randn(n, d // s, s, generator=generator, device=generator.device, dtype=torch.float64)
    return nn.functional.normalize(x, dim=-1).flatten(1).to(dtype)


# ---------------------------------------------------------------------------------------------
# Estimators
# ---------------------------------------------------------------------------------------------


class _KernelRidge(BaseEstimator):
    """(K + alpha·I)⁻¹ Y, and predictions in batches."""

    kernel_: HierarchicalKernel
    X_fit_: NDArray[np.float64]
    dual_coef_: NDArray[np.float64]
    n_features_in_: int

    def __init__(
        self,
        filter_sizes: Sequence[int] | None = None,
        kind: Kind = "ntk",
        alpha: float = 0.0,
        normalize: bool = False,
        order: ArrayLike | None = None,
    ) -> None:
        self.filter_sizes = filter_sizes
        self.kind = kind
        self.alpha = alpha
        self.normalize = normalize
        self.order = order

    def _solve(self, X: NDArray[np.float64], Y: NDArray[np.float64]) -> None:
        if not 0 <= self.alpha < math.inf:
            raise ValueError(f"alpha must be finite and not negative, got {self.alpha}")
        sizes = (X.shape[1],) if self.filter_sizes is None else self.filter_sizes
        self.kernel_ = HierarchicalKernel(sizes, self.kind, self.normalize, self.order)
        K = torch.from_numpy(self.kernel_(X))
        K.diagonal().add_(self.alpha)
        self.X_fit_ = X
        self.dual_coef_ = torch.cholesky_solve(torch.from_numpy(Y), _factor(K)).numpy()

    def _values(self, X: ArrayLike) -> NDArray[np.float64]:
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=np.float64, reset=False)
        batch = max(1, _BATCH // len(self.X_fit_))
        parts = gen_batches(len(rows), batch)
        coef = self.dual_coef_.reshape(len(self.X_fit_), -1)
        return np.concatenate([self.kernel_(rows[part], self.X_fit_) @ coef for part in parts])


class HierarchicalKernelRegressor(MultiOutputMixin, RegressorMixin, _KernelRidge):
    """Kernel regression with a `HierarchicalKernel`: a trained wide convolutional network.

    f(x) = K(x, X)(K(X, X) + alpha·I)⁻¹ y, by Cholesky. With the NTK and alpha = 0 it is what
    gradient descent makes of an infinitely wide network (but for its random start), and goes
    through all training data. `locality_profile` helps to choose filter sizes.

    Args:
        filter_sizes: see `HierarchicalKernel`; None for one filter over all features, the fully
            connected network.
        kind: "ntk" or "rf".
        alpha: ridge, added to the diagonal of the kernel; 0 interpolates.
        normalize: put first patches onto unit spheres.
        order: order of features in which patches are cut, see `quadtree_order`.

    Attributes:
        kernel_: the `HierarchicalKernel`.
        X_fit_: training rows.
        dual_coef_: (K + alpha·I)⁻¹ y, shape (n,) or (n, targets).
        n_features_in_: number of features.

    The network has no biases: it is 0 at a row of zeros, and f(cx) = cf(x) for c > 0 where
    `normalize` does not fix lengths. Scale features, centre y, or append a column of ones. A
    kernel matrix that is singular (rows that come twice, or multiples of others) is solved with
    some jitter, and a `RuntimeWarning` says so. Cost: n² kernel entries and n³/3.

    Raises:
        ValueError: in `fit`: filter sizes that do not divide the number of features, a wrong
            `kind`, `order` or `alpha`.

    Source: arXiv 2208.01003.

    >>> generator = torch.Generator().manual_seed(0)
    >>> X = sample_patches_on_spheres(600, 8, 2, generator=generator).numpy()
    >>> y = np.abs(X[:, 0] - X[:, 2]) + np.abs(X[:, 5] - X[:, 7])  # of neighbouring patches
    >>> for sizes in (None, (2, 2)):
    ...     model = HierarchicalKernelRegressor(sizes).fit(X[:400], y[:400])
    ...     print(sizes, round(model.score(X[400:], y[400:]), 3))
    None 0.962
    (2, 2) 0.987
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit to rows X (n, features) and targets y, shape (n,) or (n, targets)."""
        rows, targets = validate_data(
            self, X, y, dtype=np.float64, multi_output=True, y_numeric=True
        )
        self._solve(rows, targets.reshape(len(rows), -1).astype(np.float64))
        if targets.ndim == 1:
            self.dual_coef_ = self.dual_coef_[:, 0]
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Values at rows X (n, features), of shape (n,) or (n, targets)."""
        values = self._values(X)
        return values[:, 0] if self.dual_coef_.ndim == 1 else values


class HierarchicalKernelClassifier(ClassifierMixin, _KernelRidge):
    """Classifier by regression of class indicators with a `HierarchicalKernel`.

    f(x) = K(x, X)(K(X, X) + alpha·I)⁻¹ Y with a column of Y a class, 1 for its rows and 0 for the
    others; predicted is the largest. Arguments, attributes but for `classes_`, warnings and errors
    are those of `HierarchicalKernelRegressor`.

    Attributes:
        classes_: the labels.

    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> blocks = quadtree_order(8, 8)
    >>> model = HierarchicalKernelClassifier((4, 4, 4), order=blocks).fit(X[::3], y[::3])
    >>> round(model.score(X[1::3], y[1::3]), 2)
    0.98
    """

    classes_: Array

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit to rows X (n, features) and labels y (n,)."""
        rows, labels = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(labels)
        self.classes_, index = np.unique(labels, return_inverse=True)
        self._solve(rows, np.eye(len(self.classes_))[index])
        return self

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Values of the classes, shape (n, classes); of two, second less first, shape (n,)."""
        values = self._values(X)
        return values[:, -1] - values[:, 0] if len(self.classes_) <= 2 else values

    def predict(self, X: ArrayLike) -> Array:
        """Labels of rows X (n, features), shape (n,)."""
        values = self._values(X)
        return self.classes_[values.argmax(1)]


def locality_profile(
    X: ArrayLike,
    y: ArrayLike,
    candidates: Sequence[Sequence[int]],
    *,
    task: Literal["regression", "classification"] = "regression",
    kind: Kind = "ntk",
    alpha: float = 0.0,
    normalize: bool = False,
    order: ArrayLike | None = None,
    cv: int = 5,
    random_state: int | np.random.RandomState | None = None,
) -> DataFrame:
    """On patches of which size does the target live? Cross-validated errors of filter sizes.

    The smallest patches with (nearly) the lowest error are an answer: smaller ones cannot express
    the target, larger ones need more data for it, see `predicted_exponent`.

    Args:
        X: rows, shape (n, d).
        y: targets or labels, shape (n,).
        candidates: filter sizes to try, each as in `HierarchicalKernel`.
        task: "regression", with errors in units of the variance of y, or "classification", with
            the share of wrong labels.
        kind, alpha, normalize, order: as in `HierarchicalKernelRegressor`. With noise in y give an
            alpha.
        cv: number of folds.
        random_state: shuffles them, alike for all candidates.

    Returns:
        A row a candidate, in their order: filter_sizes, patch (entries that the last layer joins),
        effective_dimension (`effective_dimension`), error, standard_error (over folds).

    Raises:
        ValueError: no candidates, another task, or what the estimators refuse.

    Source: our tool for the question of arXiv 2208.01003.

    >>> generator = torch.Generator().manual_seed(0)
    >>> X = sample_patches_on_spheres(300, 8, 2, generator=generator).numpy()
    >>> y = np.abs(X[:, 0] - X[:, 2]) + np.abs(X[:, 5] - X[:, 7])
    >>> profile = locality_profile(X, y, [(2,), (2, 2), (2, 2, 2), (8,)], random_state=0)
    >>> profile[["filter_sizes", "patch", "effective_dimension", "error"]].round(2)
      filter_sizes  patch  effective_dimension  error
    0         (2,)      2                    1   1.67
    1       (2, 2)      4                    2   0.02
    2    (2, 2, 2)      8                    4   0.06
    3         (8,)      8                    7   0.06
    """
    import pandas as pd

    if task not in ("regression", "classification"):
        raise ValueError(f'task must be "regression" or "classification", got {task!r}')
    if not len(candidates):
        raise ValueError("candidates must hold at least one sequence of filter sizes")
    regression = task == "regression"
    estimator = HierarchicalKernelRegressor if regression else HierarchicalKernelClassifier
    folds = (KFold if regression else StratifiedKFold)(cv, shuffle=True, random_state=random_state)
    splits = list(folds.split(X, y))
    unit = float(np.var(np.asarray(y, dtype=float))) if regression else 1.0
    table = []
    for sizes in map(_checked_sizes, candidates):
        model = estimator(sizes, kind, alpha, normalize, order)
        scoring = "neg_mean_squared_error" if regression else "accuracy"
        score = cross_val_score(model, X, y, cv=splits, scoring=scoring, error_score="raise")
        errors = (-score if regression else 1 - score) / (unit or 1.0)
        table.append(
            {
                "filter_sizes": sizes,
                "patch": math.prod(sizes),
                "effective_dimension": effective_dimension(sizes),
                "error": errors.mean(),
                "standard_error": errors.std(ddof=1) / math.sqrt(len(errors)),
            }
        )
    return pd.DataFrame(table)


# ---------------------------------------------------------------------------------------------
# Theory
# ---------------------------------------------------------------------------------------------


def effective_dimension(filter_sizes: Sequence[int]) -> int:
    """Dimension D = (s₁ − 1) s₂ ⋯ s_L of a metapatch of the last layer.

    Its s₂ ⋯ s_L first patches lie on spheres of dimension s₁ − 1. (That s₁ > 2 enters like this is
    from memory.)

    >>> effective_dimension((2, 2, 2)), effective_dimension((4, 4))
    (4, 12)
    """
    first, *others = _checked_sizes(filter_sizes)
    return (first - 1) * math.prod(others)


def predicted_exponent(
    filter_sizes_student: Sequence[int],
    filter_sizes_teacher: Sequence[int],
    nu_s: float = 0.5,
    nu_t: float = 0.5,
) -> float:
    """Exponent β of the learning curve, error ~ n^{−β}, without noise and ridge.

    β = 2ν_T (2ν_S + D_L) / (D_L (2ν_S + D_T)): D_L the effective dimension of the student, D_T of
    the teacher, whose kernel is the covariance of the target. Shallow targets are learned fast by
    deep students; for D_T = D_L it is 2ν_T/D_L, the curse of dimension.

    Args:
        filter_sizes_student, filter_sizes_teacher: as in `HierarchicalKernel`, with first patches
            of the same size.
        nu_s, nu_t: smoothness of both kernels, ½ for the NTK, 3/2 for random features.

    Raises:
        ValueError: effective dimensions of 0, a teacher of higher dimension than the student
            (which then cannot express it: the error does not vanish), or a smoothness that is
            not positive.

    Source: by the argument of arXiv 2208.01003, section 5 (spectral bias); this form is our
    derivation.

    >>> [round(predicted_exponent((2, 2, 2), t), 4) for t in [(2,), (2, 2), (2, 2, 2)]]
    [0.625, 0.4167, 0.25]
    """
    D_L, D_T = effective_dimension(filter_sizes_student), effective_dimension(filter_sizes_teacher)
    if not 0 < D_T <= D_L:
        raise ValueError(
            f"filter_sizes_teacher: expected an effective dimension from 1 to the student's {D_L}, "
            f"got {D_T}"
        )
    for name, nu in (("nu_s", nu_s), ("nu_t", nu_t)):
        if not 0 < nu < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {nu}")
    return 2 * nu_t * (2 * nu_s + D_L) / (D_L * (2 * nu_s + D_T))


def learning_curve_exponent(
    sizes: ArrayLike, errors: ArrayLike
) -> tuple[float, tuple[float, float]]:
    """β of error ~ n^{−β}, least squares on logarithms, with a 95 % interval.

    Args:
        sizes: numbers n of training rows, shape (k,), at least two different ones.
        errors: their errors, shape (k,), or (repeats, k): then β is the mean over repeats.

    Returns:
        β and its interval: by Student's t over the slopes of repeats, or, of one curve, over its
        residuals; (−∞, ∞) where neither leaves a degree of freedom.

    Raises:
        ValueError: shapes that do not fit, or numbers that are not positive and finite.

    >>> beta, (low, high) = learning_curve_exponent([100, 200, 400], [0.1, 0.051, 0.025])
    >>> round(beta, 3), bool(low < 1 < high)
    (1.0, True)
    """
    n, error = np.asarray(sizes, dtype=float), np.asarray(errors, dtype=float)
    if n.ndim != 1 or len(np.unique(n)) < 2:
        raise ValueError(f"sizes must hold at least two different numbers, got {n.tolist()}")
    if error.ndim not in (1, 2) or error.shape[-1] != len(n) or not len(error):
        raise ValueError(
            f"errors must have shape ({len(n)},) or (repeats, {len(n)}), got {error.shape}"
        )
    for name, numbers in (("sizes", n), ("errors", error)):
        if not ((numbers > 0) & np.isfinite(numbers)).all():
            raise ValueError(f"{name} must be positive and finite")
    x = np.log(n) - np.log(n).mean()
    curves = np.log(np.atleast_2d(error))
    slopes = curves @ x / (x @ x)
    if len(slopes) > 1:
        freedom, spread = len(slopes) - 1, slopes.std(ddof=1) / math.sqrt(len(slopes))
    elif len(n) > 2:
        residual = curves[0] - curves[0].mean() - slopes[0] * x
        freedom = len(n) - 2
        spread = math.sqrt(residual @ residual / freedom / (x @ x))
    else:
        freedom, spread = 1, math.inf
    beta, half = -float(slopes.mean()), float(stats.t.ppf(0.975, freedom) * spread)
    return beta, (beta - half, beta + half)


def kernel_spectrum_torus(kernel: HierarchicalKernel, n_grid: int) -> Tensor:
    """Eigenvalues of a kernel with s₁ = 2 on one metapatch, by FFT.

    First patches on circles make a metapatch of the last layer a torus of P = s₂ ⋯ s_L angles, on
    which the kernel depends on differences; its eigenfunctions are e^{ik·θ}, with the Fourier
    coefficients as eigenvalues. Those with one k ≠ 0 live on one patch, those with two neighbours
    on a metapatch of layer 2, and so on: Λ_k ~ ‖k‖^{−2ν−D_l}. With one layer, odd k ≥ 3 have
    eigenvalue 0 (parity): fit slopes to even k.

    Args:
        kernel: with `filter_sizes[0] == 2`.
        n_grid: angles on each circle, at least 2; all of the n_grid^P points are evaluated.

    Returns:
        Λ_k, shape (n_grid, …, n_grid), P times, float64, k in the order of `torch.fft.fftfreq`.
        Exactly the eigenvalues of the kernel matrix on the grid over their number; those of the
        kernel up to Σ_{j≠0} Λ_{k + j·n_grid}.

    Raises:
        ValueError: first patches that are not of size 2, or a grid that is too small.
        TypeError: another kernel.

    Source: arXiv 2208.01003, section 3.

    >>> spectrum = kernel_spectrum_torus(HierarchicalKernel((2,)), 1024)
    >>> spectrum[:4].abs().round(decimals=4)
    tensor([0.6079, 0.5000, 0.1576, 0.0000], dtype=torch.float64)
    """
    if not isinstance(kernel, HierarchicalKernel):
        raise TypeError(f"kernel must be a HierarchicalKernel, got {type(kernel).__name__}")
    if kernel.filter_sizes[0] != 2:
        raise ValueError(f"kernel: filter_sizes[0] must be 2, got {kernel.filter_sizes[0]}")
    if n_grid < 2:
        raise ValueError(f"n_grid must be at least 2, got {n_grid}")
    patches = math.prod(kernel.filter_sizes[1:])
    angle = torch.arange(n_grid, dtype=torch.float64) * (2 * math.pi / n_grid)
    # K is even in each difference of angles: those of x against 0, and of 0 against those of y.
    first, second = patches // 2, patches - patches // 2
    x = torch.cat(
        [_circles(angle, first), _circles(angle[:1], second).expand(n_grid**first, -1)], 1
    )
    y = torch.cat(
        [_circles(angle[:1], first).expand(n_grid**second, -1), _circles(angle, second)], 1
    )
    values = HierarchicalKernel(kernel.filter_sizes, kernel.kind)(x, y).view([n_grid] * patches)
    return torch.fft.fftn(values).real / values.numel()


def gram_spectrum(K: Tensor | ArrayLike) -> Any:
    """Eigenvalues of a kernel matrix over its number of rows, from the largest.

    They tend to those of the kernel in the distribution of the rows, Σ λ = mean of the diagonal.

    Args:
        K: symmetric, shape (n, n); a tensor or an array.

    Returns:
        Shape (n,), of the kind of K.

    Raises:
        ValueError: K is not square or not finite.

    >>> gram_spectrum(np.array([[2.0, 1.0], [1.0, 2.0]]))
    array([1.5, 0.5])
    """
    if not isinstance(K, Tensor):
        return gram_spectrum(_tensor(K)).numpy()
    if K.ndim != 2 or K.shape[0] != K.shape[1]:
        raise ValueError(f"K must have shape (n, n), got {tuple(K.shape)}")
    if not K.isfinite().all():
        raise ValueError("K has entries that are not finite")
    return torch.linalg.eigvalsh(K).flip(0) / len(K)


# ---------------------------------------------------------------------------------------------
# Finite networks
# ---------------------------------------------------------------------------------------------


class LocallyConnectedNet(nn.Module):
    """The network of finite width whose kernels tend to `HierarchicalKernel`.

    h¹_p = √2 ReLU(W¹_p x_p),  h^l_p = √2 ReLU(W^l_p [h^{l−1}_q]_q / √(s_l·width)) over the s_l
    patches q in p, f(x) = Σ_p a_p·h^L_p / √(P·width) over the P patches that are left; all weights
    are drawn from N(0, 1) (NTK parametrisation). `empirical_ntk` of it tends to the kernel "ntk",
    its covariance at the start to "rf". Train it to see what a finite width changes.

    Args:
        in_features: d, entries of a row.
        width: channels of each hidden layer.
        filter_sizes: s_1, …, s_L, whose product divides d. In pictures the channels of a pixel
            belong to its first patch; permute them with `quadtree_order`.
        out_features: number of outputs.
        shared: the same W^l at all positions, a convolutional network. The readout a_p is one for
            each position even so, which makes the limit the same.
        generator: draws the weights; torch's global one when left out.

    Shapes: input (n, d); output (n, out_features).

    Raises:
        ValueError: filter sizes that do not divide in_features, or a size that is not positive.

    >>> net = LocallyConnectedNet(8, 16, (2, 2), generator=torch.Generator().manual_seed(0))
    >>> net(torch.ones(3, 8)).shape, [tuple(w.shape) for w in net.weights]
    (torch.Size([3, 1]), [(4, 16, 2), (2, 16, 32)])
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        filter_sizes: Sequence[int],
        out_features: int = 1,
        *,
        shared: bool = False,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.filter_sizes = _checked_sizes(filter_sizes)
        if min(width, out_features) < 1:
            raise ValueError(
                f"width and out_features must be positive, got {width} and {out_features}"
            )
        if in_features < 1 or in_features % math.prod(self.filter_sizes):
            sizes = ",".join(map(str, self.filter_sizes))
            raise ValueError(f"filter sizes ({sizes}) do not divide in_features {in_features}")
        self.in_features, self.shared = in_features, shared

        def normal(*shape: int) -> nn.Parameter:
            place = device if generator is None else generator.device
            drawn = torch.randn(*shape, generator=generator, device=place, dtype=dtype)
            return nn.Parameter(drawn.to(device))

        positions, channels = in_features, 1
        self.weights = nn.ParameterList()
        for size in self.filter_sizes:
            positions //= size
            self.weights.append(normal(1 if shared else positions, width, size * channels))
            channels = width
        self.readout = normal(out_features, positions * width)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1] != self.in_features:
            raise ValueError(f"x must have shape (n, {self.in_features}), got {tuple(x.shape)}")
        hidden = x
        for layer, W in enumerate(self.weights):
            patches = hidden.reshape(len(x), -1, W.shape[2]).transpose(0, 1)  # (positions, n, fan)
            scale = 1.0 if layer == 0 else W.shape[2] ** -0.5
            hidden = (2**0.5 * scale * (patches @ W.mT)).relu().transpose(0, 1)
        return hidden.flatten(1) @ self.readout.mT * self.readout.shape[1] ** -0.5

    def extra_repr(self) -> str:
        width = self.weights[0].shape[1]
        return f"{self.in_features}, {width}, {self.filter_sizes}, shared={self.shared}"


# ---------------------------------------------------------------------------------------------
# Private
# ---------------------------------------------------------------------------------------------


def _checked_sizes(filter_sizes: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(np.atleast_1d(np.asarray(filter_sizes)).tolist())
    if not sizes or not all(isinstance(size, int) and size >= 1 for size in sizes):
        raise ValueError(
            f"filter_sizes must be one or more positive integers, got {filter_sizes!r}"
        )
    return sizes


def _factor(K: Tensor) -> Tensor:
    """Cholesky factor of a kernel matrix, which may be singular; K is changed where it is zero."""
    diagonal = K.diagonal()
    diagonal.masked_fill_(diagonal == 0, 1.0)  # a row of zeros is 0, whatever its coefficient
    L = psd_safe_cholesky(K)
    rounding = 8 * len(K) * torch.finfo(K.dtype).eps * diagonal
    if (L.diagonal().square() > rounding).all():
        return L
    warnings.warn(
        "the kernel matrix is singular, as with rows that come twice or are multiples of others: "
        "added 1e-10 of its mean diagonal; an alpha above 0 makes it regular",
        RuntimeWarning,
        stacklevel=4,
    )
    diagonal.add_(1e-10 * diagonal.mean())
    return psd_safe_cholesky(K)


def _circles(angle: Tensor, patches: int) -> Tensor:
    """All points of a product of circles, (angles^patches, 2·patches)."""
    if not patches:
        return angle.new_empty(1, 0)
    points = torch.cartesian_prod(*[angle] * patches).view(-1, patches)
    return torch.stack([points.cos(), points.sin()], -1).flatten(1)


def _tensor(values: ArrayLike) -> Tensor:
    array = np.asarray(values)
    return torch.tensor(array if array.dtype in (np.float32, np.float64) else array.astype(float))


__all__ = [
    "HierarchicalKernel", "HierarchicalKernelClassifier", "HierarchicalKernelRegressor",
    "LocallyConnectedNet", "effective_dimension", "gram_spectrum", "kernel_spectrum_torus",
    "learning_curve_exponent", "locality_profile", "predicted_exponent", "quadtree_order",
    "sample_patches_on_spheres",
]  # fmt: skip
