"""Multi-head attention of which only the first heads may be active."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.compress.sortednet.layers import Sorted


class Projections(NamedTuple):
    """What some heads compute with; those of queries, keys and values are one below the other."""

    in_weight: Tensor
    in_bias: Tensor | None
    out_weight: Tensor
    out_bias: Tensor | None


class SortedMultiheadAttention(Sorted, nn.MultiheadAttention):
    """Multi-head attention whose first h heads are active.

    The rows of W_q, W_k, W_v and the columns of the output projection that belong to these heads;
    softmax keeps its temperature `head_dim^{-1/2}`, the output its width.

    Arguments are those of `torch.nn.MultiheadAttention`, without `kdim`, `vdim`, `add_bias_kv` and
    `add_zero_attn`.

    Attributes:
        active_heads: h, all heads at first.

    Raises:
        ValueError: one of the arguments that are left out.

    Source: arXiv 2309.00255, section on sorted architectures.

    >>> attention = SortedMultiheadAttention(12, 4, batch_first=True)
    >>> attention.active_heads = 2
    >>> x = torch.rand(1, 5, 12)
    >>> y, weights = attention(x, x, x, average_attn_weights=False)
    >>> y.shape, weights.shape
    (torch.Size([1, 5, 12]), torch.Size([1, 2, 5, 5]))
    """

    plain = nn.MultiheadAttention

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activate_all()

    def activate_all(self) -> None:
        check_attention(self)
        self.active_heads = self.num_heads

    @property
    def active_heads(self) -> int:
        return self._active_heads

    @active_heads.setter
    def active_heads(self, heads: int) -> None:
        self._active_heads = heads
        # a TransformerEncoderLayer reads this, and else takes all weights to a kernel of its own
        self._qkv_same_embed_dim = heads == self.num_heads

    def active(self) -> dict[str, Tensor | None]:
        h, d = self.active_heads, self.head_dim
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if h < self.num_heads:  # of each third the first rows
            weight = weight.unflatten(0, (3, -1))[:, : h * d].flatten(0, 1)
            bias = None if bias is None else bias.unflatten(0, (3, -1))[:, : h * d].flatten()
        return {"in_proj_weight": weight, "in_proj_bias": bias}

    def active_numbers(self) -> int:
        """How many numbers the active heads have, output projection included."""
        return sum(p.numel() for p in self.projections() if p is not None)

    def projections(self) -> Projections:
        """Those of the active heads."""
        columns = self.out_proj.weight[:, : self.active_heads * self.head_dim]
        views: Any = self.active()
        return Projections(
            views["in_proj_weight"], views["in_proj_bias"], columns, self.out_proj.bias
        )

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Any:  # type: ignore[override]
        if self.active_heads == self.num_heads:
            return super().forward(query, key, value, **options)
        return attend(self, self.projections(), (query, key, value), self.num_heads, **options)

    def narrowed(self) -> nn.Module:
        return self._copied() if self.active_heads == self.num_heads else FewerHeads(self)


class FewerHeads(nn.Module):
    """Attention whose heads together are narrower than its inputs; called like torch's."""

    def __init__(self, attention: SortedMultiheadAttention) -> None:
        super().__init__()
        trained = attention.in_proj_weight.requires_grad
        for name, tensor in attention.projections()._asdict().items():
            copied = None if tensor is None else nn.Parameter(tensor.detach().clone(), trained)
            self.register_parameter(name.replace("_", "_proj_"), copied)
        self.num_heads, self.head_dim = attention.active_heads, attention.head_dim
        self.masked_heads = attention.num_heads
        self.dropout, self.batch_first = attention.dropout, attention.batch_first
        self._qkv_same_embed_dim = False

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Any:
        own = Projections(*self._parameters.values())  # type: ignore[arg-type]
        return attend(self, own, (query, key, value), self.masked_heads, **options)


def check_attention(attention: nn.MultiheadAttention) -> None:
    if attention.in_proj_weight is None or attention.bias_k is not None or attention.add_zero_attn:
        raise ValueError("attention with kdim, vdim, add_bias_kv or add_zero_attn cannot be sorted")


def attend(
    module: Any,
    own: Projections,
    inputs: tuple[Tensor, Tensor, Tensor],
    masked_heads: int,
    *,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """What `torch.nn.MultiheadAttention` computes, for the heads that the projections are of.

    Masks a head are given for `masked_heads` heads. As in torch, `is_causal` is a hint beside a
    mask, and no mask itself.
    """
    single = inputs[0].dim() == 2
    if single:
        inputs = tuple(x.unsqueeze(0) for x in inputs)  # type: ignore[assignment]
    elif not module.batch_first:
        inputs = tuple(x.transpose(0, 1) for x in inputs)  # type: ignore[assignment]
    weights_in = own.in_weight.chunk(3)
    biases = (None, None, None) if own.in_bias is None else own.in_bias.chunk(3)
    q, k, v = (
        F.linear(x, W, b).unflatten(-1, (-1, module.head_dim)).transpose(1, 2)
        for x, W, b in zip(inputs, weights_in, biases)
    )
    mask = _mask(attn_mask, key_padding_mask, masked_heads, q)
    dropout = module.dropout if module.training else 0.0
    weights = None
    if need_weights:
        scores = q @ k.transpose(-2, -1) * module.head_dim**-0.5
        weights = (scores if mask is None else scores + mask).softmax(-1)
        attended = F.dropout(weights, dropout, dropout > 0) @ v
        weights = weights.mean(1) if average_attn_weights else weights
    else:
        attended = F.scaled_dot_product_attention(q, k, v, mask, dropout)
    y = F.linear(attended.transpose(1, 2).flatten(2), own.out_weight, own.out_bias)
    if single:
        return y.squeeze(0), None if weights is None else weights.squeeze(0)
    return (y if module.batch_first else y.transpose(0, 1)), weights


def _mask(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, masked_heads: int, q: Tensor
) -> Tensor | None:
    """Both masks as numbers to add to scores (N, heads, L, S), of a mask a head the first."""
    parts = []
    if attn_mask is not None:
        if attn_mask.dim() == 3:
            attn_mask = attn_mask.unflatten(0, (-1, masked_heads))[:, : q.shape[1]]
        parts.append(_added(attn_mask, q))
    if key_padding_mask is not None:
        parts.append(_added(key_padding_mask.reshape(-1, 1, 1, key_padding_mask.shape[-1]), q))
    return sum(parts[1:], parts[0]) if parts else None


def _added(mask: Tensor, q: Tensor) -> Tensor:
    """True is left out, as in torch's."""
    if mask.dtype != torch.bool:
        return mask.to(q.dtype)
    return torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, -torch.inf)
