"""Codebooks and mappings of one weight that can be learned together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from paperworks.compress.blocks import checked_weight
from paperworks.compress.jlcm.clustering import (
    Method,
    Mode,
    check_groups,
    deviations,
    group_neurons,
    kmeans1d,
)

MappingGradient = Literal["proximal", "softmax", "frozen"]
Proximity = Callable[[Tensor, Tensor], Tensor]
"""Of the distance between two codewords and the mean gap; see `inverse_proximity`."""
SMALLEST_GAP = 1e-12
"""Keeps a codebook of one value from a temperature of zero."""


def inverse_proximity(d: Tensor, D: Tensor) -> Tensor:
    """`D^2 / max(d, D/10)`: how strongly a codeword at distance d draws a weight.

    Args:
        d: distances, not negative.
        D: mean gap between neighbouring codewords; broadcasts with d.

    That the factor falls with the distance is the paper's; this function is ours. Yvinec, Dapogny,
    Bailly 2023, arXiv 2309.17361.

    >>> inverse_proximity(torch.tensor([0.01, 1.0, 2.0]), torch.tensor(1.0))
    tensor([10.0000,  1.0000,  0.5000])
    """
    return D.square() / torch.maximum(d, D / 10)


def exponential_proximity(d: Tensor, D: Tensor) -> Tensor:
    """`D exp(-d / D)`, the alternative to `inverse_proximity`; ours, too.

    >>> exponential_proximity(torch.tensor([0.0, 1.0, 2.0]), torch.tensor(1.0))
    tensor([1.0000, 0.3679, 0.1353])
    """
    return D * torch.exp(-d / D)


@dataclass(frozen=True, eq=False)
class CodebookWeight:
    """A weight as look-up tables and indices: `s_g * C_g[I]`, g the group of the row.

    Args:
        codebooks: C, shape (G, K), each ascending; shape (1, K) if all groups share one.
        indices: I, uint8, shape (out, ...) of the weight.
        labels: g of each row, int64, shape (out,).
        scales: s, shape (G,); None for 1.

    >>> weight = CodebookWeight(
    ...     torch.tensor([[-1.0, 1.0], [0.0, 5.0]]),
    ...     torch.tensor([[0, 1], [1, 0]], dtype=torch.uint8),
    ...     torch.tensor([0, 1]),
    ... )
    >>> weight.dequantize()
    tensor([[-1.,  1.],
            [ 5.,  0.]])
    """

    codebooks: Tensor
    indices: Tensor
    labels: Tensor
    scales: Tensor | None = None

    def dequantize(self) -> Tensor:
        """The weight in the codebooks' dtype."""
        return look_up(self.codebooks, self.indices, self.labels, self.scales)

    def to(self, dtype: torch.dtype) -> CodebookWeight:
        """The same with codebooks and scales of another dtype."""
        scales = None if self.scales is None else self.scales.to(dtype)
        return CodebookWeight(self.codebooks.to(dtype), self.indices, self.labels, scales)


def look_up(codebooks: Tensor, indices: Tensor, labels: Tensor, scales: Tensor | None) -> Tensor:
    """`s_g * C_g[I]`, differentiable in codebooks and scales."""
    table = effective_codebooks(codebooks, scales)
    first = (labels * table.shape[1]).int().view(-1, *[1] * (indices.dim() - 1))
    places = first + indices  # int32: half the memory of what indexing usually takes
    return table.flatten().index_select(0, places.flatten()).view(indices.shape)


def effective_codebooks(codebooks: Tensor, scales: Tensor | None) -> Tensor:
    """What the groups look up, shape (G, K)."""
    return codebooks if scales is None else scales[:, None] * codebooks


