"""How much each weight matters: what pruning ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from paperworks.common.activations import Batch, evaluating, first_tensor, model_arguments
from paperworks.compress.sparseland.densities import prunable

Method = Literal["magnitude", "lamp", "random", "snip", "grasp", "synflow"]
Loss = Callable[[Any, Tensor], Tensor]
"""`loss_fn(output, target)`, a scalar, as in `torch.nn.functional`."""
METHODS = ("magnitude", "lamp", "random", "snip", "grasp", "synflow")
ON_DATA = ("snip", "grasp")


def scores(
    model: nn.Module,
    method: Method,
    loss_fn: Loss | None = None,
    batch: Batch | None = None,
    *,
    temperature: float = 200.0,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """A score for every prunable weight; pruning keeps the largest (`make_masks`).

    - "magnitude": `|w|`.
    - "lamp": in each layer, over the weights v at least as large as u,
      `w_u^2 / sum_v w_v^2`; ranked over all layers together it chooses their densities (Lee et al.
      2021, arXiv 2010.07611).
    - "random": uniform on [0, 1).
    - "snip": `|w * dL/dw|`, how much the loss feels the weight's mask, on one batch of about ten
      samples a class (Lee et al. 2019, arXiv 1810.02340).
    - "grasp": `w * (H g)` with the gradient g and the Hessian H of the loss: keeps the weights
      without which the gradient would shrink most. The outputs are divided by `temperature` (Wang,
      Zhang, Grosse 2020, arXiv 2002.07376).
    - "synflow": `|w * dR/dw|` with `R` the sum of outputs of the network of absolute values at an
      input of ones; needs no data. One shot of it is no use: see `prune_at_init` (Tanaka et al.
      2020, arXiv 2006.05467).

    Args:
        model: any module; it is not changed. "snip" and "grasp" run it in the mode that it is in
            (batch norms at initialisation: training mode), "synflow" in evaluation mode.
        method: see above.
        loss_fn: `loss_fn(output, target)`, for "snip" and "grasp".
        batch: `(inputs, target)` for "snip" and "grasp"; for "synflow" inputs, of which only the
            shape of a sample counts.
        temperature: what "grasp" divides the outputs by.
        generator: for "random"; a fresh one with seed 0 by default.

    Returns:
        For each of `prunable(model)` a tensor of its shape; of "synflow" in float64, which does not
        overflow in deep networks.

    Raises:
        ValueError: an unknown method; one that lacks its `loss_fn` or `batch`; a score that is not
            finite; a temperature that is not positive.

    Axes of Liu and Wang 2023, arXiv 2302.02596; each method's source is named above.

    >>> model = nn.Sequential(nn.Linear(3, 1, bias=False))
    >>> model[0].weight.data = torch.tensor([[1.0, 2.0, 3.0]])
    >>> scores(model, "lamp")
    {'0.weight': tensor([[0.0714, 0.3077, 1.0000]])}
    """
    found = weights_of(model)
    return score(model, found, method, loss_fn, batch, temperature=temperature, generator=generator)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The prunable weights, out of any graph."""
    return {name: weight.detach() for name, weight in prunable(model).items()}


def score(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    method: Method,
    loss_fn: Loss | None,
    batch: Batch | None,
    *,
    temperature: float = 200.0,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """`scores` of the model with `weights` in place of its own: half pruned ones, for instance."""
    check_method(method, loss_fn, batch)
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature!r}")
    if method == "magnitude":
        found = {name: w.abs() for name, w in weights.items()}
    elif method == "lamp":
        found = {name: _lamp(w) for name, w in weights.items()}
    elif method == "random":
        generator = generator or torch.Generator().manual_seed(0)
        found = {name: _uniform(w, generator) for name, w in weights.items()}
    elif method == "synflow":
        found = _synflow(model, weights, batch)
    else:
        assert loss_fn is not None  # check_method
        found = _on_data(model, weights, method, loss_fn, batch, temperature)
    for name, tensor in found.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{method} scores of {name!r} are not finite")
    return found


def check_method(method: str, loss_fn: Loss | None, batch: Batch | None) -> None:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if method in ON_DATA and (loss_fn is None or batch is None):
        raise ValueError(f"{method} needs loss_fn and batch")
    if method == "synflow" and batch is None:
        raise ValueError("synflow needs batch, for the shape of an input")


def _lamp(w: Tensor) -> Tensor:
    """Squares over the sum of all squares from there upwards, equal ones in order of position."""
    wide = w.flatten().to(torch.promote_types(w.dtype, torch.float32))  # few bits, many ties
    squares, order = wide.square().sort(stable=True)
    above = squares.flip(0).cumsum(0).flip(0)
    ratio = torch.where(above > 0, squares / above, squares)  # a layer of zeros scores zero
    return torch.empty_like(ratio).scatter_(0, order, ratio).reshape(w.shape)


def _uniform(w: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.rand(w.shape, generator=generator, device=generator.device)
    return drawn.to(w.device)  # float32 in any case: few bits would mean many ties


def _synflow(model: nn.Module, weights: Mapping[str, Tensor], batch: Any) -> dict[str, Tensor]:
    x = first_tensor(batch)
    if x is None:
        raise ValueError(f"synflow needs inputs as batch, got {type(batch).__name__}")
    positive = {
        name: _positive(t) for name, t in [*model.named_parameters(), *model.named_buffers()]
    }
    mine = {name: _positive(w).requires_grad_() for name, w in weights.items()}
    device = next(iter(weights.values())).device
    ones = torch.ones_like(x[:1], dtype=torch.float64, device=device)
    with evaluating(model), torch.enable_grad():
        output = first_tensor(functional_call(model, {**positive, **mine}, (ones,)))
        assert output is not None
        gradients = torch.autograd.grad(output.sum(), list(mine.values()), materialize_grads=True)
    return {name: (w.detach() * g).abs() for (name, w), g in zip(mine.items(), gradients)}


def _positive(tensor: Tensor) -> Tensor:
    """The absolute value in double precision; counters stay what they are."""
    tensor = tensor.detach()
    return tensor.double().abs() if tensor.is_floating_point() else tensor.clone()


def _on_data(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    method: Method,
    loss_fn: Loss,
    batch: Any,
    temperature: float,
) -> dict[str, Tensor]:
    inputs, target = batch
    args, kwargs = model_arguments(model, inputs)
    buffers = {name: b.clone() for name, b in model.named_buffers()}  # norms update their own
    w = {name: tensor.detach().clone().requires_grad_() for name, tensor in weights.items()}
    tensors = list(w.values())
    target = target.to(tensors[0].device)
    scale = temperature if method == "grasp" else 1.0
    with torch.enable_grad():
        output = functional_call(model, {**buffers, **w}, args, kwargs)
        loss = loss_fn(output / scale if scale != 1 else output, target)
        g = torch.autograd.grad(
            loss, tensors, create_graph=method == "grasp", materialize_grads=True
        )
        if method == "snip":
            return {n: (t.detach() * d).abs() for (n, t), d in zip(w.items(), g)}
        inner = torch.stack([(d.detach() * d).sum() for d in g]).sum()
        Hg = torch.autograd.grad(inner, tensors, materialize_grads=True)
    return {n: t.detach() * d for (n, t), d in zip(w.items(), Hg)}
