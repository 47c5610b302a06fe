"""What a classifier knows, from its answers alone; and what a task asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.common.activations import evaluating

Predictor = Callable[[Tensor], Any]
"""Inputs (n, ...) to probabilities or logits (n, K); a module, or any function of a tensor."""


@dataclass(frozen=True, eq=False)
class Knowledge:
    """What `probe_knowledge` found.

    Attributes:
        features: M, (draws, K, K, f): on the diagonal the nodes, at (i, j) the boundary of i
            towards j.
        inputs: what was encoded, (draws, K, K, ...).
        flagged: classes that the model never answers, BoolTensor (K,).
    """

    features: Tensor
    inputs: Tensor
    flagged: Tensor


def probe_knowledge(
    predict: Predictor,
    pool: Tensor,
    num_classes: int,
    encode: Callable[[Tensor], Any],
    *,
    top: int = 8,
    steps: int = 12,
    draws: int = 1,
    generator: torch.Generator | None = None,
) -> Knowledge:
    """Describe a black-box classifier by examples of its classes and of the boundaries between.

    The node p_ii is drawn from the `top` samples of the pool that the model answers i most surely.
    The boundary p_ij, i ≠ j, lies on the way from node i to node j, at the first t of

        x(t) = p_ii + t (p_jj - p_ii),   argmax predict(x(t)) ≠ i

    that bisection finds, on the far side of the crossing and within 2^-steps of it. A reference
    encoder φ, the same for all models that are to be compared, turns all of them into vectors:
    M_ij = φ(p_ij). Do it once for each model of a zoo, and retrieve from what was found without
    asking a model again (`ModelRetriever`).

    The pool is answered once and all bisections advance together: 1 + steps calls of `predict`,
    |pool| + draws · K (K-1) · steps inputs, no gradient. A module is asked in evaluation mode and
    left as it was. A class that the model never answers gets the sample to which it gives most,
    and is flagged; its boundaries mean little. How boundaries are found is our reading: arXiv
    2412.16251 asks for samples at them, and the released code starts from stored ones.

    Args:
        predict: inputs (n, ...) to probabilities or logits (n, K), a tensor or an array.
        pool: unlabelled samples (n, ...) that no model was trained on, floating point.
        num_classes: K, at least 2.
        encode: inputs (n, ...) to vectors (n, f).
        top: from how many samples a node is drawn.
        steps: halvings of the way to a boundary.
        draws: how many M to make, each of other nodes.
        generator: draws the nodes; a CPU generator, by default one that is seeded with 0.

    Raises:
        TypeError: the pool is no floating-point tensor, or predict and encode are no functions.
        ValueError: an empty pool, counts out of range, or answers that are not finite, of another
            width or of another number of rows.

    >>> pool = torch.tensor([[-3.0], [0.0], [2.0], [5.0]])
    >>> def predict(x):  # class 0 up to x = 1
    ...     return torch.cat([1 - x, x - 1], 1)
    >>> probe_knowledge(predict, pool, 2, lambda x: x, top=1).features[0, :, :, 0].round(decimals=1)
    tensor([[-3.,  1.],
            [ 1.,  5.]])
    """
    _check_pool(pool, num_classes, predict=predict, encode=encode)
    _check_counts(top=top, draws=draws)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps must be an integer >= 0, got {steps!r}")
    generator = generator or torch.Generator().manual_seed(0)
    with torch.no_grad():
        pool = pool.detach()
        p = probabilities(ask(predict, pool, num_classes, "predict"))
        chosen, flagged = _nodes(p, min(top, len(pool)), draws, generator)
        nodes = pool[chosen.to(pool.device)]  # (draws, K, ...)
        inputs = _boundaries(predict, nodes, steps)
        f = ask(encode, inputs.flatten(0, 2), None, "encode")
    shape = (draws, num_classes, num_classes, -1)
    return Knowledge(f.reshape(shape), inputs, flagged)


def probe_zoo(
    zoo: Mapping[str, Predictor],
    pool: Tensor,
    num_classes: int,
    encode: Callable[[Tensor], Any],
    **keywords: Any,
) -> dict[str, Knowledge]:
    """`probe_knowledge` of every model of a zoo, one at a time.

    Args:
        zoo: a `ModelZoo`, or any mapping of names to predictors.
        pool, num_classes, encode: see `probe_knowledge`.
        **keywords: the others of `probe_knowledge`.

    Raises:
        TypeError: the zoo is no mapping.
        ValueError: the zoo is empty; a model raised, or answered with something that is not finite
            or of another width: the message begins with its name.

    >>> zoo = {"up": lambda x: torch.cat([-x, x], 1), "down": lambda x: torch.cat([x, -x], 1)}
    >>> probed = probe_zoo(zoo, torch.linspace(-1, 1, 9)[:, None], 2, lambda x: x, top=1)
    >>> {name: knowledge.features[0, 0, 0].item() for name, knowledge in probed.items()}
    {'up': -1.0, 'down': 1.0}
    """
    if not isinstance(zoo, Mapping):
        raise TypeError(f"zoo must map names to predictors, got {type(zoo).__name__}")
    if not zoo:
        raise ValueError("the zoo is empty: there is no model to probe")
    _check_pool(pool, num_classes, encode=encode)
    found = {}
    for name in zoo:
        try:
            found[name] = probe_knowledge(zoo[name], pool, num_classes, encode, **keywords)
        except Exception as error:  # whatever a stranger's model does
            raise ValueError(f"model {name!r}: {error}") from error
    return found


def query_knowledge(
    x: Tensor,
    y: Tensor,
    num_classes: int,
    encode: Callable[[Tensor], Any],
    n_per_class: int = 5,
) -> Tensor:
    """Describe a task by the mean vectors of a few samples of each class.

        q_c = mean of φ(x) over the first n_per_class samples of class c

    Classes stand in the order of their numbers, and a model's outputs are compared in that order:
    a task with permuted classes is another task. Classes of fewer samples are averaged over what
    there is. arXiv 2412.16251, five samples a class.

    Args:
        x: samples (n, ...).
        y: their classes (n,), from 0 to num_classes - 1.
        num_classes: K.
        encode: the reference encoder of `probe_knowledge`, inputs (n, ...) to vectors (n, f).
        n_per_class: samples a class.

    Returns:
        (K, f).

    Raises:
        TypeError: x is no floating-point tensor, or y holds no whole numbers.
        ValueError: a class without samples or out of range, or another number of labels.

    >>> x = torch.tensor([[1.0], [2.0], [4.0], [9.0]])
    >>> query_knowledge(x, torch.tensor([0, 1, 1, 1]), 2, lambda x: x, n_per_class=2)
    tensor([[1.],
            [3.]])
    """
    _check_pool(x, num_classes, name="x", encode=encode)
    _check_counts(n_per_class=n_per_class)
    check_labels("y", y, len(x))
    if y.min() < 0 or y.max() >= num_classes:
        raise ValueError(f"y must be in [0, {num_classes}), got {int(y.min())} to {int(y.max())}")
    member = nn.functional.one_hot(y.long(), num_classes)
    missing = (member.sum(0) == 0).nonzero().flatten().tolist()
    if missing:
        raise ValueError(f"y has no sample of class {', '.join(map(str, missing))}")
    kept = (member * (member.cumsum(0) <= n_per_class)).bool()  # the first of each class
    rows = kept.any(1)
    with torch.no_grad():
        f = ask(encode, x.detach()[rows.to(x.device)], None, "encode")
    weights = kept[rows].to(f)
    return (weights / weights.sum(0)).T @ f


# ---- asking


def ask(function: Callable[[Tensor], Any], x: Tensor, width: int | None, name: str) -> Tensor:
    """Rows of finite numbers for rows of x, on its device."""
    if isinstance(function, nn.Module):
        weight = next(function.parameters(), x)
        with evaluating(function):
            answer = function(x.to(weight.device))
    else:
        answer = function(x)
    try:
        answer = torch.as_tensor(answer, device=x.device).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(answer).__name__
        raise TypeError(f"{name} must return a tensor or an array, got {kind}") from error
    if answer.dim() != 2 or len(answer) != len(x):
        raise ValueError(
            f"{name} must return a row for each of {len(x)} inputs, got {tuple(answer.shape)}"
        )
    if width is not None and answer.shape[1] != width:
        raise ValueError(f"{name} returned {answer.shape[1]} columns, expected {width}")
    if not answer.isfinite().all():
        bad = (~answer.isfinite()).any(1).sum()
        raise ValueError(f"{name} returned NaN or infinity for {bad} of {len(x)} inputs")
    return answer if answer.is_floating_point() else answer.to(x.dtype)


def probabilities(answer: Tensor) -> Tensor:
    """Probabilities as they are, logits after a softmax."""
    answer = answer.to(torch.promote_types(answer.dtype, torch.float32))
    sums_to_one = (answer.sum(1) - 1).abs().max() < 1e-2
    return answer if sums_to_one and answer.min() >= 0 else answer.softmax(1)


# ---- nodes and boundaries


def _nodes(p: Tensor, top: int, draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Positions in the pool, (draws, K), and the classes that are never answered."""
    answered = nn.functional.one_hot(p.argmax(1), p.shape[1]).bool()
    flagged = ~answered.any(0)
    eligible = torch.where(answered, p, -torch.inf)
    best, rows = eligible.topk(top, dim=0)  # (top, K)
    rows[0] = torch.where(flagged, p.argmax(0), rows[0])
    choices = best.isfinite().sum(0).clamp(min=1).cpu()
    uniform = torch.rand(draws, p.shape[1], dtype=torch.float64, generator=generator)
    rank = (uniform * choices).long()
    return rows.cpu().gather(0, rank), flagged