class LearnableCodebook(nn.Module):
    """A weight that is looked up in codebooks, both codebooks and look-ups learned.

    For weights of few bits without a uniform grid; `learn_codebooks` trains it over a whole
    network. A parametrisation for `torch.nn.utils.parametrize.register_parametrization(layer,
    "weight", ...)`: forward gives `w_hat = c_I` of the nearest shape and dtype, hard in every mode.

    It starts at k-means of each group of rows. The mapping is relaxed to logits Z with
    `p = softmax(Z)` and `I = argmax Z`, from `Z_k = -(w - c_k)^2 / D^2`. Codewords get the sum of
    the gradients of their weights. The logits get

        `dw_hat/dZ_k = p_k (c_k - w_hat)`                          "softmax",
        `dw_hat/dZ_k = p_k sign(c_k - w_hat) f(|c_k - w_hat|, D)`  "proximal",

    f falling with the distance, so that a weight looks at the codewords near its own first. With
    such estimators a weight between two codewords may go to and fro: keep the best of what was
    seen, as `learn_codebooks` does.

    Args:
        weight: shape (out, ...), any floating dtype.
        bits: b, 1 to 8; a codebook has K = 2^b codewords.
        groups: G, a number of groups for `group_neurons`, or labels in [0, G), shape (out,).
        mode: "codebook": each group has a codebook; "scale": one codebook, each group a scale.
        mapping_grad: "proximal", "softmax", or "frozen": indices stay those of the start.
        proximity: f.
        candidates: how many codewords around the first one a weight may move to; all by default.
            Training takes 16 bytes for each.
        kmeans: how the start is found, see `kmeans1d`.
        generator: for clusterings; a fresh one with seed 0 by default.

    Attributes:
        codebooks: parameter, (G, K), or (1, K) with scales.
        scales: parameter (G,), or None.
        logits: parameter Z, (candidates, out, in), or None if frozen.
        start: uint8, the indices of the start, (out, in).

    Raises:
        ValueError: bits outside [1, 8], groups that exceed the neurons or labels of another shape,
            a weight that is empty or not finite, an unknown mode, candidates outside [2, K].
        TypeError: the weight is not floating point.

    Yvinec, Dapogny, Bailly 2023, arXiv 2309.17361. That the factor of the proximal gradient falls
    with the distance of the codewords is the paper's; start, temperature, the hard forward and f
    are ours: its equations were not available.

    >>> layer = nn.Linear(16, 8)
    >>> codebook = LearnableCodebook(layer.weight, bits=2, groups=2)
    >>> nn.utils.parametrize.register_parametrization(layer, "weight", codebook)
    ParametrizedLinear(...)
    >>> layer.weight.unique().numel()
    8
    """

    logits: nn.Parameter | None
    scales: nn.Parameter | None
    labels: Tensor
    start: Tensor
    first: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        bits: int,
        groups: int | Tensor = 1,
        *,
        mode: Mode = "codebook",
        mapping_grad: MappingGradient = "proximal",
        proximity: Proximity = inverse_proximity,
        candidates: int | None = None,
        kmeans: Method = "exact",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_bits(bits)
        if mapping_grad not in ("proximal", "softmax", "frozen"):
            raise ValueError(
                f"mapping_grad must be 'proximal', 'softmax' or 'frozen', got {mapping_grad!r}"
            )
        if candidates is not None and not 2 <= candidates <= 2**bits:
            raise ValueError(f"candidates must be in [2, {2**bits}], got {candidates!r}")
        rows = checked_weight(weight, per_channel=True).reshape(len(weight), -1)
        labels = _checked_labels(rows, groups, mode, generator)
        self.bits = bits
        self.proximity = proximity if mapping_grad == "proximal" else None
        codebooks, start, scales = _start(rows, labels, 2**bits, mode, kmeans, generator)
        self.codebooks = nn.Parameter(codebooks)
        self.scales = None if scales is None else nn.Parameter(scales)
        self.register_buffer("labels", labels)
        self.register_buffer("start", start)
        self.register_buffer("first", None)
        self.logits = None
        if mapping_grad != "frozen":
            candidates = candidates or 2**bits
            if candidates < 2**bits:
                low = start.int() - candidates // 2
                self.first = low.clamp(0, 2**bits - candidates).to(torch.uint8)
            self.logits = nn.Parameter(self._first_logits(rows, candidates))

    def forward(self, weight: Tensor) -> Tensor:
        table = effective_codebooks(self.codebooks, self.scales)
        if self.logits is None:
            w_hat = look_up(table, self.start, self.labels, None)
        else:
            w_hat = _Choice.apply(table, self.logits, self.labels, self.first, self.proximity)
        return w_hat.view(weight.shape).to(weight.dtype)

    @torch.no_grad()
    def indices(self) -> Tensor:
        """I, uint8, shape (out, in): positions in `codebooks` as they are, sorted or not."""
        if self.logits is None:
            return self.start.clone()
        chosen = _argmax(self.logits)
        return chosen if self.first is None else chosen + self.first

    @torch.no_grad()
    def settled(self, shape: torch.Size | None = None) -> CodebookWeight:
        """What the weight is now: codebooks in ascending order, and the indices to them.

        Args:
            shape: the weight's, for convolutions; (out, in) by default.
        """
        codebooks, order = self.codebooks.detach().sort(1)
        groups = self.labels if self.scales is None else torch.zeros_like(self.labels)
        rank = order.argsort(1).to(torch.uint8)
        indices = rank[groups].gather(1, self.indices().long())
        scales = None if self.scales is None else self.scales.detach().clone()
        return CodebookWeight(
            codebooks, indices.view(shape or indices.shape), self.labels.clone(), scales
        )

    def extra_repr(self) -> str:
        groups, k = effective_codebooks(self.codebooks, self.scales).shape
        return f"bits={self.bits}, groups={groups}, codewords={k}"

    @torch.no_grad()
    def _first_logits(self, rows: Tensor, candidates: int) -> Tensor:
        table = effective_codebooks(self.codebooks, self.scales)
        codewords = _candidates(table, self.labels, self.first, candidates)
        D = _mean_gap(table)[self.labels][:, None]
        return -((rows - codewords) / D).square()


