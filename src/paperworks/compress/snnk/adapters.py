"""A pretrained transformer with few trainable numbers: adapters, and uptrained layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.common.surgery import replace_modules
from paperworks.compress.snnk.features import ArcCosineFeatures
from paperworks.compress.snnk.layers import SNNKLinear, check_positive, start

PROJECTIONS = ("output.dense", "attention.o_proj", "mlp.fc2")
"""Ends of the names of what attention and feed-forward end in: BERT and its kin, ViT."""

FEED_FORWARD = {
    "intermediate.dense": "intermediate.intermediate_act_fn",
    "mlp.fc1": "mlp.activation_fn",
}
"""Ends of the names of the first feed-forward matrix and of its activation."""


class SNNKAdapter(nn.Module):
    """A residual layer on random features that starts as the identity.

        `y = x + v * Ψ φ(x)`,  `φ(x) = m^{-1/2} max(G x, c)`,  Ψ (dim, m),  v = 0 at the start

    For a frozen network of width `dim`: `dim * (m + 1)` trainable numbers, where a bottleneck
    adapter has `2 dim` for each unit of its bottleneck. Ψ starts as φ of a Kaiming-uniform matrix
    (a = 5^(1/2)). With `down` it is Ψ (down, m) and a linear layer (dim, down) that starts at 0.

    Args:
        dim: width of the network.
        m: number of random features.
        down: width between Ψ and the output; None for the gated form.
        floor, normalize, orthogonal: see `ArcCosineFeatures`.
        generator: draws G and Ψ; torch's default generator if None.

    Shapes: input and output (..., dim).

    Raises:
        ValueError: a size is not positive, or as `ArcCosineFeatures` says.

    Source: arXiv 2310.13225, section on adapters.

    >>> adapter = SNNKAdapter(768, m=16)
    >>> x = torch.randn(2, 5, 768)
    >>> torch.equal(adapter(x), x), sum(p.numel() for p in adapter.parameters())
    (True, 13056)
    """

    def __init__(
        self,
        dim: int,
        m: int = 16,
        down: int | None = None,
        *,
        floor: float = 0.0,
        normalize: float | None = None,
        orthogonal: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        check_positive("dim", dim)
        if down is not None:
            check_positive("down", down)
        super().__init__()
        self.features = ArcCosineFeatures(
            dim, m, floor=floor, normalize=normalize, orthogonal=orthogonal, generator=generator
        )
        W = nn.init.kaiming_uniform_(
            torch.empty(down or dim, dim), a=math.sqrt(5), generator=generator
        )
        self.Psi = nn.Parameter(start(self.features, W, None))
        self.out = Gate(dim) if down is None else zero_(nn.Linear(down, dim))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(F.linear(self.features(x), self.Psi))


class Gate(nn.Module):
    """`v * x`, zero at the start."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.v * x


class HoulsbyAdapter(nn.Module):
    """A residual bottleneck that starts as the identity: the usual adapter.

        `y = x + U gelu(V x + a) + b`,  V (bottleneck, dim), U (dim, bottleneck), U = b = 0 at first

    `dim (2 bottleneck + 1) + bottleneck` trainable numbers; the baseline of `SNNKAdapter`.

    Args:
        dim: width of the network.
        bottleneck: width inside.

    Shapes: input and output (..., dim).

    Raises:
        ValueError: a size is not positive.

    Source: Houlsby et al. 2019, arXiv 1902.00751; they start near the identity, here it is exact.

    >>> sum(p.numel() for p in HoulsbyAdapter(768, 48).parameters())
    74544
    """

    def __init__(self, dim: int, bottleneck: int) -> None:
        check_positive("dim", dim)
        check_positive("bottleneck", bottleneck)
        super().__init__()
        self.V = nn.Linear(dim, bottleneck)
        self.U = zero_(nn.Linear(bottleneck, dim))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.U(F.gelu(self.V(x)))


