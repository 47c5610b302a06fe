"""Fine-tuning all paths at once, and choosing among them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from paperworks.common.activations import model_arguments
from paperworks.compress.snnet.network import StitchableNetwork


@dataclass
class StitchHistory:
    """What `stitch_finetune` did, step by step.

    Attributes:
        ids: the configuration that ran.
        losses: its loss.
    """

    ids: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


def stitch_finetune(
    net: StitchableNetwork,
    loader: Iterable[Any],
    loss_fn: Callable[[Any, Any], Tensor],
    optimizer: Optimizer,
    epochs: int,
    generator: torch.Generator,
    *,
    schedule: LRScheduler | None = None,
    after_step: Callable[[int, float], Any] | None = None,
) -> StitchHistory:
    """Train all configurations of a stitchable network in place: a random one each step.

    Every step draws a configuration uniformly, anchors among them, and updates what it used. What
    it did not use has no gradient, and so neither decays nor follows old momentum.

    A tenth of the rate that the anchors were trained with is customary: higher rates destroy them.
    For Swin transformers the paper gives the stitching layers the full rate and the anchors the
    tenth: two groups, of `net.anchors` and `net.stitches`. Frozen anchors
    (`net.anchors.requires_grad_(False)`, in the paper with the class tokens left trainable) train
    stitching layers alone; such steps as draw an anchor then change nothing.

    With several processes, each draws its own configurations: give each a generator of its own, and
    wrap the network with `find_unused_parameters=True`.

    Args:
        net: initialised, see `StitchableNetwork.initialize`. It is left in evaluation mode.
        loader: batches `(x, target)`, x a tensor or a dict of arguments; or dicts of arguments,
            where `"labels"` is the target and is not fed. It is gone through once an epoch.
        loss_fn: `loss_fn(output, target)`, a scalar. A teacher's labels come with the target.
        optimizer: over `net`'s parameters, of torch.
        epochs: how often to go through the loader.
        generator: draws the configurations.
        schedule: of the optimiser's rate, stepped once a batch.
        after_step: called with a step's id and loss.

    Raises:
        ValueError: epochs is no positive integer; the loader is empty or used up; the loss is not
            finite (before it reaches the weights).
        TypeError: a batch of none of the kinds above.

    Source: arXiv 2302.06586, algorithm 1 and section 4.1; they train DeiT for 50 epochs by AdamW
    with a rate of 1e-4, a weight decay of 0.05 and a cosine schedule.

    >>> from torch.nn import functional as F
    >>> from paperworks.nets import ResidualMLP
    >>> x, y = torch.rand(64, 4), torch.randint(10, (64,))
    >>> anchors = [ResidualMLP(4, width, depth=2) for width in (8, 16)]
    >>> net = StitchableNetwork(anchors, x[:1])
    >>> net.initialize(x)
    >>> optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    >>> generator = torch.Generator().manual_seed(0)
    >>> history = stitch_finetune(net, [(x, y)], F.cross_entropy, optimizer, 100, generator)
    >>> len(history.ids), set(history.ids) == set(range(len(net.configs)))
    (100, True)
    """
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"epochs must be a positive integer, got {epochs!r}")
    history = StitchHistory()
    net.train()
    for epoch in range(epochs):
        before = len(history.ids)
        for batch in loader:
            id = net.sample(generator)
            inputs, target = _inputs_and_target(net, batch)
            loss = loss_fn(net(*inputs[0], **inputs[1]), target)
            _step(optimizer, loss, id)
            if schedule is not None:
                schedule.step()
            history.ids.append(id)
            history.losses.append(loss.item())
            if after_step is not None:
                after_step(id, history.losses[-1])
        if len(history.ids) == before:
            raise ValueError(
                f"loader gave nothing in epoch {epoch}: it is empty, or an iterator that is used up"
            )
    net.eval()
    return history


def pareto_front(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Which of several choices are worth having: those that no cheaper one equals.

    Args:
        costs: lower is better, in any unit.
        scores: higher is better.

    Returns:
        Their positions, by rising cost and so by rising score; of equals the first.

    Raises:
        ValueError: not equally many, or one that is not finite.

    >>> pareto_front([1, 2, 3, 4], [0.5, 0.7, 0.6, 0.8])
    [0, 1, 3]
    """
    c, s = np.asarray(costs, dtype=float), np.asarray(scores, dtype=float)
    if c.ndim != 1 or c.shape != s.shape:
        raise ValueError(f"costs and scores must be equally many, got {c.shape} and {s.shape}")
    if not (np.isfinite(c).all() and np.isfinite(s).all()):
        raise ValueError("costs and scores must be finite")
    order = np.lexsort((-s, c))  # by cost, of equal costs the best first
    best_before = np.concatenate([[-np.inf], np.maximum.accumulate(s[order])])[: len(order)]
    return [int(i) for i in order[s[order] > best_before]]


def _step(optimizer: Optimizer, loss: Tensor, id: int) -> None:
    if not math.isfinite(loss.item()):
        raise ValueError(f"the loss of stitch {id} became {loss.item()}: lower the rate")
    optimizer.zero_grad(set_to_none=True)
    if loss.requires_grad:  # frozen anchors have nothing to learn by themselves
        loss.backward()
        optimizer.step()


def _inputs_and_target(net: StitchableNetwork, batch: Any) -> tuple[Any, Any]:
    """Arguments for the network, and what the loss compares with, both on its device."""
    if isinstance(batch, Mapping):
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        target = batch.get("labels")
    elif isinstance(batch, tuple | list) and len(batch) == 2:
        inputs, target = batch
    else:
        raise TypeError(
            "a batch must be (x, target) or a dict of arguments with 'labels', got "
            f"{type(batch).__name__}"
        )
    arguments = model_arguments(net, inputs)
    if isinstance(target, Tensor):
        (target,), _ = model_arguments(net, target)
    return arguments, target
