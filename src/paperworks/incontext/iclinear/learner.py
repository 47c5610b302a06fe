"""A transformer that is trained to learn from its context."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperworks.incontext.iclinear.predictors import InContextModule
from paperworks.incontext.iclinear.tasks import check_counts, check_tokens, interleave
from paperworks.nets.training import History, fit


class Tasks(Protocol):
    """What in-context learners are trained on: `LinearTasks`, or your own."""

    def sample(self, batch: int, n: int, generator: torch.Generator) -> Any:
        """x (batch, n, d), y (batch, n), and anything after that."""


class InContextRegressor(InContextModule):
    """A causal transformer that predicts each y from the examples before it.

    Blocks are those of GPT-2: stream + attention(LayerNorm(stream)), stream + MLP(LayerNorm(…)),
    with learned positions and tanh-GELU. The official code differs: its `norm_first` block adds to
    the normalised stream, so that the raw one is lost, and its heads have num_heads times fewer
    entries (`d_model` over `num_heads` squared). Weights and biases start as U(±1/√fan_in), as
    there.

    Args:
        dim: number of entries of x.
        d_model: width of the stream, a multiple of `num_heads`.
        num_layers, num_heads: blocks, and heads in each.
        max_examples: the longest sequence of examples, the one that is predicted included. Use no
            more than it is trained with: later positions never learn.

    Attributes:
        blocks: the blocks, by name "blocks.0", …; what they return are the hidden states, which
            `paperworks.common.collect_activations` collects and `probe_hidden_states` reads.

    Raises:
        ValueError: a number that is not a positive integer, or d_model is no multiple of
            num_heads.

    Source: arXiv 2211.15661, section 4.

    >>> model = InContextRegressor(dim=2, d_model=8, num_layers=1, num_heads=2, max_examples=5)
    >>> model(torch.rand(3, 10, 3)).shape
    torch.Size([3, 5])
    >>> model.predict(torch.rand(3, 4, 2), torch.rand(3, 4), torch.rand(3, 6, 2)).shape
    torch.Size([3, 6])
    """

    def __init__(
        self,
        dim: int,
        d_model: int = 512,
        num_layers: int = 12,
        num_heads: int = 8,
        max_examples: int = 40,
    ) -> None:
        check_counts(
            dim=dim, d_model=d_model, num_layers=num_layers, num_heads=num_heads,
            max_examples=max_examples,
        )  # fmt: skip
        if d_model % num_heads:
            raise ValueError(f"d_model must be a multiple of {num_heads} heads, got {d_model}")
        super().__init__()
        self.dim, self.max_examples = dim, max_examples
        self.embed = nn.Linear(dim + 1, d_model)
        self.positions = nn.Parameter(0.02 * torch.randn(2 * max_examples, d_model))
        self.blocks = nn.Sequential(*(_Block(d_model, num_heads) for _ in range(num_layers)))
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Predictions at the x-tokens.

        Args:
            tokens: (B, T, dim + 1), as `interleave` makes them, T at most 2·max_examples.

        Returns:
            (B, ⌈T/2⌉).

        Raises:
            ValueError: tokens of another shape, or too many examples.
        """
        check_tokens(tokens, self.dim, 2 * self.max_examples)
        stream = self.embed(tokens.to(self.positions)) + self.positions[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(stream)[:, 0::2]))[..., 0]


class _Block(nn.Module):
    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)
        self.mlp = nn.Sequential(
            nn.Linear(d_model, 4 * d_model),
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * d_model, d_model),
        )

    def forward(self, stream: Tensor) -> Tensor:
        heads = self.qkv(self.norm1(stream)).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        read = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        stream = stream + self.out(read.transpose(1, 2).flatten(2))
        return stream + self.mlp(self.norm2(stream))


def train_in_context(
    model: nn.Module,
    tasks: Tasks,
    steps: int,
    *,
    num_examples: int | None = None,
    batch_size: int = 64,
    lr: float = 1e-4,
    generator: torch.Generator | None = None,
) -> History:
    """Train a model on fresh tasks to predict every y from the examples before it, in place.

    Minimises the mean over tasks and positions of (ŷ_i − y_i)² with AdamW (β = 0.9 and 0.98,
    ε = 1e-9, no decay); the rate rises over the first fifth of the steps and then falls to 0 along
    half a cosine. The default rate is for the paper's size and 500,000 steps; small models take
    2e-3.

    Args:
        model: any module that maps tokens (B, 2n, d + 1), made by `interleave`, to (B, n).
        tasks: `LinearTasks`, or anything with a `sample(batch, n, generator)` that returns x
            (batch, n, d) and y (batch, n) first.
        steps: how many batches.
        num_examples: n; the model's `max_examples` by default.
        batch_size: tasks a step.
        lr: the highest rate.
        generator: draws the tasks; one with seed 0 by default.

    Returns:
        A `paperworks.nets.History`: `loss` at each step, and whether it `diverged`.

    Raises:
        ValueError: a number that is not positive, or predictions that are not of shape (B, n).

    Source: arXiv 2211.15661, section 4, and defaults of its code.

    >>> model = InContextRegressor(1, d_model=8, num_layers=1, num_heads=1, max_examples=3)
    >>> from paperworks.incontext import LinearTasks
    >>> train_in_context(model, LinearTasks(1), steps=5).steps
    5
    """
    n: Any = getattr(model, "max_examples", None) if num_examples is None else num_examples
    check_counts(steps=steps, num_examples=n, batch_size=batch_size)
    if not lr > 0:
        raise ValueError(f"lr must be positive, got {lr}")
    first = next(model.parameters())
    generator = torch.Generator().manual_seed(0) if generator is None else generator

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            x, y, *_ = tasks.sample(batch_size, n, generator)
            yield x.to(first), y.to(first)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        predicted = model(interleave(x, y))
        if predicted.shape != y.shape:
            wrong = tuple(predicted.shape)
            raise ValueError(f"model must return {tuple(y.shape)} predictions, got {wrong}")
        return (predicted - y).square().mean()

    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.0, fused=True
    )
    rate = _warmed_cosine(steps)
    return fit(model, batches(), loss, optimizer=optimizer, steps=steps, schedule=rate)


def _warmed_cosine(steps: int) -> Any:
    """Up over the first fifth, then down to 0 along half a cosine, as a factor of the rate."""
    warm = max(1, steps // 5)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2

    return factor
