"""Ways of rounding one weight to a uniform grid, as parametrisations of that weight."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize

from paperworks.common.activations import evaluating
from paperworks.common.autograd import straight_through
from paperworks.compress.blocks import checked_weight
from paperworks.compress.flexround.grid import (
    IntegerWeight,
    fit_scale,
    quant_range,
)

Scale = Literal["mse", "minmax"] | tuple[Tensor, Tensor]


class Rounding(nn.Module):
    """A weight rounded to a uniform grid: `W_hat = s1 * n`, `n` an integer of `bits` bits.

    The base of every way of rounding; a subclass says how `n` comes about, in `levels`. It is a
    parametrisation, to be used with `torch.nn.utils.parametrize.register_parametrization(layer,
    "weight", ...)`, and what `reconstruct_` makes for each layer. Training mode is for learning;
    evaluation mode gives the weight that is kept. `bake_` makes that permanent.

    Args:
        weight: the weight to be rounded, shape (out, ...); only its grid is taken from it here.
        bits: 2 to 8.
        symmetric: whether zero lies in the middle of the grid; else the zero point is fitted with
            the scale and stays.
        per_channel: one scale for each `weight[i]` instead of one for all.
        scale: "mse" or "minmax", see `fit_scale`, or a pair `(scale, zero_point)` of your own.

    Attributes:
        scale: the grid's step `s1`, shape () or (out, 1, ...).
        zero_point: int32 of that shape.

    Shapes: forward takes and gives the weight, in its own dtype; it computes in float32 at least.

    Raises:
        ValueError: bits outside [2, 8]; a weight that is empty or contains non-finite values; an
            unknown scale, or one that is not positive or does not broadcast to the weight.
        TypeError: the weight is not floating point.
    """

    initial_scale: Tensor
    zero_point: Tensor

    def __init__(
        self,
        weight: Tensor,
        bits: int,
        *,
        symmetric: bool = True,
        per_channel: bool = False,
        scale: Scale = "mse",
    ) -> None:
        super().__init__()
        quant_range(bits)
        if isinstance(scale, str):
            s1, zero_point = fit_scale(
                weight, bits, symmetric=symmetric, per_channel=per_channel, method=scale
            )
        else:
            s1, zero_point = _checked_scale(weight, *scale)
        self.bits = bits
        self.symmetric = symmetric
        self.register_buffer("initial_scale", s1)
        self.register_buffer("zero_point", zero_point)

    @property
    def scale(self) -> Tensor:
        return self.initial_scale

    def levels(self, weight: Tensor) -> Tensor:
        """`n`, in the dtype of the scale, differentiable in what the method learns."""
        raise NotImplementedError

    def penalty(self, progress: float) -> Tensor | float:
        """What is added to the reconstruction loss at this fraction of the training."""
        return 0.0

    def forward(self, weight: Tensor) -> Tensor:
        n = self.levels(weight.to(self.initial_scale.dtype))
        return (self.scale * n).to(weight.dtype)

    @torch.no_grad()
    def integers(self, weight: Tensor) -> Tensor:
        """`n + zero_point` of the weight that is kept: int8, or uint8 on an asymmetric grid."""
        with evaluating(self):  # while AdaRound learns, its n is no integer
            n = self.levels(weight.to(self.initial_scale.dtype))
        return (n + self.zero_point).to(torch.int8 if self.symmetric else torch.uint8)

    def integer_weight(self, weight: Tensor) -> IntegerWeight:
        """Integers, scale and zero point of the rounded weight."""
        return IntegerWeight(
            self.integers(weight), self.scale.detach().clone(), self.zero_point.clone()
        )

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest `n`, in the shape of the scale."""
        low, high = quant_range(self.bits, self.symmetric)
        return low - self.zero_point, high - self.zero_point

    def clip(self, n: Tensor) -> Tensor:
        """`n` inside the grid; as `torch.clamp` has it, the ends still pass their gradient."""
        return torch.clamp(n, *self.bounds)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, symmetric={self.symmetric}, scales={self.zero_point.numel()}"


