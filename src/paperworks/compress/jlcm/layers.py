"""Linear layers and convolutions whose weights are kept as look-up tables and packed indices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from paperworks.common.surgery import replace_modules
from paperworks.compress.jlcm.clustering import Method, Mode
from paperworks.compress.jlcm.learning import CodebookWeight, LearnableCodebook, look_up
from paperworks.compress.storage import pack_bits, unpack_bits

Padding = int | tuple[int, ...] | str
Sizes = int | tuple[int, ...]


class _CodebookLayer(nn.Module):
    """What a layer keeps instead of its weight, and how the weight comes out of it.

    Rows are stored group after group, and row i of the weight is row `permutation[i]` of the store.
    The weight is made in every forward and not kept.

    Args:
        codebooks: C, floating point, shape (G, K), or (1, K) with scales; K a power of two, 2 to
            256.
        indices: I, uint8, the shape of the weight, in the order of the store.
        boundaries: where groups 1, 2, ... of the store begin, int32, shape (G - 1,), ascending.
        scales: one for each group, shape (G,), or None.
        bias: shape (out,), or None.
        permutation: int64, shape (out,): where each row of the weight is in the store; None where
            the rows are in their order.

    Raises:
        ValueError: tensors of other shapes, indices beyond the codebook, boundaries that do not
            ascend, a permutation that is none.
    """

    stored_as: ClassVar[dict[str, str]] = {
        "indices": "indices",
        "codebooks": "codebooks",
        "scales": "codebooks",
        "boundaries": "permutations",
        "permutation": "permutations",
    }
    indices: Tensor
    boundaries: Tensor
    permutation: Tensor | None
    scales: nn.Parameter | None
    bias: nn.Parameter | None
    DIMENSIONS: ClassVar[int]

    def __init__(
        self,
        codebooks: Tensor,
        indices: Tensor,
        boundaries: Tensor,
        scales: Tensor | None = None,
        bias: Tensor | None = None,
        permutation: Tensor | None = None,
    ) -> None:
        super().__init__()
        _check_parts(codebooks, indices, boundaries, scales, bias, permutation, self.DIMENSIONS)
        self.weight_shape = tuple(indices.shape)
        self.codebooks = nn.Parameter(codebooks.detach().clone())
        self.scales = None if scales is None else nn.Parameter(scales.detach().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.register_buffer("indices", torch.empty(0, dtype=torch.uint8))
        self.register_buffer("boundaries", boundaries.to(codebooks.device, torch.int32))
        packed = None if permutation is None else _pack_order(permutation)
        self.register_buffer("permutation", packed)
        self.pack(indices)

    @classmethod
    def from_dense(
        cls,
        layer: Any,
        bits: int,
        groups: int | Tensor = 1,
        *,
        mode: Mode = "codebook",
        kmeans: Method = "exact",
        codebook_dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> Self:
        """The layer with a weight of k-means codewords: no inputs are needed, nothing is learned.

        Args:
            layer: an `nn` layer of the same kind; it is not changed.
            bits, groups, mode, kmeans, generator: see `LearnableCodebook`. Rows that do not lie
                group after group cost a stored permutation; `permute_neurons` spares it.
            codebook_dtype: what codebooks and scales are kept in, the weight's dtype by default.

        Raises:
            TypeError: a layer of another kind.
            ValueError: see `LearnableCodebook`.
        """
        _check_kind(cls, layer)
        learnable = LearnableCodebook(
            layer.weight,
            bits,
            groups,
            mode=mode,
            mapping_grad="frozen",
            kmeans=kmeans,
            generator=generator,
        )
        weight = learnable.settled(layer.weight.shape)
        return cls.from_codebooks(layer, weight.to(codebook_dtype or layer.weight.dtype))

    @classmethod
    def from_codebooks(cls, layer: Any, weight: CodebookWeight) -> Self:
        """The layer with this weight in place of its own; `weight` may have been learned.

        Raises:
            TypeError: a layer of another kind.
            ValueError: a weight of another shape.
        """
        _check_kind(cls, layer)
        if weight.indices.shape != layer.weight.shape:
            raise ValueError(
                f"weight has shape {tuple(weight.indices.shape)}, the layer's "
                f"{tuple(layer.weight.shape)}"
            )
        order = weight.labels.argsort(stable=True)
        sizes = weight.labels.bincount(minlength=_groups(weight.codebooks, weight.scales))
        sorted_already = bool((weight.labels.diff() >= 0).all())
        return cls(
            weight.codebooks,
            weight.indices[order],
            sizes.cumsum(0)[:-1],
            weight.scales,
            layer.bias,
            None if sorted_already else order.argsort(),
            **cls._settings(layer),
        ).train(layer.training)

    @staticmethod
    def _settings(layer: Any) -> dict[str, Any]:
        """What the constructor asks beside tensors."""
        return {}

    @property
    def index_bits(self) -> int:
        """b, of one index."""
        return self.codebooks.shape[1].bit_length() - 1

    @property
    def weight(self) -> Tensor:
        """The weight, made anew, in the bias's dtype: for code that looks at `layer.weight`."""
        weight = self.dequantize()
        return weight if self.bias is None else weight.to(self.bias.dtype)

    def unpack(self) -> Tensor:
        """I, uint8, in the weight's shape and the order of the store."""
        return unpack_bits(self.indices, self.index_bits, self.weight_shape)

    def pack(self, indices: Tensor) -> None:
        """Keep other indices, as `unpack` gives them.

        Raises:
            ValueError: another shape, or an index beyond the codebook.
        """
        if tuple(indices.shape) != self.weight_shape:
            raise ValueError(
                f"indices must have shape {self.weight_shape}, got {tuple(indices.shape)}"
            )
        self.indices = pack_bits(indices, self.index_bits).to(self.codebooks.device)

    def dequantize(self) -> Tensor:
        """`s_g * C_g[I]` in the codebooks' dtype, differentiable in codebooks and scales."""
        rows = torch.arange(self.weight_shape[0], dtype=torch.int32, device=self.boundaries.device)
        labels = torch.bucketize(rows, self.boundaries, right=True)
        stored = look_up(self.codebooks, self.unpack(), labels, self.scales)
        if self.permutation is None:
            return stored
        return stored[_unpack_order(self.permutation, len(rows))]

    def bits(self) -> dict[str, int]:
        """Bits of the stored weight by kind, and their sum "total"; the bias is not among them.

        `b |W|` of indices; of codebooks and scales as many as their dtype has; 32 a boundary and
        `ceil(log2(out)) out` of a stored permutation under "permutations".
        """
        out, k = self.weight_shape[0], self.index_bits
        tables = self.codebooks.numel() + (0 if self.scales is None else self.scales.numel())
        stored = 0 if self.permutation is None else out * bits_below(out)
        kinds = {
            "indices": k * math.prod(self.weight_shape),
            "codebooks": tables * 8 * self.codebooks.element_size(),
            "permutations": 32 * self.boundaries.numel() + stored,
        }
        return kinds | {"total": sum(kinds.values())}

    def extra_repr(self) -> str:
        groups = len(self.boundaries) + 1
        return f"weight={self.weight_shape}, bits={self.index_bits}, groups={groups}"