def add_adapters(
    model: nn.Module,
    m: int = 16,
    *,
    adapter: Callable[[int, int], nn.Module] = SNNKAdapter,
    after: Sequence[str] = PROJECTIONS,
) -> nn.Module:
    """A copy of a transformer whose only trainable parameters are adapters behind its projections.

    One goes after the attention output and one after the feed-forward output of every layer, before
    the residual sum and the layer norm. The copy computes what the model does until it is trained.
    Put your head on it after this, so that it stays trainable.

    Args:
        model: a `transformers` model such as BERT, RoBERTa, ELECTRA or ViT, or any other with
            `after` given. It is not changed.
        m: size of an adapter, its second argument.
        adapter: `adapter(dim, m)`, such as `SNNKAdapter` or `HoulsbyAdapter`.
        after: the linear layers whose names end so get one.

    Returns:
        The copy. An adapted layer is a `nn.Sequential` of the old one and its adapter.

    Raises:
        ValueError: no linear layer's name ends so; m is not positive.

    Source: arXiv 2310.13225, section on adapters; places as in arXiv 1902.00751.

    >>> from transformers import BertConfig, BertModel
    >>> config = BertConfig(
    ...     hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    ... )
    >>> adapted = add_adapters(BertModel(config), m=8)
    >>> sum(p.numel() for p in adapted.parameters() if p.requires_grad)  # 4 * 32 * (8 + 1)
    1152
    """
    check_positive("m", m)

    def adapted(name: str, linear: Any) -> nn.Module:
        return nn.Sequential(linear, adapter(linear.out_features, m).to(linear.weight))

    changed, report = replace_modules(model, _linear_at(model, "after", after), adapted)
    changed.requires_grad_(False)
    for pair in report.replaced.values():
        pair[1].requires_grad_(True)  # type: ignore[index]
    return changed


def uptrain(model: nn.Module, layers: int, m: int = 8, **options: Any) -> nn.Module:
    """A copy of a transformer whose top layers begin their feed-forward part on random features.

    The first feed-forward matrix and its activation become one `SNNKLinear`, which starts from that
    matrix; then fine-tune the copy. Everything keeps `requires_grad`, the new Ψ is trainable.

    Args:
        model: a `transformers` model such as BERT, RoBERTa, ELECTRA or ViT. It is not changed.
        layers: how many of the top layers.
        m: number of random features, 8 in the official scripts.
        **options: of `SNNKLinear.from_linear`.

    Raises:
        ValueError: layers is not positive or more than the model has, or no layer is known.

    Source: arXiv 2310.13225, section on uptraining. The official script draws another G for Ψ than
    the layer has; here it is one.

    >>> from transformers import BertConfig, BertModel
    >>> config = BertConfig(
    ...     hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    ... )
    >>> bert = uptrain(BertModel(config), layers=1, m=8)
    >>> bert.encoder.layer[1].intermediate.dense.Psi.shape
    torch.Size([64, 8])
    """
    check_positive("layers", layers)
    found = _linear_at(model, "model", tuple(FEED_FORWARD))
    names = [name for name, module in model.named_modules() if found(name, module)]
    if layers > len(names):
        raise ValueError(f"layers must be at most {len(names)}, the model's, got {layers}")
    top = set(names[-layers:])
    ends = {name: next(end for end in FEED_FORWARD if name.endswith(end)) for name in top}
    activations = {name.removesuffix(end) + FEED_FORWARD[end] for name, end in ends.items()}

    def made(name: str, old: Any) -> nn.Module:
        if name in activations:
            return nn.Identity()
        return SNNKLinear.from_linear(old, m, **options)

    return replace_modules(model, lambda name, _: name in top | activations, made)[0]


def zero_(linear: nn.Linear) -> nn.Linear:
    for parameter in linear.parameters():
        nn.init.zeros_(parameter)
    return linear


def _linear_at(
    model: nn.Module, argument: str, ends: Sequence[str]
) -> Callable[[str, nn.Module], bool]:
    """Whether a module is linear and its name ends so, at a dot."""

    def match(name: str, module: nn.Module) -> bool:
        at = any(f".{name}".endswith(f".{end}") for end in ends)
        return isinstance(module, nn.Linear) and at

    if isinstance(ends, str) or not any(match(*named) for named in model.named_modules()):
        raise ValueError(
            f"{argument}: no linear layer's name ends in one of {ends}, see model.named_modules()"
        )
    return match