class _Choice(torch.autograd.Function):
    """Each weight's chosen codeword; backwards the chosen kind of gradient for the logits.

    Candidates come first, (C, out, in): maxima and sums over them then run along whole planes.
    """

    @staticmethod
    def forward(
        ctx: Any,
        table: Tensor,
        logits: Tensor,
        labels: Tensor,
        first: Tensor | None,
        proximity: Proximity | None,
    ) -> Tensor:
        place = _first_places(table, labels, first) + _argmax(logits)
        w_hat = table.flatten()[place]
        ctx.save_for_backward(table, logits, labels, first, place, w_hat)
        ctx.proximity = proximity
        return w_hat

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        table, logits, labels, first, place, w_hat = ctx.saved_tensors
        by_table = by_logits = None
        if ctx.needs_input_grad[0]:
            by_table = torch.zeros_like(table.flatten())
            by_table.index_add_(0, place.flatten(), gradient.flatten())
            by_table = by_table.view_as(table)
        if ctx.needs_input_grad[1]:
            pull = _candidates(table, labels, first, len(logits)) - w_hat
            if ctx.proximity is not None:
                D = _mean_gap(table)[labels][:, None]
                pull = pull.sign() * ctx.proximity(pull.abs(), D)
            by_logits = logits.softmax(0).mul_(pull).mul_(gradient)
        return by_table, by_logits, None, None, None


def _first_places(table: Tensor, labels: Tensor, first: Tensor | None) -> Tensor:
    """Where each weight's first candidate is in the flat table: (out, in), or (out, 1)."""
    begin = labels[:, None] * table.shape[1]
    return begin if first is None else begin + first


def _candidates(table: Tensor, labels: Tensor, first: Tensor | None, count: int) -> Tensor:
    """The codewords that each weight may take: (count, out, in), or (count, out, 1)."""
    steps = torch.arange(count, device=table.device)[:, None, None]
    return table.flatten()[_first_places(table, labels, first) + steps]


def _argmax(logits: Tensor) -> Tensor:
    """uint8, the first of equals; a tenth of the time that `argmax` over the first axis takes."""
    last = len(logits) - 1
    steps = torch.arange(last, -1, -1, dtype=torch.uint8, device=logits.device)[:, None, None]
    return last - torch.where(logits == logits.amax(0), steps, 0).amax(0)


def _mean_gap(table: Tensor) -> Tensor:
    """D of each codebook: neighbours' mean gap, which is the range over K - 1, sorted or not."""
    gap = (table.amax(1) - table.amin(1)) / (table.shape[1] - 1)
    return gap.clamp_min(SMALLEST_GAP)


def _start(
    rows: Tensor,
    labels: Tensor,
    k: int,
    mode: Mode,
    kmeans: Method,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codebooks, indices and scales of k-means."""
    indices = torch.zeros_like(rows, dtype=torch.uint8)
    groups = int(labels.max()) + 1
    if mode == "scale":
        counts = labels.bincount().clamp_min(1)
        scales = rows.new_zeros(groups).index_add(0, labels, deviations(rows)) / counts
        scales = scales.clamp_min(SMALLEST_GAP)
        s = scales[labels][:, None].expand_as(rows)
        codewords, found = kmeans1d(rows / s, k, kmeans, weights=s.square(), generator=generator)
        return codewords[None], found.to(torch.uint8), scales
    codebooks = rows.new_zeros(groups, k)
    for g in labels.unique().tolist():
        member = labels == g
        codebooks[g], found = kmeans1d(rows[member], k, kmeans, generator=generator)
        indices[member] = found.to(torch.uint8)
    return codebooks, indices, None


def _checked_labels(
    rows: Tensor, groups: int | Tensor, mode: Mode, generator: torch.Generator | None
) -> Tensor:
    if not isinstance(groups, Tensor):
        return group_neurons(rows, groups, mode, generator=generator)
    if mode not in ("codebook", "scale"):
        raise ValueError(f"mode must be 'codebook' or 'scale', got {mode!r}")
    if groups.shape != (len(rows),) or groups.is_floating_point() or groups.min() < 0:
        raise ValueError(
            f"groups must be a number, or labels >= 0 of shape ({len(rows)},), got "
            f"{groups.dtype} of shape {tuple(groups.shape)}"
        )
    check_groups(int(groups.max()) + 1, len(rows))
    return groups.to(rows.device, torch.long)


def check_bits(bits: int) -> None:
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
        raise ValueError(f"bits must be in [1, 8], got {bits!r}")