class CodebookLinear(_CodebookLayer):
    """A linear layer whose weight is one index a weight and a look-up table a group of rows.

        `y = x W^T + b`,  `W = C_g[I]` or `s_g * C[I]`

    To keep and to load a model in little memory: `b/8` bytes a weight. In plain PyTorch it is
    slower than a dense layer, because the weight is looked up in every forward. It computes in the
    dtype of its input. Codebooks, scales and bias are parameters and can be trained further.
    `from_dense` makes one by k-means, `learn_codebooks` for a whole model.

    Shapes: input (..., in_features), output (..., out_features).

    >>> dense = nn.Linear(64, 32)
    >>> layer = CodebookLinear.from_dense(dense, bits=4, groups=2)
    >>> layer
    CodebookLinear(weight=(32, 64), bits=4, groups=2)
    >>> layer.bits()["indices"], layer.indices.dtype, layer.indices.shape
    (8192, torch.uint8, torch.Size([1024]))
    >>> layer(torch.rand(5, 64)).shape
    torch.Size([5, 32])
    """

    DIMENSIONS = 2

    @property
    def in_features(self) -> int:
        return self.weight_shape[1]

    @property
    def out_features(self) -> int:
        return self.weight_shape[0]

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.dequantize().to(x.dtype), bias)


