"""What know2vec is compared with: fingerprints by noise, and scores that run every model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from paperworks.representation.know2vec.encoders import UnitEncoder, check_input, check_sizes
from paperworks.representation.know2vec.probing import (
    Predictor,
    ask,
    check_labels,
    probabilities,
)


class NoiseFingerprint(UnitEncoder):
    """A vector for a model from its answers to noise, the same noise for every model.

        v ∝ W₂ relu(W₁ vec(p(ε_1), ..., p(ε_m)) + b₁) + b₂,   ε ~ N(0, 1)

    `probe` asks a model once; the module is the encoder to be trained on what it says, in the place
    of `ModelEncoder`. It is the idea of TANS (Jeong et al. 2021, arXiv 2103.01495), with the same
    query encoder and loss as know2vec; TANS' description of the architecture is left out.

    Args:
        input_shape: of one input.
        num_classes: K.
        num_inputs: m.
        hidden: width of the encoder.
        dim: width of v.
        generator: draws the noise; a CPU generator, by default one that is seeded with 0.

    Shapes: input (n, m, K), output (n, dim).

    Raises:
        ValueError: sizes that are no positive integers, or another input.

    >>> fingerprint = NoiseFingerprint((8,), num_classes=4, num_inputs=16, dim=32)
    >>> answers = fingerprint.probe(nn.Linear(8, 4))
    >>> answers.shape, fingerprint(answers[None]).shape
    (torch.Size([16, 4]), torch.Size([1, 32]))
    """

    noise: Tensor

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        num_inputs: int = 64,
        hidden: int = 500,
        dim: int = 256,
        generator: torch.Generator | None = None,
    ) -> None:
        check_sizes(num_classes=num_classes, num_inputs=num_inputs, hidden=hidden, dim=dim)
        super().__init__()
        generator = generator or torch.Generator().manual_seed(0)
        self.num_classes, self.dim = num_classes, dim
        self.register_buffer("noise", torch.randn(num_inputs, *input_shape, generator=generator))
        self.encoder = nn.Sequential(
            nn.Linear(num_inputs * num_classes, hidden), nn.ReLU(), nn.Linear(hidden, dim)
        )

    def probe(self, predict: Predictor) -> Tensor:
        """Probabilities (m, K) of a model for the noise.

        Raises:
            ValueError: answers of another width, or not finite.
        """
        with torch.no_grad():
            return probabilities(ask(predict, self.noise, self.num_classes, "predict"))

    def embed(self, x: Tensor) -> Tensor:
        check_input(x, (len(self.noise), self.num_classes))
        o: Tensor = self.encoder(x.flatten(1))
        return o


def leep(probs: Tensor, y: Tensor) -> Tensor:
    """How well a classifier's outputs, of whatever classes, tell the labels of a target task.

        P(y, z) = (1/n) Σ_{i: y_i = y} θ(x_i)_z,   LEEP = (1/n) Σ_i log Σ_z P(y_i | z) θ(x_i)_z

    The log expected empirical prediction, at most 0: labels are predicted through the source
    classes z. It needs one pass of the target samples through the model, and no training. Nguyen et
    al. 2020, arXiv 2002.12462, equation 2.

    Args:
        probs: θ, probabilities of the source classes (..., n, Z); more dimensions are more models.
        y: target labels (n,).

    Returns:
        The score of each model (...).

    Raises:
        TypeError: y holds no whole numbers.
        ValueError: shapes disagree, or rows are no probabilities.

    >>> leep(torch.tensor([[0.5, 0.5], [0.5, 0.5]]), torch.tensor([0, 1]))  # knows nothing: -ln 2
    tensor(-0.6931)
    """
    if probs.dim() < 2 or probs.shape[-2] == 0:
        raise ValueError(f"probs must have shape (..., n, Z), got {tuple(probs.shape)}")
    check_labels("y", y, probs.shape[-2])
    total = probs.sum(-1)
    if not (probs.min() >= 0 and (total - 1).abs().max() < 1e-2):
        raise ValueError("probs must be probabilities: non-negative rows that sum to 1")
    classes, target = y.unique(return_inverse=True)
    member = nn.functional.one_hot(target, len(classes)).to(probs)
    joint = member.T @ probs  # n P(y, z), (..., Y, Z)
    conditional = joint / joint.sum(-2, keepdim=True).clamp(min=torch.finfo(probs.dtype).tiny)
    expected = (conditional[..., target, :] * probs).sum(-1)
    return expected.log().mean(-1)


def logme(features: Tensor, y: Tensor, max_iter: int = 100, tol: float = 1e-6) -> float:
    """The log evidence of a linear model from features to labels, per sample.

        log p(y | F) = max_{α, β} log ∫ N(y; F w, β⁻¹) N(w; 0, α⁻¹) dw,   LogME = (1/n) its mean

    over the columns of y, one-hot for classes. The larger, the better a linear head would transfer;
    unlike the accuracy of one it does not overfit. α and β are found by MacKay's fixed point, all
    columns at once, from one singular value decomposition. You et al. 2021, arXiv 2102.11005,
    algorithm 1. Features are taken as they are, without a constant column.

    Args:
        features: F (n, d), of a network for the target samples.
        y: classes (n,), whole numbers, or targets (n,) or (n, c), floating point.
        max_iter: iterations of the fixed point.
        tol: relative change of α/β at which they end.

    Raises:
        TypeError: features are no floating-point tensor.
        ValueError: shapes disagree, or values are not finite.

    >>> x = torch.linspace(-1, 1, 50)[:, None]
    >>> logme(x, x[:, 0]) > logme(torch.ones(50, 1), x[:, 0])
    True
    """
    if not isinstance(features, Tensor) or not features.is_floating_point():
        kind = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise TypeError(f"features must be a floating-point tensor, got {kind}")
    if features.dim() != 2 or len(features) < 2 or len(y) != len(features) or y.dim() > 2:
        raise ValueError(
            "features and y must have shapes (n, d) and (n,) or (n, c) with n >= 2, got "
            f"{tuple(features.shape)} and {tuple(y.shape)}"
        )
    if not features.isfinite().all() or not y.isfinite().all():
        raise ValueError("features and y must be finite")
    f = features.detach().double()
    if y.is_floating_point():
        targets = y.double().reshape(len(y), -1)
    else:
        targets = nn.functional.one_hot(y.unique(return_inverse=True)[1]).double()
    n, d = f.shape
    u, s, _ = torch.linalg.svd(f, full_matrices=False)
    sigma = s.square().unsqueeze(1)  # (r, 1)
    z = (u.T @ targets).square()  # (r, c)
    outside = (targets.square().sum(0) - z.sum(0)).clamp(min=0)
    tiny = 1e-10 * targets.square().sum(0).clamp(min=1e-10)  # a perfect fit has a finite β
    alpha = beta = torch.ones_like(outside)
    for _ in range(max_iter):
        t = alpha / beta
        m2, error, gamma = _moments(sigma, z, outside, t)
        alpha = gamma.clamp(min=1e-10) / m2.clamp(min=tiny)
        beta = (n - gamma).clamp(min=1e-10) / error.clamp(min=tiny)
        if ((alpha / beta - t).abs() <= tol * t).all():
            break
    m2, error, _ = _moments(sigma, z, outside, alpha / beta)
    log_det = (alpha + beta * sigma).log().sum(0) + (d - len(s)) * alpha.log()
    evidence = (
        n / 2 * (beta / (2 * math.pi)).log()
        + (d * alpha.log() - beta * error - alpha * m2 - log_det) / 2
    )
    return (evidence / n).mean().item()


def _moments(sigma: Tensor, z: Tensor, outside: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """‖m‖², ‖F m - y‖² and the effective number of parameters γ, for t = α/β."""
    shrunk = sigma / (t + sigma)
    m2 = (shrunk * z / (t + sigma)).sum(0)
    error = ((t / (t + sigma)).square() * z).sum(0) + outside
    return m2, error, shrunk.sum(0)