class RoundToNearest(Rounding):
    """Rounding to nearest: `n = clip(round(W / s1))`. It learns nothing.

    The baseline, and where every other way starts. Arguments: see `Rounding`.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> w = torch.tensor([[0.9, -3.0]])
    >>> rounding = RoundToNearest(w, 4, scale=(torch.tensor(0.5), torch.tensor(0)))
    >>> rounding(w), rounding.integers(w)
    (tensor([[ 1., -3.]]), tensor([[ 2, -6]], dtype=torch.int8))
    """

    def levels(self, weight: Tensor) -> Tensor:
        x = weight / self.scale
        return self.clip(straight_through(x, x.round()))


class FlexRound(Rounding):
    """Learned rounding by element-wise division: each weight by a factor of its own.

    For post-training quantisation to a uniform grid with a few hundred unlabelled inputs, at low
    bits above all; `reconstruct_` trains it over a whole network. The equation:

        `S = S2 * s3 [* s4]`,  `n = clip(round(W / (s1 * S)))`,  `W_hat = s1 * n`

    with `S2` of the shape of `W`, `s3` one factor a row, `s4` one an input channel, all positive
    and learned as logarithms together with the step `s1`. Rounding passes the gradient straight
    through, so `dW_hat/dS = -W/S^2`: large weights may travel several cells, small ones hardly, a
    zero never. Before training it is rounding to nearest, bit for bit.

    Args:
        weight, bits, symmetric, per_channel, scale: see `Rounding`.
        learn_scale: learn `s1` with the factors; False fixes it (an ablation).
        row_factor: learn `s3`.
        col_factor: learn `s4`, of shape (1, in, 1, ...); "auto": for convolutions of more than one
            input channel a group (for one it would repeat the step).

    Raises:
        ValueError: see `Rounding`; a column factor for a weight of fewer than two dimensions.

    Lee, Kim, Kwon, Lee 2023, arXiv 2306.00317, section 3. As in the official code everything is
    learned in logarithms, and `s1` as a factor of its initial value.

    >>> w = torch.tensor([[0.9, 2.0, 10.0, 0.0]])
    >>> rounding = FlexRound(w, 4, scale=(torch.tensor(0.5), torch.tensor(0)))
    >>> w_hat = rounding(w)
    >>> w_hat.detach()
    tensor([[1.0000, 2.0000, 3.5000, 0.0000]])
    >>> torch.autograd.grad(w_hat.sum(), rounding.log_S2)[0]  # -W inside the range, 0 outside
    tensor([[-0.9000, -2.0000, -0.0000, -0.0000]])
    """

    log_s1: nn.Parameter | None
    log_S2: nn.Parameter
    log_s3: nn.Parameter | None
    log_s4: nn.Parameter | None

    def __init__(
        self,
        weight: Tensor,
        bits: int,
        *,
        symmetric: bool = True,
        per_channel: bool = False,
        scale: Scale = "mse",
        learn_scale: bool = True,
        row_factor: bool = True,
        col_factor: bool | Literal["auto"] = "auto",
    ) -> None:
        if col_factor not in (True, False, "auto"):
            raise ValueError(f"col_factor must be True, False or 'auto', got {col_factor!r}")
        if col_factor is True and weight.dim() < 2:
            raise ValueError(f"a weight of shape {tuple(weight.shape)} has no columns")
        super().__init__(weight, bits, symmetric=symmetric, per_channel=per_channel, scale=scale)
        if col_factor == "auto":
            col_factor = weight.dim() > 2 and weight.shape[1] > 1
        ones = [1] * (weight.dim() - 1)
        self.log_S2 = self._zeros(weight.shape)
        self.log_s1 = self._zeros(self.initial_scale.shape) if learn_scale else None
        self.log_s3 = self._zeros((weight.shape[0], *ones)) if row_factor else None
        self.log_s4 = self._zeros((1, weight.shape[1], *ones[1:])) if col_factor else None

    @property
    def scale(self) -> Tensor:
        s1 = self.initial_scale
        return s1 if self.log_s1 is None else s1 * self.log_s1.exp()

    def factors(self) -> dict[str, Tensor]:
        """`S2`, and `s3` and `s4` where they are learned; `S` is their product."""
        logs = {"S2": self.log_S2, "s3": self.log_s3, "s4": self.log_s4}
        return {name: log.exp() for name, log in logs.items() if log is not None}

    def forward(self, weight: Tensor) -> Tensor:
        s1_0 = self.initial_scale
        log_s1 = torch.zeros_like(s1_0) if self.log_s1 is None else self.log_s1
        w_hat: Tensor = _DividedRounding.apply(
            weight.to(s1_0.dtype), s1_0, log_s1, self._log_S(), *self.bounds
        )
        return w_hat.to(weight.dtype)

    def levels(self, weight: Tensor) -> Tensor:
        divisor = _divisor(self.initial_scale, self.log_s1, self._log_S())
        return self.clip((weight / divisor).round())

    def _log_S(self) -> Tensor:
        small = [log for log in (self.log_s3, self.log_s4) if log is not None]
        return self.log_S2 + sum(small) if small else self.log_S2

    def _zeros(self, shape: tuple[int, ...]) -> nn.Parameter:
        return nn.Parameter(self.initial_scale.new_zeros(shape))