class _CodebookConv(_CodebookLayer):
    def __init__(
        self,
        codebooks: Tensor,
        indices: Tensor,
        boundaries: Tensor,
        scales: Tensor | None = None,
        bias: Tensor | None = None,
        permutation: Tensor | None = None,
        *,
        stride: Sizes = 1,
        padding: Padding = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__(codebooks, indices, boundaries, scales, bias, permutation)
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.groups = groups
        self.padding_mode = padding_mode

    @staticmethod
    def _settings(layer: Any) -> dict[str, Any]:
        names = ("stride", "padding", "dilation", "groups", "padding_mode")
        return {name: getattr(layer, name) for name in names}

    @property
    def in_channels(self) -> int:
        return self.weight_shape[1] * self.groups

    @property
    def out_channels(self) -> int:
        return self.weight_shape[0]

    @property
    def kernel_size(self) -> tuple[int, ...]:
        return self.weight_shape[2:]

    def forward(self, x: Tensor) -> Tensor:
        weight = self.dequantize().to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._sides(), mode=self.padding_mode), 0
        convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[self.DIMENSIONS - 3]
        return convolve(x, weight, bias, self.stride, padding, self.dilation, self.groups)

    def _sides(self) -> list[int]:
        """What is added before and after each axis, the last axis first, as `F.pad` has it."""
        sides: list[int] = []
        for axis in reversed(range(self.DIMENSIONS - 2)):
            if self.padding == "same":
                total = _at(self.dilation, axis) * (self.kernel_size[axis] - 1)
                sides += [total // 2, total - total // 2]
            else:
                sides += [0 if self.padding == "valid" else _at(self.padding, axis)] * 2
        return sides


class CodebookConv1d(_CodebookConv):
    """`nn.Conv1d` with codebooks; see `CodebookLinear`. Grouped convolutions, too.

    >>> dense = nn.Conv1d(4, 8, 3, groups=2)
    >>> layer = CodebookConv1d.from_dense(dense, bits=3)
    >>> layer(torch.rand(1, 4, 10)).shape
    torch.Size([1, 8, 8])
    """

    DIMENSIONS = 3


class CodebookConv2d(_CodebookConv):
    """`nn.Conv2d` with codebooks; see `CodebookLinear`. Grouped convolutions, too.

    >>> dense = nn.Conv2d(3, 8, 3, padding=1)
    >>> layer = CodebookConv2d.from_dense(dense, bits=3, groups=2)
    >>> layer(torch.rand(1, 3, 5, 5)).shape
    torch.Size([1, 8, 5, 5])
    """

    DIMENSIONS = 4


class CodebookConv3d(_CodebookConv):
    """`nn.Conv3d` with codebooks; see `CodebookLinear`. Grouped convolutions, too.

    >>> dense = nn.Conv3d(2, 4, 3)
    >>> layer = CodebookConv3d.from_dense(dense, bits=3)
    >>> layer(torch.rand(1, 2, 5, 5, 5)).shape
    torch.Size([1, 4, 3, 3, 3])
    """

    DIMENSIONS = 5


KINDS: dict[type[nn.Module], type[_CodebookLayer]] = {
    nn.Linear: CodebookLinear,
    NonDynamicallyQuantizableLinear: CodebookLinear,  # MultiheadAttention's output projection
    nn.Conv1d: CodebookConv1d,
    nn.Conv2d: CodebookConv2d,
    nn.Conv3d: CodebookConv3d,
}
"""What is compressed, by exact type: a subclass may do something else with its weight."""


def load_codebooks(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A compressed model again, from the float model's structure and what was saved of it.

    The counterpart of `save_tensors(compressed.state_dict(), file)`: it puts a codebook layer
    wherever the tensors have one and loads everything, biases and norms included.

    Args:
        model: a model of the structure that was compressed, with any weights; it is not changed.
        tensors: the `state_dict` of the compressed model, from `load_tensors`.

    Returns:
        A new model with the tensors' codebooks, indices and floats.

    Raises:
        ValueError: there is no codebook in the tensors; one of a layer that the model does not
            have or whose shape or kind differs; tensors that are missing, left over, or make no
            sense.

    >>> from paperworks.compress import learn_codebooks
    >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> small = learn_codebooks(model, torch.rand(8, 64), bits=2, steps=0)
    >>> again = load_codebooks(model, small.state_dict())
    >>> x = torch.rand(3, 64)
    >>> torch.equal(again(x), small(x))
    True
    """
    names = [key.removesuffix("codebooks").rstrip(".") for key in tensors if _ends(key)]
    if not names:
        raise ValueError("tensors hold no codebook layer: there is no name that ends in .codebooks")
    modules = dict(model.named_modules(remove_duplicate=False))
    made = {name: _restored(name, modules.get(name), tensors) for name in names}
    rebuilt, _ = replace_modules(model, lambda name, _: name in made, lambda name, _: made[name])
    return _loaded(rebuilt, tensors)


def _ends(key: str) -> bool:
    return key == "codebooks" or key.endswith(".codebooks")


def _restored(name: str, layer: nn.Module | None, tensors: Mapping[str, Tensor]) -> _CodebookLayer:
    """The codebook layer of this name; raises what is wrong with its tensors, and names it."""
    if layer is None or type(layer) not in KINDS:
        kind = "is no layer" if layer is None else f"is a {type(layer).__name__}"
        raise ValueError(f"tensors have codebooks for {name!r}, which {kind} of the model")
    keys = ("codebooks", "indices", "boundaries", "scales", "permutation")
    parts = {key: tensors.get(f"{name}.{key}".strip(".")) for key in keys}
    for key in keys[:3]:
        if parts[key] is None:
            raise ValueError(f"tensors lack {name}.{key}")
    weight: Any = layer.weight
    try:
        _check_codebooks(parts["codebooks"])
        bits = parts["codebooks"].shape[1].bit_length() - 1  # type: ignore[union-attr]
        indices = unpack_bits(parts["indices"], bits, weight.shape)  # type: ignore[arg-type]
        if parts["permutation"] is not None:
            parts["permutation"] = _unpack_order(parts["permutation"], len(weight))
        cls = KINDS[type(layer)]
        bias: Any = layer.bias
        made = cls(**{**parts, "indices": indices, "bias": bias}, **cls._settings(layer))
        return made.to(weight.device)
    except ValueError as error:
        raise ValueError(f"tensors do not fit {name!r}: {error}") from None


def _loaded(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    try:
        missing, unexpected = model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"tensors do not fit the model: {reason}") from None
    if missing or unexpected:
        what = "lack" if missing else "have, but the model does not,"
        raise ValueError(f"tensors {what} {(missing or unexpected)[:4]}")
    return model


# --- checks and small things ----------------------------------------------------------------------


def _check_kind(cls: type[_CodebookLayer], layer: nn.Module) -> None:
    if KINDS.get(type(layer)) is not cls:
        wanted = sorted({kind.__name__ for kind, made in KINDS.items() if made is cls})
        raise TypeError(f"layer must be a {' or '.join(wanted)}, got {type(layer).__name__}")


def _check_codebooks(codebooks: Tensor | None) -> None:
    assert codebooks is not None
    k = codebooks.shape[-1] if codebooks.dim() == 2 else 0
    if not codebooks.is_floating_point() or k not in [2**bits for bits in range(1, 9)]:
        raise ValueError(
            "codebooks must be floating point of shape (G, K), K a power of two from 2 to 256, got "
            f"{codebooks.dtype} of shape {tuple(codebooks.shape)}"
        )


def _check_parts(
    codebooks: Tensor,
    indices: Tensor,
    boundaries: Tensor,
    scales: Tensor | None,
    bias: Tensor | None,
    permutation: Tensor | None,
    dimensions: int,
) -> None:
    _check_codebooks(codebooks)
    if indices.dim() != dimensions or not indices.numel():
        raise ValueError(
            f"indices must have {dimensions} dimensions, got shape {tuple(indices.shape)}"
        )
    out, groups = len(indices), _groups(codebooks, scales)
    if scales is not None and (len(codebooks) != 1 or scales.dim() != 1):
        raise ValueError(
            f"with scales of shape (G,) there is one codebook, got {tuple(scales.shape)} and "
            f"{len(codebooks)}"
        )
    edges = [0, *boundaries.flatten().tolist(), out]
    if boundaries.shape != (groups - 1,) or edges != sorted(edges):
        raise ValueError(
            f"boundaries must be {groups - 1} ascending numbers in [0, {out}], got {edges[1:-1]}"
        )
    if bias is not None and bias.shape != (out,):
        raise ValueError(f"bias must have shape ({out},), got {tuple(bias.shape)}")
    if permutation is not None and permutation.sort()[0].tolist() != list(range(out)):
        raise ValueError(f"permutation must hold each of 0, ..., {out - 1} once")


def _groups(codebooks: Tensor, scales: Tensor | None) -> int:
    return len(codebooks) if scales is None else len(scales)


def bits_below(n: int) -> int:
    """Bits of a number below n: ceil(log2 n)."""
    return (n - 1).bit_length()


def _pack_order(order: Tensor) -> Tensor:
    places = torch.arange(bits_below(len(order)), device=order.device)
    return pack_bits(order[:, None] >> places & 1, 1)


def _unpack_order(packed: Tensor, n: int) -> Tensor:
    places = torch.arange(bits_below(n), device=packed.device)
    return (unpack_bits(packed, 1, (n, bits_below(n))).long() << places).sum(1)


def _at(sizes: Any, axis: int) -> int:
    return sizes if isinstance(sizes, int) else sizes[axis]
