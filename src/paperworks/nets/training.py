"""Training a network by stochastic gradients, and choosing among trained ones."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

Candidate = TypeVar("Candidate")
Trained = TypeVar("Trained")
Loss = Tensor | Mapping[str, Tensor]
Schedule = LRScheduler | Callable[[int], float] | str


@dataclass
class History:
    """What happened in `fit`.

    Args:
        terms: for each term of the loss its value at every step; `"loss"` is always there.
        validation: pairs (step, value of `validate`).
        diverged: the loss or a validation value was not finite; training stopped there.
    """

    terms: dict[str, list[float]] = field(default_factory=lambda: {"loss": []})
    validation: list[tuple[int, float]] = field(default_factory=list)
    diverged: bool = False

    @property
    def loss(self) -> list[float]:
        """The loss at every step, before that step's update."""
        return self.terms["loss"]

    @property
    def steps(self) -> int:
        """How many batches were used."""
        return len(self.loss)

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and value of the lowest validation; None without one."""
        finite = [pair for pair in self.validation if math.isfinite(pair[1])]
        return min(finite, key=lambda pair: pair[1], default=None)


def fit(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Callable[[nn.Module, Any], Loss],
    *,
    optimizer: Optimizer,
    steps: int,
    schedule: Schedule | None = None,
    clip: float | None = None,
    after_backward: Sequence[Callable[[], Any]] = (),
    after_step: Sequence[Callable[[], Any]] = (),
    validate: Callable[[nn.Module], float] | None = None,
    every: int = 100,
    patience: int | None = None,
    restore_best: bool = False,
) -> History:
    """Train a model in place for a number of steps, one batch a step.

    The model is in training mode during steps, in evaluation mode and without gradients inside
    `validate`, and is left in evaluation mode. No random number is drawn here. A loss that is not
    finite ends the training before it reaches the weights; `History.diverged` says so.

    Args:
        model: what is trained, and what `loss` and `validate` are handed.
        batches: anything that can be iterated again and again (`paperworks.data.batches`, a
            `DataLoader`, a list with one whole graph), or without end.
        loss: `loss(model, batch)`, a scalar tensor, or a dict of scalars whose `"loss"` is
            minimised and whose other terms are recorded.
        optimizer: holds the parameters to be changed.
        steps: how many batches to use.
        schedule: what multiplies the optimizer's rates: a function of the step (from 0), "cosine"
            (half a cosine from 1 to 0 over `steps`), or a torch scheduler, stepped once a batch.
        clip: largest Euclidean norm of the gradient of all the optimizer's parameters together.
        after_backward: called after the backward pass and the clipping; if one returns something
            true, this step's update is left out.
        after_step: called after every update.
        validate: `validate(model)`, lower is better, called every `every` steps and at the end.
        every: steps from one validation to the next.
        patience: stop after this many validations in a row without a new lowest value.
        restore_best: end with the weights of the lowest validation.

    Raises:
        ValueError: steps or every is not positive, clip is not positive, patience or restore_best
            without validate, an unknown schedule, a dict without `"loss"`, batches that are empty
            or cannot be iterated a second time.

    >>> model = nn.Linear(1, 1)
    >>> batch = (torch.ones(4, 1), torch.full((4, 1), 3.0))
    >>> square = lambda model, batch: (model(batch[0]) - batch[1]).square().mean()
    >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> history = fit(model, [batch], square, optimizer=sgd, steps=50, schedule="cosine")
    >>> history.steps, history.loss[-1] < 1e-3
    (50, True)
    """
    _check(steps, clip, validate, every, patience, restore_best)
    scheduler = _scheduler(schedule, optimizer, steps)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    history = History()
    best_weights = None
    model.train()
    for step, batch in zip(range(1, steps + 1), _endless(batches), strict=False):
        optimizer.zero_grad(set_to_none=True)
        value = _record(history, loss(model, batch))
        if history.diverged:
            break
        value.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(parameters, clip)
        skip = [hook() for hook in after_backward]
        if not any(skip):
            optimizer.step()
            for hook in after_step:
                hook()
        if scheduler is not None:
            scheduler.step()
        if validate is not None and (step % every == 0 or step == steps):
            _validate(history, model, validate, step)
            improved = history.best is not None and history.best[0] == step
            if improved and restore_best:
                best_weights = copy.deepcopy(model.state_dict())
            if history.diverged or _waited(history, patience):
                break
    if best_weights is not None:
        model.load_state_dict(best_weights)
    model.eval()
    return history


def pick(
    candidates: Iterable[Candidate],
    train: Callable[[Candidate], Trained],
    score: Callable[[Trained], float],
) -> tuple[Candidate, Trained]:
    """Train once for each candidate and keep the one that scores lowest, the first among equals.

    For choices that belong inside a trial; what every method may tune equally is the study's
    `Tune`. Score on validation data, never on test data.

    Args:
        candidates: what may be chosen, for instance learning rates.
        train: turns a candidate into something trained.
        score: a validation loss; a candidate whose score is not finite is never chosen.

    Returns:
        The chosen candidate, and what `train` made of it.

    Raises:
        ValueError: there is no candidate, or no score is finite.

    >>> pick([1, 2, 3], train=lambda c: c * 10, score=lambda t: abs(t - 19))
    (2, 20)
    """
    best, lowest = None, math.inf
    tried = 0
    for tried, candidate in enumerate(candidates, start=1):  # noqa: B007
        trained = train(candidate)
        value = float(score(trained))
        if value < lowest and math.isfinite(value):
            best, lowest = (candidate, trained), value
    if best is None:
        raise ValueError(f"none of {tried} candidates has a finite score")
    return best


def _check(
    steps: int,
    clip: float | None,
    validate: Callable[[nn.Module], float] | None,
    every: int,
    patience: int | None,
    restore_best: bool,
) -> None:
    for name, count in (("steps", steps), ("every", every), ("patience", patience)):
        if count is not None and (not isinstance(count, int) or count < 1):
            raise ValueError(f"{name} must be a positive integer, got {count!r}")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be positive, got {clip!r}")
    if validate is None and (patience is not None or restore_best):
        raise ValueError("patience and restore_best need validate")


def _scheduler(schedule: Schedule | None, optimizer: Optimizer, steps: int) -> LRScheduler | None:
    if schedule is None or isinstance(schedule, LRScheduler):
        return schedule
    if schedule == "cosine":
        return LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    if callable(schedule):
        return LambdaLR(optimizer, schedule)
    raise ValueError(f"schedule must be 'cosine', a function or a scheduler, got {schedule!r}")


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError(
                "batches is empty, or an iterator that is used up: pass something that can be "
                "iterated again, such as data.batches(...) or a list"
            )


def _record(history: History, loss: Loss) -> Tensor:
    terms = loss if isinstance(loss, Mapping) else {"loss": loss}
    if "loss" not in terms:
        raise ValueError(f"the dict that loss returns has no 'loss', only {sorted(terms)}")
    for name, term in terms.items():
        number = term.item() if isinstance(term, Tensor) else float(term)
        history.terms.setdefault(name, []).append(number)
    history.diverged = not math.isfinite(history.loss[-1])
    return terms["loss"]


def _validate(
    history: History, model: nn.Module, validate: Callable[[nn.Module], float], step: int
) -> None:
    model.eval()
    with torch.no_grad():
        value = float(validate(model))
    model.train()
    history.validation.append((step, value))
    history.diverged = not math.isfinite(value)


def _waited(history: History, patience: int | None) -> bool:
    if patience is None or history.best is None:
        return False
    after_best = [step for step, _ in history.validation if step > history.best[0]]
    return len(after_best) >= patience
