"""Transformers that learn linear regression in context by weights that are written down."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

import torch
from torch import Tensor

from paperworks.incontext.iclinear.predictors import InContextModule
from paperworks.incontext.iclinear.programs import (
    AffineLayer,
    Layer,
    MLPLayer,
    MoveLayer,
    MultiplyLayer,
    ReciprocalLayer,
    Slots,
    SparseLinear,
    compile_program,
)
from paperworks.incontext.iclinear.tasks import check_counts, check_tokens

Op = Layer | list[MLPLayer]


class _ConstructedTransformer(InContextModule):
    """Tokens to streams, a program, and the prediction from its slot.

    A stream has the slots `x`, `y` (what the token holds), `seen` (1 on y-tokens), `before` (at a
    y-token the x before it), `u`, `t` (the example at work), `w` and `prediction`, and others that
    a program asks for. The zero token in front is token 0, x_i is 2i + 1 and y_i 2i + 2.
    """

    start: Tensor

    def __init__(self, dim: int, num_examples: int, **sizes: int) -> None:
        super().__init__()
        self.dim, self.num_examples = dim, num_examples
        self.slots = Slots(
            2 * num_examples + 2,
            x=dim, y=1, seen=1, before=dim, u=dim, t=1, w=dim, prediction=1, **sizes,
        )  # fmt: skip
        start = self.slots.start(2 * num_examples + 2)
        start[2::2, self.slots["seen"]] = 1
        self.register_buffer("start", start)
        entries = torch.cat([self.slots["y"], self.slots["x"]])
        width = self.slots.width
        self.embed = SparseLinear(
            dim + 1, width, entries, torch.arange(dim + 1), torch.ones(dim + 1)
        )
        self.unembed = SparseLinear(width, 1, [0], self.slots["prediction"], [1.0])
        self.program = compile_program(
            [
                self._copy_previous(),
                *(op for i in range(num_examples) for op in self._update(2 * i + 2)),
                *self._finish(),
                MultiplyLayer(self.slots, "w", "x", "prediction", torch.ones(1, dim)),
            ]
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Predictions at the x-tokens.

        Args:
            tokens: (B, T, dim + 1), as `interleave` makes them; at most 2·num_examples + 1.

        Returns:
            (B, ⌈T/2⌉), float64.

        Raises:
            ValueError: tokens of another shape or not finite, too many examples, or weights that
                are no longer float64: then products have no digit left.
        """
        check_tokens(tokens, self.dim, 2 * self.num_examples + 1)
        if not tokens.isfinite().all():
            raise ValueError("tokens must be finite: end the sequence at a query without y")
        if self.embed.values.dtype != torch.float64:
            dtype = self.embed.values.dtype
            raise ValueError(f"the weights must be float64, got {dtype}: call .double() and reload")
        zero = tokens.new_zeros(len(tokens), 1, self.dim + 1)
        stream = self.embed(torch.cat([zero, tokens], dim=1).to(self.start))
        stream = self.program(stream + self.start[: stream.shape[1]])
        return self.unembed(stream[:, 1::2])[..., 0]

    def _copy_previous(self) -> MoveLayer:
        """Each y-token copies the x of the token before it."""
        tokens = len(self.start)
        source = torch.zeros(tokens, tokens, dtype=torch.bool)
        y_tokens = torch.arange(2, tokens, 2)
        source[y_tokens, y_tokens - 1] = True
        return MoveLayer(self.slots, "x", "before", source)

    def _update(self, token: int) -> Iterator[Op]:
        """What learns from the example whose y-token this is.

        It is loaded from there, and not from its x-token, which shows x before y can be seen: to
        tokens before it, everything loaded is 0.
        """
        raise NotImplementedError

    def _finish(self) -> Iterator[Op]:
        """What makes `w` once all examples are done."""
        yield from ()

    def _clear(self, *names: str) -> AffineLayer:
        coordinates = torch.cat([self.slots[name] for name in names])
        return AffineLayer(self.slots, coordinates, coordinates, -1.0)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_examples={self.num_examples}, width={self.slots.width}"


