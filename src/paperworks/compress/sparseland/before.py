"""Sparsity before training, and the lottery that looks for it afterwards."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from itertools import chain, repeat
from typing import Any

from torch import Tensor, nn

from paperworks.compress.sparseland.densities import check_count, check_density
from paperworks.compress.sparseland.masks import Masks, make_masks
from paperworks.compress.sparseland.scoring import Loss, Method, check_method, score, weights_of

SYNFLOW_ROUNDS = 100
LOTTERY_SHARE = 0.2
"""What a lottery prunes in a round, of what is left."""

Train = Callable[[nn.Module, Masks, int, int | None], Any]
"""`train_fn(model, masks, start, stop)`: trains in place between two steps, None: to the end."""


def prune_at_init(
    model: nn.Module,
    method: Method,
    density: float,
    loader: Iterable[Any],
    loss_fn: Loss | None = None,
    rounds: int | None = None,
) -> Masks:
    """Masks for a network that has not been trained, chosen over all layers together.

    In round k of R the scores of what is left choose a density `D^(k/R)`. SynFlow needs many
    rounds, or it empties a layer (Tanaka et al. 2020, arXiv 2006.05467); SNIP and GraSP were
    proposed with one, and SNIP, too, gets better with several.

    Args:
        model: any module; it is not changed, which is up to `masks.attach(optimizer)`.
        method: "snip", "grasp" or "synflow"; or another of `scores`.
        density: D, the kept fraction in (0, 1].
        loader: batches `(inputs, target)`, one for each round, again from the start when they end.
            "synflow" only looks at the shape of the first.
        loss_fn: `loss_fn(output, target)` for "snip" and "grasp".
        rounds: R; 100 for "synflow", else 1.

    Returns:
        The masks.

    Raises:
        ValueError: rounds is not positive, the loader is empty, or as `scores` and `make_masks`.

    Liu and Wang 2023, arXiv 2302.02596.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> prune_at_init(model, "synflow", 0.1, [torch.zeros(1, 8)]).density()
    0.09895833333333333
    """
    check_density(density)
    if rounds is None:
        rounds = SYNFLOW_ROUNDS if method == "synflow" else 1
    check_count(rounds=rounds)
    batches = _again(loader)
    first = next(batches)
    check_method(method, loss_fn, first)
    masks = Masks(model)
    dense = weights_of(model)
    for k, batch in zip(range(1, rounds + 1), chain([first], batches)):
        weights = {name: w * masks[name] for name, w in dense.items()}
        masks.assign(
            _pruned(masks, score(model, weights, method, loss_fn, batch), density, k, rounds)
        )
    return masks


def lottery_ticket(
    train_fn: Train,
    model: nn.Module,
    density: float,
    rewind_step: int = 0,
    rounds: int | None = None,
) -> tuple[nn.Module, Masks]:
    """A sparse network at its early weights, found by training, pruning and rewinding.

    In each round the network is trained, what has the smallest magnitudes over all layers is
    pruned, and the rest goes back to its weights of step `rewind_step` (Frankle and Carbin 2019,
    arXiv 1803.03635; rewinding to k > 0: Frankle et al. 2020, arXiv 1912.05671).

    Args:
        train_fn: `train_fn(model, masks, start, stop)` trains in place from step `start` to step
            `stop` (None: to the end) with `masks` attached to its optimizer.
        model: at its initial weights; it is not changed.
        density: D, the kept fraction in (0, 1].
        rewind_step: k: 0, or some 2 % of training.
        rounds: R; after round r the density is `D^(r/R)`. By default so many that each prunes at
            most 20 % of what is left.

    Returns:
        A copy of the model at its weights of step k with the masks applied, and the masks, which
        are the copy's: `train_fn(ticket, masks, rewind_step, None)` trains it.

    Raises:
        ValueError: density outside (0, 1], a negative rewind_step, rounds that are not positive.

    Liu and Wang 2023, arXiv 2302.02596.

    >>> import torch
    >>> def train_fn(model, masks, start, stop):
    ...     model[0].weight.data += 0.1
    ...     masks.apply()
    >>> model = nn.Sequential(nn.Linear(4, 5))
    >>> ticket, masks = lottery_ticket(train_fn, model, density=0.5)
    >>> masks.density(), torch.equal(ticket[0].weight, model[0].weight * masks["0.weight"])
    (0.5, True)
    """
    check_density(density)
    if isinstance(rewind_step, bool) or not isinstance(rewind_step, int) or rewind_step < 0:
        raise ValueError(f"rewind_step must be an integer >= 0, got {rewind_step!r}")
    if rounds is None:
        rounds = max(1, math.ceil(math.log(density) / math.log(1 - LOTTERY_SHARE) - 1e-9))
    check_count(rounds=rounds)
    ticket = copy.deepcopy(model)
    masks = Masks(ticket)
    if rewind_step:
        train_fn(ticket, masks, 0, rewind_step)
    early = copy.deepcopy(ticket.state_dict())
    for r in range(1, rounds + 1):
        train_fn(ticket, masks, rewind_step, None)
        magnitudes = {name: w.abs() for name, w in weights_of(ticket).items()}
        masks.assign(_pruned(masks, magnitudes, density, r, rounds))
        ticket.load_state_dict(early)
        masks.apply()
    return ticket, masks


def _pruned(
    masks: Masks, scores: dict[str, Tensor], density: float, k: int, rounds: int
) -> dict[str, Tensor]:
    """The masks after round k; what was pruned stays so, even where all scores are equal."""
    left = {name: s.masked_fill(~masks[name], -math.inf) for name, s in scores.items()}
    return make_masks(left, density if k == rounds else density ** (k / rounds), "global")


def _again(loader: Iterable[Any]) -> Any:
    """The batches of a loader without end."""
    first = next(iter(loader), None)
    if first is None:
        raise ValueError("loader is empty, or an iterator that is used up")
    return chain.from_iterable(repeat(loader))
