"""Classification under a scale mixture, with inducing points: SVSP and its estimator."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state, gen_batches
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.distributions import Gamma, InverseGamma

from paperworks import data, nets
from paperworks.common.generators import following
from paperworks.wide.estimators import inducing_rows
from paperworks.wide.kernels import psd_safe_cholesky
from paperworks.wide.smnngp.distributions import Delta
from paperworks.wide.smnngp.kernel import Kernel, diagonal, gram, own_kernel
from paperworks.wide.smnngp.scales import Prior, as_distribution

Array = NDArray[Any]
Covariance = Literal["full", "diagonal"]
Likelihood = Callable[[Tensor, Tensor], Tensor]
"""log p(y|f) of samples f (samples, B, outputs) and targets y (B, ...), shape (samples, B)."""

_JITTER = 1e-6
"""Added to K_ZZ, in units of its mean diagonal: inducing variables are u plus that much noise."""

_ROWS = 256
"""Rows that a prediction samples at once."""


class SVSP(nn.Module):
    """Sparse variational scale-mixture process: f at inducing points, and the scale of all of it.

    p(u_c | s) = N(0, s·K_ZZ), s ~ InverseGamma(α, β); q(u_c | s) = N(m_c, s·S_c) and
    q(s) = InverseGamma(a, b), one s for all points and classes. With A = K_xZ K_ZZ⁻¹,
    f_c(x) | s ~ N(A m_c, s(A S_c Aᵀ + K_xx − A K_Zx)): Student-t with 2a degrees of freedom.
    With S_c, m_c in coordinates in which K_ZZ is I, per row of num_data:
    elbo = E_q log p(y|f) − KL/num_data,
    KL = ½ Σ_c [tr S_c − log|S_c| − M + (a/b)‖m_c‖²] + KL(q(s) ‖ p(s)).
    With the prior `Delta` s is fixed and this is the sparse variational Gaussian process (SVGP).

    Train it by any optimiser on −`elbo`, or use `ScaleMixtureClassifier`.

    Args:
        kernel: kernel(X, Z=None) of tensors of rows; the parameters of a module are this module's.
        inducing: first inducing points Z, shape (M, features); floating point. Learned.
        num_classes: outputs.
        prior: `InverseGamma`, the pair (α, β) of one, or `Delta`.
        num_data: rows in the training data.
        covariance: "full", O(B M²) a class and step, or "diagonal" for S_c, O(B M).
        likelihood: log p(y|f); softmax of class labels when left out.

    Raises:
        ValueError: shapes or numbers that make no sense, or "alpha and beta must be positive".
        TypeError: another prior, whose KL divergence has no closed form.

    Source: arXiv 2107.01408, section 3.3. The official code keeps S_c diagonal for u itself; the
    coordinates, in which a step is better conditioned, and "full" are ours. So is drawing one s a
    sample for all points and classes: the code draws independent t's, which is another process.

    >>> from paperworks.wide.smnngp import NNGPKernel
    >>> x, y = torch.eye(4), torch.tensor([0, 1, 2, 0])
    >>> model = SVSP(NNGPKernel(), x[:3], num_classes=3, prior=(2.0, 2.0), num_data=4)
    >>> model.kl().item(), bool(model.elbo(x, y) < 0)  # it starts at the prior
    (0.0, True)
    """

    def __init__(
        self,
        kernel: Kernel,
        inducing: Tensor,
        num_classes: int,
        prior: Prior = (2.0, 2.0),
        *,
        num_data: int,
        covariance: Covariance = "full",
        likelihood: Likelihood | None = None,
    ) -> None:
        super().__init__()
        if inducing.ndim != 2 or not inducing.is_floating_point() or not inducing.numel():
            raise ValueError(
                f"inducing must be floating point of shape (M, features), got {inducing.dtype} of "
                f"shape {tuple(inducing.shape)}"
            )
        if num_classes < 1 or num_data < 1:
            raise ValueError(
                f"num_classes and num_data must be at least 1, got {num_classes} and {num_data}"
            )
        if covariance not in ("full", "diagonal"):
            raise ValueError(f'covariance must be "full" or "diagonal", got {covariance!r}')
        distribution = as_distribution(prior)
        self.kernel, self.num_data, self.likelihood = kernel, num_data, likelihood
        M = len(inducing)
        self.inducing = nn.Parameter(inducing.detach().clone())
        self.mean = nn.Parameter(inducing.new_zeros(num_classes, M))
        shape = (num_classes, M) + (M,) * (covariance == "full")
        self.factor = nn.Parameter(inducing.new_zeros(shape))
        self.scale: _FixedScale | _InverseGammaScale
        if isinstance(distribution, InverseGamma):
            self.scale = _InverseGammaScale(distribution, inducing)
        elif isinstance(distribution, Delta):
            self.scale = _FixedScale(distribution, inducing)
        else:
            raise TypeError(
                "prior must be InverseGamma, a pair (alpha, beta) or Delta, got "
                f"{type(distribution).__name__}"
            )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean, and variance for s = 1, of f at rows x (B, features); both (B, classes)."""
        K = gram(self.kernel, self.inducing)
        eye = torch.eye(len(K), dtype=K.dtype, device=K.device)
        L = psd_safe_cholesky(K + _JITTER * K.diagonal().mean() * eye)
        a = torch.linalg.solve_triangular(L, gram(self.kernel, self.inducing, x), upper=False)
        remaining = (diagonal(self.kernel, x) - a.square().sum(0)).clamp(min=0)
        variance = self._explained(a) + remaining[:, None]
        return a.mT @ self.mean.mT, variance.clamp(min=1e-12)

    def kl(self) -> Tensor:
        """KL(q(u, s) ‖ p(u, s))."""
        C, M = self.mean.shape
        log_diagonal = self._log_diagonal()
        trace = (2 * log_diagonal).exp().sum()
        if self.factor.ndim == 3:
            trace = trace + self.factor.tril(-1).square().sum()
        precision = self.scale.mean_inverse()
        square = precision * self.mean.square().sum()
        gaussian = (trace - 2 * log_diagonal.sum() - C * M + square) / 2
        return gaussian + self.scale.kl()

    def elbo(
        self,
        x: Tensor,
        y: Tensor,
        *,
        num_samples: int = 100,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Lower bound of the log evidence per row of the data, by samples of f.

        Args:
            x: rows, shape (B, features).
            y: class numbers, shape (B,), or what the likelihood takes.
            num_samples: of s, and of f given each.
            generator: draws them; torch's global one when left out.
        """
        f = self.sample(x, num_samples, generator)
        if self.likelihood is None:
            log_likelihood = f.log_softmax(-1)[:, torch.arange(len(y)), y]
        else:
            log_likelihood = self.likelihood(f, y)
        return log_likelihood.mean() - self.kl() / self.num_data

    def sample(
        self,
        x: Tensor,
        num_samples: int,
        generator: torch.Generator | None = None,
        *,
        common: bool = False,
    ) -> Tensor:
        """Samples of f at rows x, one s each, shape (num_samples, B, classes); differentiable.

        Right for each row, and for what sums over rows: given s rows are drawn independently, or
        all from the same random numbers if `common`, so that no row depends on those beside it.
        """
        mean, variance = self(x)
        s = self.scale.sample(num_samples, generator)
        place = x.device if generator is None else generator.device
        shape = (num_samples, 1 if common else len(mean), mean.shape[1])
        z = torch.randn(shape, generator=generator, device=place, dtype=mean.dtype).to(x.device)
        return mean + (s[:, None, None] * variance).sqrt() * z

    @torch.no_grad()
    def predict_proba(
        self, x: Tensor, *, num_samples: int = 1000, generator: torch.Generator | None = None
    ) -> Tensor:
        """E_q softmax(f) at rows x (B, features), shape (B, classes)."""
        return self.sample(x, num_samples, generator, common=True).softmax(-1).mean(0)

    def _log_diagonal(self) -> Tensor:
        """Logarithms of the diagonal of the Cholesky factors of S_c, (classes, M)."""
        return self.factor if self.factor.ndim == 2 else self.factor.diagonal(dim1=1, dim2=2)

    def _explained(self, a: Tensor) -> Tensor:
        """aᵀ S_c a for columns of a (M, B), shape (B, classes)."""
        if self.factor.ndim == 2:
            return a.square().mT @ (2 * self.factor).exp().mT
        factor = self.factor.tril(-1) + torch.diag_embed(self._log_diagonal().exp())
        return (factor.mT @ a).square().sum(1).mT


class _InverseGammaScale(nn.Module):
    """q(s) = InverseGamma(a, b) beside the prior InverseGamma(α, β)."""

    alpha: Tensor
    beta: Tensor

    def __init__(self, prior: InverseGamma, like: Tensor) -> None:
        super().__init__()
        self.register_buffer("alpha", prior.concentration.detach().to(like))
        self.register_buffer("beta", prior.rate.detach().to(like))
        self.log_a = nn.Parameter(self.alpha.log())
        self.log_b = nn.Parameter(self.beta.log())

    def kl(self) -> Tensor:
        (a, b), (alpha, beta) = (self.log_a.exp(), self.log_b.exp()), (self.alpha, self.beta)
        # At a = α, b = β exactly 0: powers of their logarithms would leave rounding.
        shape = (a - alpha) * a.digamma() - a.lgamma() + alpha.lgamma()
        return shape + alpha * (self.log_b - beta.log()) + a * (beta - b) / b

    def mean_inverse(self) -> Tensor:
        return (self.log_a - self.log_b).exp()

    def sample(self, number: int, generator: torch.Generator | None) -> Tensor:
        a = self.log_a.exp().cpu()  # one stream for every device
        with following(generator):
            gamma = Gamma(a, torch.ones_like(a)).rsample(torch.Size([number]))
        return self.log_b.exp() / gamma.to(self.log_b.device)


class _FixedScale(nn.Module):
    value: Tensor

    def __init__(self, prior: Delta, like: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", prior.value.detach().to(like))

    def kl(self) -> Tensor:
        return torch.zeros_like(self.value)

    def mean_inverse(self) -> Tensor:
        return 1 / self.value

    def sample(self, number: int, generator: torch.Generator | None) -> Tensor:
        return self.value.expand(number)


class ScaleMixtureClassifier(ClassifierMixin, BaseEstimator):
    """Classification by a Student-t process on inducing points: `SVSP`, trained.

    Class probabilities that are less sure of rows unlike the training data than those of a sparse
    Gaussian process, at about its accuracy. Costs O(B M² + M³) a step, whatever the number of rows.

    Args:
        kernel: a module, such as `NNGPKernel`, whose parameters are learned along; a function
            kernel(X, Z=None) of float64 tensors; or the name of an activation, for
            `NNGPKernel(kernel, n_layers)`.
        n_layers: hidden layers of the kernel of a named activation.
        prior: of the scale: `InverseGamma`, the pair (α, β) of one, or `Delta` for an ordinary
            sparse Gaussian process.
        n_inducing: number of inducing points M, at most that of distinct rows. They start at the
            centres of k-means.
        covariance: "full" or "diagonal", see `SVSP`.
        max_iter: steps of Adam.
        batch_size: rows B of a step.
        learning_rate: of the first step; falls geometrically to a tenth.
        n_samples: samples of f a row in training.
        random_state: decides k-means, batches and samples.
        device: where to compute, as torch names it.

    Attributes:
        classes_: the labels.
        module_: the trained `SVSP`.
        elbo_: the bound per row, at the steps.
        n_iter_: steps taken.
        n_features_in_: number of features.

    Rows are taken as they are: scale columns first.

    Raises:
        ValueError: in `fit`: numbers that make no sense, "alpha and beta must be positive", or
            training that diverged.

    Source: arXiv 2107.01408, section 3.3.

    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(100, 2))
    >>> y = np.where(X[:, 0] > 0, "right", "left")
    >>> model = ScaleMixtureClassifier(n_inducing=10, max_iter=60, random_state=0).fit(X, y)
    >>> model.predict([[-2.0, 0.0], [2.0, 0.0]])
    array(['left', 'right'], dtype='<U5')
    """

    classes_: Array
    module_: SVSP
    elbo_: list[float]

    def __init__(
        self,
        kernel: Kernel | str = "relu",
        n_layers: int = 4,
        prior: Prior = (2.0, 2.0),
        n_inducing: int = 100,
        covariance: Covariance = "full",
        max_iter: int = 500,
        batch_size: int = 100,
        learning_rate: float = 0.03,
        n_samples: int = 20,
        random_state: int | np.random.RandomState | None = None,
        device: str = "cpu",
    ) -> None:
        self.kernel = kernel
        self.n_layers = n_layers
        self.prior = prior
        self.n_inducing = n_inducing
        self.covariance = covariance
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.n_samples = n_samples
        self.random_state = random_state
        self.device = device

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit to rows X (n, features) and labels y (n,)."""
        for name in ("n_inducing", "max_iter", "batch_size", "n_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        rows: Array
        rows, labels = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(labels)
        self.classes_, index = np.unique(labels, return_inverse=True)
        random = check_random_state(self.random_state)
        module = SVSP(
            own_kernel(self.kernel, self.n_layers),
            torch.from_numpy(inducing_rows(rows, self.n_inducing, random)),
            len(self.classes_),
            self.prior,
            num_data=len(rows),
            covariance=self.covariance,
        ).to(self.device)
        seed, self._prediction_seed = (int(random.randint(2**31 - 1)) for _ in range(2))
        part = data.Split(torch.from_numpy(rows), torch.from_numpy(index)).to(self.device)
        self.elbo_ = train_svsp(
            module,
            part,
            steps=self.max_iter,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            num_samples=self.n_samples,
            generator=torch.Generator().manual_seed(seed),
        )
        self.module_, self.n_iter_ = module, len(self.elbo_)
        return self

    def predict_proba(self, X: ArrayLike) -> Array:
        """Class probabilities E_q softmax(f) of rows X (m, features), shape (m, classes)."""
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=np.float64, reset=False)
        parts = []
        for batch in gen_batches(len(rows), _ROWS):
            generator = torch.Generator().manual_seed(self._prediction_seed)
            x = torch.from_numpy(rows[batch]).to(self.device)
            parts.append(self.module_.predict_proba(x, generator=generator).cpu().numpy())
        return np.concatenate(parts)

    def predict(self, X: ArrayLike) -> Array:
        """The most probable class of rows X (m, features), shape (m,)."""
        check_is_fitted(self)
        return self.classes_[self.predict_proba(X).argmax(1)]


def train_svsp(
    module: SVSP,
    part: data.Split,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    num_samples: int,
    generator: torch.Generator,
) -> list[float]:
    """Adam on −elbo, in place, its rate falling to a tenth; the bound at each step.

    Raises:
        ValueError: training diverged.
    """

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return -module.elbo(*batch, num_samples=num_samples, generator=generator)

    history = nets.fit(
        module,
        data.batches(part, min(batch_size, len(part)), generator),
        loss,
        optimizer=torch.optim.Adam(
            [p for p in module.parameters() if p.requires_grad], lr=learning_rate
        ),
        steps=steps,
        schedule=lambda step: 0.1 ** (step / steps),
    )
    if history.diverged:
        raise ValueError(
            f"training diverged after {history.steps} steps: lower learning_rate (now "
            f"{learning_rate}) or scale the columns of X"
        )
    return [-value for value in history.loss]


__all__ = ["SVSP", "ScaleMixtureClassifier"]
