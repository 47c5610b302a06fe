"""Linear regression tasks, and how a task becomes a sequence of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor


@dataclass(frozen=True)
class LinearTasks:
    """Random linear regression tasks: what in-context learners are trained and compared on.

    x_i ~ N(x_mean, I), w ~ N(w_mean, w_scale² I), y_i = wᵀx_i + N(0, noise²), a new w a task.
    With all means 0 the best possible predictor of y is ridge regression with λ = noise²/w_scale²
    (`bayes_alpha`). The other settings move tasks away from those of training: the official code
    evaluates at w_scale=2.5, at w_mean=2.5, and at shifted x.

    Args:
        dim: number of entries of x.
        noise: standard deviation of what is added to y.
        w_scale: standard deviation of an entry of w.
        w_mean, x_mean: mean of an entry of w, of x.

    Raises:
        ValueError: dim is not a positive integer, noise or w_scale is negative, or an argument is
            not finite.

    Source: arXiv 2211.15661, section 3.

    >>> tasks = LinearTasks(3, noise=0.5)
    >>> x, y, w = tasks.sample(10, 7, torch.Generator().manual_seed(0))
    >>> x.shape, y.shape, w.shape, tasks.bayes_alpha
    (torch.Size([10, 7, 3]), torch.Size([10, 7]), torch.Size([10, 3]), 0.25)
    """

    dim: int
    noise: float = 0.0
    w_scale: float = 1.0
    w_mean: float = 0.0
    x_mean: float = 0.0

    def __post_init__(self) -> None:
        check_counts(dim=self.dim)
        for name in ("noise", "w_scale", "w_mean", "x_mean"):
            value = getattr(self, name)
            if not isfinite(value) or (value < 0 and not name.endswith("mean")):
                kind = "finite" if name.endswith("mean") else "finite and not negative"
                raise ValueError(f"{name} must be {kind}, got {value}")

    @property
    def bayes_alpha(self) -> float:
        """λ of the ridge regression that is Bayes-optimal when all means are 0."""
        return self.noise**2 / self.w_scale**2 if self.w_scale else float("inf")

    def sample(
        self,
        batch: int,
        n: int,
        generator: torch.Generator,
        *,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw tasks of n examples each.

        Args:
            batch: number of tasks.
            n: examples a task.
            generator: draws them; the tensors are on its device.
            dtype: of the tensors; torch's default.

        Returns:
            x (batch, n, dim), y (batch, n) and w (batch, dim).

        Raises:
            ValueError: batch or n is not a positive integer.
        """
        check_counts(batch=batch, n=n)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)

        x = self.x_mean + normal(batch, n, self.dim)
        w = self.w_mean + self.w_scale * normal(batch, self.dim)
        return x, (x @ w[..., None])[..., 0] + self.noise * normal(batch, n), w


def interleave(x: Tensor, y: Tensor) -> Tensor:
    """The tokens of tasks: x₁, y₁, x₂, y₂, …

    An x-token is (0, x_i), a y-token (y_i, 0, …, 0). A model that may look back only, and predicts
    y_i at x-token i, has seen the i − 1 examples before it.

    Args:
        x: (B, n, d).
        y: (B, n), or (B, n − 1) when the last x is a query.

    Returns:
        (B, 2n, d + 1), or (B, 2n − 1, d + 1).

    Raises:
        ValueError: other shapes.

    >>> interleave(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([[9.0]]))
    tensor([[[0., 1., 2.],
             [9., 0., 0.],
             [0., 3., 4.]]])
    """
    if x.ndim != 3 or y.ndim != 2 or y.shape[0] != x.shape[0] or not x.numel():
        raise ValueError(f"x and y must be (B, n, d) and (B, n), got {_shapes(x, y)}")
    missing = x.shape[1] - y.shape[1]
    if missing not in (0, 1):
        raise ValueError(f"y must have as many examples as x or one less, got {_shapes(x, y)}")
    tokens = x.new_zeros(x.shape[0], x.shape[1] + y.shape[1], x.shape[2] + 1)
    tokens[:, 0::2, 1:] = x
    tokens[:, 1::2, 0] = y.to(x)
    return tokens


def deinterleave(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """x (B, n, d) and y of the tokens that `interleave` made; y is one shorter after a query.

    Raises:
        ValueError: tokens are not of shape (B, T, d + 1) with T and d at least 1.

    >>> x, y = torch.rand(4, 5, 3), torch.rand(4, 5)
    >>> back = deinterleave(interleave(x, y))
    >>> torch.equal(back[0], x), torch.equal(back[1], y)
    (True, True)
    """
    check_tokens(tokens)
    return tokens[:, 0::2, 1:], tokens[:, 1::2, 0]


def check_tokens(tokens: Tensor, dim: int | None = None, max_tokens: int | None = None) -> None:
    """Raise unless these can be the tokens of tasks in `dim` dimensions."""
    wide = f"{dim + 1}" if dim else "d + 1"
    if tokens.ndim != 3 or tokens.shape[1] < 1 or tokens.shape[2] < 2:
        raise ValueError(f"tokens must be (B, T, {wide}), got {tuple(tokens.shape)}")
    if dim is not None and tokens.shape[2] != dim + 1:
        raise ValueError(f"tokens must be (B, T, {wide}), got {tuple(tokens.shape)}")
    if max_tokens is not None and tokens.shape[1] > max_tokens:
        raise ValueError(
            f"tokens: too many examples, this model takes at most {max_tokens} tokens, "
            f"got {tokens.shape[1]}"
        )


def check_examples(x: Tensor, y: Tensor) -> None:
    """Raise unless x is (B, n, d) and y (B, n)."""
    if x.ndim != 3 or y.ndim != 2 or x.shape[:2] != y.shape:
        raise ValueError(f"x and y must be (B, n, d) and (B, n), got {_shapes(x, y)}")
    if not x.is_floating_point() or not y.is_floating_point():
        raise TypeError(f"x and y must be floating point, got {x.dtype} and {y.dtype}")
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError("x and y must be finite: leave examples with missing values out")


def check_counts(**counts: int | None) -> None:
    """Raise unless all are positive integers."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be a positive integer, got {count!r}")


def _shapes(x: Tensor, y: Tensor) -> str:
    return f"{tuple(x.shape)} and {tuple(y.shape)}"