class SGDTransformer(_ConstructedTransformer):
    """A transformer that does one pass of stochastic gradient descent over its context.

    For each example, from w = 0,

        w ← w − 2α (x (wᵀx − y) + λ w),

    and the prediction at every x-token is that of w after the examples before it: one causal
    network is `online_sgd` at every position. For trying methods that ask which algorithm a model
    runs on a model of which it is known. Attention loads an example, an MLP makes e = wᵀu − y, a
    second one updates w: 3 layers an example and 2 around them, of width O(dim) beside positions.

    Args:
        dim: number of entries of x.
        num_examples: the longest context; a query may follow it.
        lr: α.
        weight_decay: λ.

    Attributes:
        program: the layers, by name "0", "1", …; every weight is a parameter.
        slots: names of the coordinates of the stream between them.

    Raises:
        ValueError: dim or num_examples is not a positive integer, lr is not positive or
            weight_decay is negative.

    Source: arXiv 2211.15661, Theorem 1; these weights are ours.

    >>> model = SGDTransformer(dim=1, num_examples=2, lr=0.25)
    >>> model(torch.tensor([[[0.0, 1.0], [8.0, 0.0], [0.0, 1.0]]])).round(decimals=6).tolist()
    [[0.0, 4.0]]
    """

    def __init__(self, dim: int, num_examples: int, lr: float, weight_decay: float = 0.0) -> None:
        check_counts(dim=dim, num_examples=num_examples)
        if not (lr > 0 and isfinite(lr)):
            raise ValueError(f"lr must be positive and finite, got {lr}")
        if not (weight_decay >= 0 and isfinite(weight_decay)):
            raise ValueError(f"weight_decay must be finite and not negative, got {weight_decay}")
        self.lr, self.weight_decay = lr, weight_decay
        super().__init__(dim, num_examples, e=1, here=1)

    def _update(self, token: int) -> Iterator[Op]:
        slots, eye = self.slots, torch.eye(self.dim, dtype=torch.float64)
        example = torch.cat([slots[name] for name in ("before", "y", "seen")])
        yield MoveLayer(slots, example, torch.cat([slots[n] for n in ("u", "t", "here")]), token)
        yield [
            MultiplyLayer(slots, "w", "u", "e", torch.ones(1, self.dim)),
            AffineLayer(slots, "t", "e", -1.0),
        ]
        step = [
            MultiplyLayer(slots, "e", "u", "w", -2 * self.lr * eye),
            self._clear("u", "t", "e", "here"),
        ]
        if self.weight_decay:  # decays only where there is an example
            shrink = -2 * self.lr * self.weight_decay * eye
            step.append(MultiplyLayer(slots, "here", "w", "w", shrink))
        yield step


class RidgeTransformer(_ConstructedTransformer):
    """A transformer that does ridge regression on its context, exactly.

    w = (XᵀX + λI)⁻¹ Xᵀy by one Sherman–Morrison update an example, A₀ = λI,

        A⁻¹ ← A⁻¹ − v (v r)ᵀ,  v = A⁻¹u,  r = 1/(1 + uᵀv),  b ← b + y u,  w = A⁻¹b,

    and the prediction at every x-token is that of w after the examples before it: one causal
    network is `online_ridge` at every position. 6 layers an example and 3 around them, of width
    O(dim²) beside positions. In one block of six: attention loads the example; MLPs make v and y u,
    then uᵀv; LayerNorm divides; MLPs make v r, and the update.

    Args:
        dim: number of entries of x.
        num_examples: the longest context; a query may follow it.
        alpha: λ, positive.

    Attributes:
        program: the layers, by name "0", "1", …; every weight is a parameter.
        slots: names of the coordinates of the stream between them.

    Raises:
        ValueError: alpha is not positive, dim or num_examples is not a positive integer.

    Source: arXiv 2211.15661, Theorem 2; these weights are ours.

    >>> model = RidgeTransformer(dim=1, num_examples=2, alpha=1.0)
    >>> model(torch.tensor([[[0.0, 1.0], [8.0, 0.0], [0.0, 1.0]]])).round(decimals=6).tolist()
    [[0.0, 4.0]]
    """

    def __init__(self, dim: int, num_examples: int, alpha: float) -> None:
        check_counts(dim=dim, num_examples=num_examples)
        if not (alpha > 0 and isfinite(alpha)):
            raise ValueError(f"alpha must be positive and finite, got {alpha}")
        self.alpha = alpha
        super().__init__(
            dim, num_examples, inverse=dim * dim, b=dim, v=dim, yu=dim, s=1, r=1, vr=dim
        )
        self.start[:, self.slots["inverse"][:: dim + 1]] = 1 / alpha

    def _update(self, token: int) -> Iterator[Op]:
        slots, d = self.slots, self.dim
        example = torch.cat([slots["before"], slots["y"]])
        yield MoveLayer(slots, example, torch.cat([slots["u"], slots["t"]]), token)
        yield [self._inverse_times("u", "v"), MultiplyLayer(slots, "t", "u", "yu")]
        yield MultiplyLayer(slots, "u", "v", "s", torch.ones(1, d))
        yield ReciprocalLayer(slots, "s", "r", shift=1.0)
        # v (v r)ᵀ and not (v vᵀ) r: products of numbers of unequal size lose digits
        yield MultiplyLayer(slots, "r", "v", "vr")
        columns = slots["vr"].repeat(d)
        yield [
            MultiplyLayer(
                slots, slots["v"].repeat_interleave(d), columns, "inverse", -torch.eye(d * d)
            ),
            AffineLayer(slots, "yu", "b"),
            self._clear("u", "t", "v", "yu", "s", "r", "vr"),
        ]

    def _finish(self) -> Iterator[Op]:
        yield self._inverse_times("b", "w")

    def _inverse_times(self, vector: str, write: str) -> MultiplyLayer:
        """write += A⁻¹ vector, in d² products."""
        slots, d = self.slots, self.dim
        sums = torch.eye(d).repeat_interleave(d, dim=1)
        return MultiplyLayer(slots, "inverse", slots[vector].repeat(d), write, sums)
