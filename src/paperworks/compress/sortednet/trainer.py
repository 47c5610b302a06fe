"""Training all sub-models of a sorted network at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from paperworks.common.activations import Batch
from paperworks.compress.sortednet.model import SortedModel
from paperworks.compress.sortednet.spec import Config

MODES = ("stochastic", "sum", "sandwich")


class SortedTrainer:
    """Updates of a sorted network that minimise the loss of all of its sub-models.

        `min_θ sum_{b in B} p(b) L(f_b(x; θ), y)`

    - "stochastic": g times draw b from p, take the next mini-batch, and add up the gradients of
      L / g; then one step of the optimiser. Unbiased for every g; g trades variance for cost.
    - "sum": all of B on one mini-batch, weighted with p. Where depth is the only dimension, the
      blocks run once for all.
    - "sandwich": the smallest, the largest and g - 2 drawn ones on one mini-batch, the rule of
      universally slimmable networks, here without distillation: the rival.

    No distillation, no head of its own for a size. A gradient is zero where no drawn sub-model has
    weights, and optimisers with momentum or weight decay move these all the same: that is the rule.

    Args:
        model: what `to_sorted` gives, in training mode if it has dropout or batch norms.
        optimizer: holds its parameters.
        loss_fn: `loss_fn(model, batch)`, a scalar.
        accumulate: g, sub-models an update; 2-8 for SortedNet from memory, the companion has 8.
            "sum" does not use it.
        distribution: "uniform", or a function of b that p is proportional to.
        mode: "stochastic", "sum" or "sandwich".
        generator: draws sub-models and nothing else, so that data order does not depend on it; a
            fresh one with seed 0 by default. Several processes must draw alike.

    Raises:
        ValueError: accumulate below 1 (below 2 for "sandwich"), an unknown mode, weights that are
            no distribution.

    Source: arXiv 2309.00255, section on training; the sum in one pass is arXiv 2309.08968, the
    sandwich rule arXiv 1903.05134.

    >>> from paperworks.compress import SortedSpec, to_sorted
    >>> mlp = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    >>> x = torch.rand(32, 4)
    >>> model = to_sorted(mlp, SortedSpec({"width": [2, 4, 8]}), example=x)
    >>> adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    >>> loss_fn = lambda model, x: (model(x) - x.sum(1, keepdim=True)).square().mean()
    >>> trainer = SortedTrainer(model, adam, loss_fn, accumulate=2)
    >>> losses = [trainer.step([x, x]).item() for _ in range(50)]
    >>> losses[-1] < losses[0]
    True
    """

    def __init__(
        self,
        model: SortedModel,
        optimizer: Optimizer,
        loss_fn: Callable[[SortedModel, Any], Tensor],
        *,
        accumulate: int = 4,
        distribution: str | Callable[[Config], float] = "uniform",
        mode: str = "stochastic",
        generator: torch.Generator | None = None,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        least = 2 if mode == "sandwich" else 1
        if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < least:
            raise ValueError(f"accumulate must be >= {least}, got {accumulate!r}")
        self.model = model
        self.optimizer = optimizer
        self.loss_fn = loss_fn
        self.accumulate = accumulate
        self.mode = mode
        self.generator = generator or torch.Generator().manual_seed(0)
        self.configs = model.spec.configs
        self.p = _probabilities(distribution, self.configs)

    @property
    def batches_per_step(self) -> int:
        """How many mini-batches a step takes."""
        return self.accumulate if self.mode == "stochastic" else 1

    def step(self, batches: Iterable[Any]) -> Tensor:
        """One update.

        Args:
            batches: an iterator, from which `batches_per_step` mini-batches are taken. Anything
                else that can be iterated is started from its beginning.

        Returns:
            The loss before the update, over the sub-models that were drawn; without gradient.

        Raises:
            ValueError: there are not enough mini-batches. Nothing is changed.
        """
        taken = [batch for _, batch in zip(range(self.batches_per_step), batches)]
        if len(taken) < self.batches_per_step:
            raise ValueError(
                f"batches gave {len(taken)} mini-batches of {self.batches_per_step} for a step"
            )
        self.optimizer.zero_grad(set_to_none=True)
        if self.mode == "sum" and set(self.model.spec.dims) == {"depth"}:
            loss = self._one_pass(taken[0])
        else:
            loss = torch.stack([self._backward(*term) for term in self._terms(taken)]).sum()
        self.optimizer.step()
        return loss

    def expected_macs(self, example: Batch) -> float:
        """Multiply-adds that the forwards of an update take on average: `g sum_b p(b) cost(b)`.

        The blocks that "sum" shares between depths count for each.
        """
        costs = [self.model.cost(b, example) for b in self.configs]
        mean = sum(p * cost for p, cost in zip(self.p.tolist(), costs))
        if self.mode == "sum":
            return float(sum(costs))
        if self.mode == "sandwich":
            return costs[0] + costs[-1] + (self.accumulate - 2) * mean
        return self.accumulate * mean

    def _terms(self, batches: list[Any]) -> list[tuple[float, Config, Any]]:
        """Weight, sub-model and mini-batch of each loss."""
        if self.mode == "sum":
            return [(p, b, batches[0]) for p, b in zip(self.p.tolist(), self.configs)]
        g = self.accumulate
        if self.mode == "sandwich":
            drawn = [self.configs[0], self.configs[-1], *self._draw(g - 2)]
            return [(1 / g, b, batches[0]) for b in drawn]
        return [(1 / g, b, batch) for b, batch in zip(self._draw(g), batches)]

    def _draw(self, n: int) -> list[Config]:
        if not n:
            return []
        index = torch.multinomial(self.p, n, replacement=True, generator=self.generator)
        return [self.configs[i] for i in index.tolist()]

    def _backward(self, weight: float, b: Config, batch: Any) -> Tensor:
        with self.model.at(b):
            loss = weight * self.loss_fn(self.model, batch)
            loss.backward()
        return loss.detach()

    def _one_pass(self, batch: Any) -> Tensor:
        """The weighted loss at all depths, the deepest first, whose blocks serve the others."""
        losses = []
        with self.model.sharing_blocks():
            for weight, b, x in reversed(self._terms([batch])):
                with self.model.at(b):
                    losses.append(weight * self.loss_fn(self.model, x))
        loss = torch.stack(losses).sum()
        loss.backward()
        return loss.detach()


def _probabilities(distribution: str | Callable[[Config], float], configs: list[Config]) -> Tensor:
    if isinstance(distribution, str):
        if distribution != "uniform":
            raise ValueError(f"distribution must be 'uniform' or a function, got {distribution!r}")
        return torch.full((len(configs),), 1 / len(configs), dtype=torch.float64)
    weights = [float(distribution(b)) for b in configs]
    if not all(math.isfinite(w) and w >= 0 for w in weights) or not sum(weights) > 0:
        raise ValueError(f"distribution must give weights >= 0, some positive, got {weights}")
    return torch.tensor(weights, dtype=torch.float64) / sum(weights)