class _DividedRounding(torch.autograd.Function):
    """`W_hat = s1 clip(round(W / (s1 S)))`, its gradients passed straight through the rounding:

    |             | by log S | by log s1      | by W  |
    |-------------|----------|----------------|-------|
    | in range    | -W / S   | s1 n - W / S   | 1 / S |
    | clipped     | 0        | s1 n           | 0     |

    Written out because every step does it for every weight: it keeps one tensor of the size of W
    for the backward pass where autograd would keep four, and takes about half the time.
    """

    @staticmethod
    def forward(
        ctx: Any, w: Tensor, s1_0: Tensor, log_s1: Tensor, log_S: Tensor, low: Tensor, high: Tensor
    ) -> Tensor:
        s1 = s1_0 * log_s1.exp()
        divisor = _divisor(s1_0, log_s1, log_S)
        ctx.save_for_backward(w, divisor, s1, low, high)
        return (w / divisor).round_().clamp_(low, high).mul_(s1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        w, divisor, s1, low, high = ctx.saved_tensors
        x = w / divisor
        nearest = x.round()
        n = nearest.clamp(low, high)
        gradient = gradient * s1
        inside = torch.where(nearest == n, gradient, 0)
        by_w = inside / divisor if ctx.needs_input_grad[0] else None
        by_x = inside.mul_(x)
        by_log_s1 = (gradient.mul_(n) - by_x).sum_to_size(s1.shape)
        return by_w, None, by_log_s1, by_x.neg_(), None, None


def _divisor(s1_0: Tensor, log_s1: Tensor | None, log_S: Tensor) -> Tensor:
    """`s1 S`, exactly the initial step where all logarithms are 0."""
    return (log_S if log_s1 is None else log_S + log_s1).exp().mul_(s1_0)


class AdaRound(Rounding):
    """Learned rounding up or down: the strongest rival on the same grid.

        `h = clip(sigmoid(V) * 1.2 - 0.1, 0, 1)`,  `n = clip(floor(W / s1) + h)`

    The step is fixed, since the floor is taken on a fixed grid, and every weight ends in one of its
    two nearest cells. Training drives `h` to 0 or 1 by a penalty
    `0.01 * sum(1 - |2h - 1|^beta)`, beta from 20 to 2 after a first fifth without; in evaluation
    mode `h` is 0 or 1. Before training `h` is the fractional part, so that `W_hat = W` inside the
    grid. `V` has to travel: 1e-3 suits BRECQ's 20000 steps, a few hundred want 0.1 or more.
    Arguments: see `Rounding`.

    Nagel et al. 2020, arXiv 2004.10568, section 3.

    >>> w = torch.tensor([[0.9, 2.2]])
    >>> rounding = AdaRound(w, 4, scale=(torch.tensor(0.5), torch.tensor(0)))
    >>> rounding(w).detach(), rounding.eval()(w)
    (tensor([[0.9000, 2.2000]]), tensor([[1., 2.]]))
    """

    def __init__(
        self,
        weight: Tensor,
        bits: int,
        *,
        symmetric: bool = True,
        per_channel: bool = False,
        scale: Scale = "mse",
    ) -> None:
        super().__init__(weight, bits, symmetric=symmetric, per_channel=per_channel, scale=scale)
        x = checked_weight(weight).to(self.initial_scale.dtype) / self.initial_scale
        self.V = nn.Parameter(torch.logit((x - x.floor() + 0.1) / 1.2))

    def levels(self, weight: Tensor) -> Tensor:
        return self.clip((weight / self.scale).floor() + self._upward())

    def penalty(self, progress: float) -> Tensor | float:
        if progress < 0.2:
            return 0.0
        beta = 20 - (20 - 2) * (progress - 0.2) / (1 - 0.2)
        return 0.01 * (1 - (2 * self._soft() - 1).abs().pow(beta)).sum()

    def _soft(self) -> Tensor:
        return (torch.sigmoid(self.V) * 1.2 - 0.1).clamp(0, 1)

    def _upward(self) -> Tensor:
        return self._soft() if self.training else (self.V >= 0).to(self.V.dtype)


class AdaQuant(Rounding):
    """Learned rounding by an additive offset and a learned step.

        `n = clip(round((W + V) / s1))`,  `W_hat = s1 * n`

    What FlexRound is with addition in place of division: every weight moves at the same rate,
    whatever its size. `V` is learned in units of the initial step and `s1` as a logarithm (ours:
    one learning rate then suits both). Arguments: see `Rounding`.

    After Hubara et al. 2020, arXiv 2006.10518, with weights only.

    >>> w = torch.tensor([[0.9, -2.0]])
    >>> AdaQuant(w, 4, scale=(torch.tensor(0.5), torch.tensor(0)))(w).detach()
    tensor([[ 1., -2.]])
    """

    def __init__(
        self,
        weight: Tensor,
        bits: int,
        *,
        symmetric: bool = True,
        per_channel: bool = False,
        scale: Scale = "mse",
    ) -> None:
        super().__init__(weight, bits, symmetric=symmetric, per_channel=per_channel, scale=scale)
        self.V = nn.Parameter(self.initial_scale.new_zeros(weight.shape))
        self.log_s1 = nn.Parameter(torch.zeros_like(self.initial_scale))

    @property
    def scale(self) -> Tensor:
        return self.initial_scale * self.log_s1.exp()

    def levels(self, weight: Tensor) -> Tensor:
        x = (weight + self.initial_scale * self.V) / self.scale
        return self.clip(straight_through(x, x.round()))


def bake_(model: nn.Module) -> dict[str, IntegerWeight]:
    """Make the rounded weights of a model permanent, in place.

    Every `Rounding` registered as a parametrisation goes, and leaves its weight (that of evaluation
    mode) as an ordinary parameter. The integers are returned: they and the scale are what to store
    (`integer_state_dict`); rounding the baked weight again, to a scale of its own, would give
    others.

    Returns:
        Integers, scale and zero point by the parameter's name, such as "head.weight".

    Raises:
        ValueError: a rounded weight has another parametrisation besides.

    >>> layer = nn.Linear(3, 2)
    >>> parametrize.register_parametrization(layer, "weight", FlexRound(layer.weight, 4))
    ParametrizedLinear(...)
    >>> weights = bake_(layer)
    >>> type(layer).__name__, torch.equal(layer.weight, weights["weight"].dequantize())
    ('Linear', True)
    """
    found = {
        f"{module_name}.{name}".lstrip("."): (module, name)
        for module_name, module in model.named_modules()
        if parametrize.is_parametrized(module)
        for name in module.parametrizations
        if any(isinstance(link, Rounding) for link in module.parametrizations[name])
    }
    for full_name, (module, name) in found.items():
        if len(module.parametrizations[name]) > 1:
            raise ValueError(f"{full_name} has another parametrisation besides its rounding")
    return {full_name: _bake(module, name) for full_name, (module, name) in found.items()}


def _bake(module: Any, name: str) -> IntegerWeight:
    chain = module.parametrizations[name]
    kept = chain[0].eval().integer_weight(chain.original)
    parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    return kept


def _checked_scale(weight: Tensor, scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor]:
    dtype = checked_weight(weight).dtype
    scale = torch.as_tensor(scale, dtype=dtype, device=weight.device).detach().clone()
    zero_point = torch.as_tensor(zero_point, dtype=torch.int32, device=weight.device).clone()
    if not (torch.isfinite(scale) & (scale > 0)).all():
        raise ValueError("scale must be positive and finite")
    if zero_point.shape != scale.shape:
        raise ValueError(
            f"zero_point has shape {tuple(zero_point.shape)}, the scale {tuple(scale.shape)}"
        )
    if scale.dim() and scale.shape != (len(weight), *[1] * (weight.dim() - 1)):
        raise ValueError(
            f"scale must have shape () or (out, 1, ...), got {tuple(scale.shape)} for a weight of "
            f"shape {tuple(weight.shape)}"
        )
    return scale, zero_point