def _boundaries(predict: Predictor, nodes: Tensor, steps: int) -> Tensor:
    """Nodes on the diagonal, boundary points beside it, (draws, K, K, ...), by bisection."""
    draws, k = nodes.shape[:2]
    i, j = (~torch.eye(k, dtype=torch.bool, device=nodes.device)).nonzero().unbind(1)
    start, end = nodes[:, i].flatten(0, 1), nodes[:, j].flatten(0, 1)
    source = i.repeat(draws)
    fits = (-1,) + (1,) * (start.dim() - 1)

    def at(t: Tensor) -> Tensor:
        return torch.lerp(start, end, t.to(start.dtype).reshape(fits))

    near, far = (torch.full(source.shape, t, device=nodes.device) for t in (0.0, 1.0))
    for _ in range(steps):
        middle = (near + far) / 2
        stays = ask(predict, at(middle), k, "predict").argmax(1) == source
        near, far = torch.where(stays, middle, near), torch.where(stays, far, middle)
    inputs = nodes.unsqueeze(2).repeat(1, 1, k, *[1] * (nodes.dim() - 2))
    inputs[:, i, j] = at(far).unflatten(0, (draws, len(i)))
    return inputs


# ---- checks


def _check_pool(x: Any, num_classes: Any, name: str = "pool", **functions: Any) -> None:
    for what, function in functions.items():
        if not callable(function):
            raise TypeError(f"{what} must be a function, got {type(function).__name__}")
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {kind}")
    if x.dim() < 2 or len(x) == 0:
        raise ValueError(f"{name} must hold samples (n, ...), got shape {tuple(x.shape)}")
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 2:
        raise ValueError(f"num_classes must be an integer of at least 2, got {num_classes!r}")


def _check_counts(**counts: Any) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")


def check_labels(name: str, labels: Any, n: int) -> None:
    """Raise unless these are n whole numbers."""
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"{name} must be a tensor of whole numbers, got {kind}")
    if labels.shape != (n,):
        raise ValueError(f"{name} must have shape ({n},), got {tuple(labels.shape)}")
