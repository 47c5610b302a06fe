"""Fitting a network to a prior."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from paperworks.incontext.iclinear.tasks import check_counts
from paperworks.incontext.pfn.bar import CategoricalHead
from paperworks.incontext.pfn.model import PFN
from paperworks.incontext.pfn.priors import Prior, sample_prior
from paperworks.nets.training import History, fit

Tasks = tuple[Tensor, Tensor, int]


def fit_pfn(
    model: PFN,
    prior: Prior,
    steps: int,
    *,
    batch_size: int = 64,
    num_points: int = 100,
    max_context: int | None = None,
    min_context: int = 0,
    context_sizes: Literal["weighted", "uniform"] = "weighted",
    standardize: bool = False,
    lr: float | None = None,
    accumulate: int = 1,
    epoch: int = 1,
    after_step: Sequence[Callable[[], Any]] = (),
    generator: torch.Generator | None = None,
) -> History:
    """Train a PFN on tasks of a prior, in place, to say what its posterior predictive says.

    Minimises E[−log q(y_q | x_q, D)] = E KL(p(·|x, D) ‖ q) + a constant, over tasks cut after their
    first n rows, with Adam. The rate rises over the first quarter of the steps and then falls to 0
    along half a cosine; gradients are clipped at norm 1. A model that has not been trained yet
    takes mean and deviation of its inputs from the first tasks; training may be continued, on
    another prior too.

    Args:
        model: what to train, where it is and in its dtype.
        prior: any `Prior`: `GPPrior`, `BNNPrior`, `LinearTasks`, `FunctionPrior(yours)`.
        steps: updates.
        batch_size: tasks of which a gradient is the mean.
        num_points: rows a task, T.
        max_context: the largest n; T − 1 by default.
        min_context: the smallest.
        context_sizes: how n is drawn, once a batch: "weighted", P(n) ∝ 1/(max_context + 1 − n), or
            "uniform" (the paper's tabular study).
        standardize: see each task as the estimators see a table: columns, and y of a regression,
            standardised by the context (`standardize_context`). Then the prior's scales do not
            matter, and a user's need not agree with them. Use min_context of 4 or more for
            regressions: the y of two rows do not tell their scale.
        lr: the highest rate; 0.003239 − 0.0001395 ln(number of parameters) by default.
        accumulate: batches whose gradients are summed, not averaged, before the clipping.
        epoch: steps between changes of the rate; the official code has 100.
        after_step: called after every update, to watch or to save the model.
        generator: draws tasks and n; one with seed 0 by default.

    Returns:
        A `paperworks.nets.History`: `loss` of each step's last batch, and whether it `diverged`.

    Raises:
        ValueError: a number out of range, or a prior whose x and y have other shapes, are not
            finite, or are no labels where the head wants them; the error names the prior.

    Source: arXiv 2112.10510, algorithm 1, section 4 and its code.

    >>> from paperworks.incontext import BarDistribution, LinearTasks
    >>> model = PFN(1, BarDistribution(torch.linspace(-3, 3, 11)), 8, 1, 1, 8)
    >>> fit_pfn(model, LinearTasks(1), steps=5, num_points=6).steps
    5
    """
    max_context = num_points - 1 if max_context is None else max_context
    check_counts(
        steps=steps, batch_size=batch_size, num_points=num_points, accumulate=accumulate,
        epoch=epoch,
    )  # fmt: skip
    if not 0 <= min_context <= max_context < num_points:
        raise ValueError(
            "must be 0 <= min_context <= max_context < num_points, got "
            f"{min_context}, {max_context} and {num_points}"
        )
    if context_sizes not in ("weighted", "uniform"):
        raise ValueError(f"context_sizes must be 'weighted' or 'uniform', got {context_sizes!r}")
    if lr is None:
        lr = 0.003239 - 0.0001395 * math.log(sum(p.numel() for p in model.parameters()))
    if not lr > 0:
        raise ValueError(f"lr must be positive, got {lr}")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    sizes = torch.arange(min_context, max_context + 1)
    weights = 1 / (max_context + 1 - sizes.double())
    weights = weights if context_sizes == "weighted" else torch.ones_like(weights)

    def draw() -> Tasks:
        x, y = sample_prior(
            prior, batch_size, num_points, generator,
            num_features=model.num_features, num_classes=_num_classes(model),
        )  # fmt: skip
        pick = torch.multinomial(weights.to(generator.device), 1, generator=generator)
        n = int(sizes[int(pick)])
        x, y = x.to(model.x_mean), y.to(model.x_mean)
        return (*standardize_context(x, y, n, _num_classes(model) is None), n) if standardize else (
            x, y, n,
        )  # fmt: skip

    def batches() -> Iterator[list[Tasks]]:
        while True:
            yield [draw() for _ in range(accumulate)]

    def loss(model: Any, parts: list[Tasks]) -> Tensor:
        *first, last = (lambda tasks=tasks: _nll(model, *tasks) for tasks in parts)
        for part in first:  # gradients add up; one graph at a time is in memory
            part().backward()
        return last()

    if not model.trained_steps:
        _take_input_scale(model, [draw()[0] for _ in range(4)])
    warm = steps / 4

    def factor(step: int) -> float:
        start = step // epoch * epoch
        at = start + min(epoch, steps - start) / 2  # the middle of its epoch
        if at < warm:
            return at / warm
        return (1 + math.cos(math.pi * (at - warm) / (steps - warm))) / 2

    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    with torch.enable_grad():
        history = fit(
            model,
            batches(),
            loss,
            optimizer=optimizer,
            steps=steps,
            schedule=factor,
            clip=1.0,
            after_step=after_step,
        )
    model.trained_steps += history.steps
    model.max_context.fill_(max_context)
    model.standardize.fill_(standardize)
    return history


def standardize_context(
    x: Tensor, y: Tensor, n: int, scale_y: bool = True
) -> tuple[Tensor, Tensor]:
    """Tasks as estimators see tables: in units of their first n rows.

    Columns get mean 0 and deviation 1 over the context; those that are constant there become 0.
    All are then multiplied by F_max/F, with F the number of columns that are not constant among
    F_max: sums over columns stay as large when a table is padded with zeros.

    Args:
        x: (B, T, F_max).
        y: (B, T).
        n: size of the context.
        scale_y: standardise y likewise; where the context's y are constant, only their mean is
            taken off.

    Returns:
        x and y of the same shapes.
    """
    mean, std = context_moments(x[:, :n])
    informative = std > 0
    x = torch.where(informative, (x - mean) / std, 0.0)
    count = informative.sum(-1, keepdim=True).clamp(min=1)
    x = x * (x.shape[-1] / count)
    if scale_y:
        mean, std = context_moments(y[:, :n])
        y = (y - mean) / torch.where(std > 0, std, 1.0)
    return x, y


def context_moments(context: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation over rows (B, n, …); 0 for a deviation that is nothing but rounding."""
    if context.shape[1] == 0:
        nothing = context.new_zeros(len(context), 1, *context.shape[2:])
        return nothing, nothing
    mean = context.mean(1, keepdim=True)
    std = (context - mean).square().mean(1, keepdim=True).sqrt()
    largest = context.abs().amax(1, keepdim=True)
    return mean, torch.where(std > 10 * torch.finfo(std.dtype).eps * largest, std, 0.0)


def _nll(model: PFN, x: Tensor, y: Tensor, n: int) -> Tensor:
    head: Any = model.head
    return -head.log_prob(model(x[:, :n], y[:, :n], x[:, n:]), y[:, n:]).mean()


def _num_classes(model: PFN) -> int | None:
    return model.head.num_outputs if isinstance(model.head, CategoricalHead) else None


def _take_input_scale(model: PFN, x: list[Tensor]) -> None:
    rows = torch.cat([part.flatten(0, 1) for part in x])
    std = rows.std(0, correction=0)
    model.x_mean.copy_(rows.mean(0))
    model.x_std.copy_(torch.where(std > 0, std, 1.0))
