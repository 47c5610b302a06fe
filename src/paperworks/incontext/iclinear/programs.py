"""Transformer layers whose weights are written down, and programs made of them.

A program works on a residual stream with named slots. Each instruction is one decoder layer with a
residual connection and explicit weights: causal softmax attention (`MoveLayer`), an MLP with exact
GELUs (`MultiplyLayer`, `AffineLayer`), or a LayerNorm between two linear maps
(`ReciprocalLayer`). Their matrices are nearly all zeros, so that entries are kept instead of
matrices; `SparseLinear.weight` is the matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Read = str | Sequence[int] | Tensor
"""Where a layer reads or writes: the name of a slot, or coordinates of the stream."""


class Slots:
    """Names for the coordinates of a residual stream.

    The slots `position` (which of the `num_tokens` this is, one-hot; the first is the zero token in
    front) and `one` (constantly 1) come first and are what attention finds tokens by.

    Args:
        num_tokens: the longest sequence, its zero token included.
        **sizes: name and number of coordinates of each slot.

    Attributes:
        width: number of coordinates in all.

    Raises:
        ValueError: a size that is not a positive integer.

    >>> slots = Slots(3, x=2, y=1)
    >>> slots.width, slots["x"].tolist()
    (7, [4, 5])
    """

    def __init__(self, num_tokens: int, **sizes: int) -> None:
        self._index: dict[str, Tensor] = {}
        self.width = 0
        for name, size in {"position": num_tokens, "one": 1, **sizes}.items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"slot {name!r}: its size must be a positive integer, got {size}")
            self._index[name] = torch.arange(self.width, self.width + size)
            self.width += size

    def __getitem__(self, where: Read) -> Tensor:
        """Coordinates of a slot by its name; coordinates are handed back.

        Raises:
            ValueError: there is no such slot, or no such coordinate.
        """
        if isinstance(where, str):
            if where not in self._index:
                raise ValueError(f"no slot {where!r}, only {', '.join(self._index)}")
            return self._index[where]
        index = torch.as_tensor(where, dtype=torch.long).flatten()
        if len(index) and not (int(index.min()) >= 0 and int(index.max()) < self.width):
            raise ValueError(f"coordinates must be in [0, {self.width}), got {index.tolist()}")
        return index

    def start(self, num_tokens: int) -> Tensor:
        """Streams (num_tokens, width) of tokens with nothing in them but `position` and `one`."""
        stream = torch.zeros(num_tokens, self.width, dtype=torch.float64)
        stream[:, self["position"]] = torch.eye(num_tokens, len(self["position"])).double()
        stream[:, self["one"]] = 1
        return stream


class SparseLinear(nn.Module):
    """h → W h + b in float64, with the entries of W that are not zero.

    Args:
        in_features, out_features: the shape of W is (out_features, in_features).
        rows, columns, values: the entries, each of one length; several at one place add up.
        bias: shape (out_features,); zero by default.

    >>> swap = SparseLinear(2, 2, [0, 1], [1, 0], [1.0, 1.0])
    >>> swap(torch.tensor([3.0, 4.0]).double())
    tensor([4., 3.], dtype=torch.float64, grad_fn=...)
    >>> swap.weight.tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """

    rows: Tensor
    columns: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rows: Sequence[int] | Tensor,
        columns: Sequence[int] | Tensor,
        values: Sequence[float] | Tensor,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("rows", torch.as_tensor(rows, dtype=torch.long).clone())
        self.register_buffer("columns", torch.as_tensor(columns, dtype=torch.long).clone())
        self.values = nn.Parameter(torch.as_tensor(values, dtype=torch.float64).clone())
        start = torch.zeros(out_features) if bias is None else bias
        self.bias = nn.Parameter(start.to(torch.float64, copy=True))

    @property
    def weight(self) -> Tensor:
        """The matrix W, (out_features, in_features)."""
        full = self.values.new_zeros(self.out_features, self.in_features)
        return full.index_put((self.rows, self.columns), self.values, accumulate=True)

    def forward(self, h: Tensor) -> Tensor:
        """(…, in_features) → (…, out_features)."""
        flat = h.reshape(-1, self.in_features).mT
        terms = flat[self.columns] * self.values[:, None]
        out = self.bias[:, None].repeat(1, flat.shape[1]).index_add(0, self.rows, terms)
        return out.mT.reshape(*h.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        entries = f"{len(self.values)} entries"
        return f"in_features={self.in_features}, out_features={self.out_features}, {entries}"


class MoveLayer(nn.Module):
    """Attention that copies slots of one token, or the mean over several, to another: `mov`.

    write += mean of `read` over those tokens of `source` that are not in the future. A token whose
    sources are all in the future reads the zero token. Keys are β·onehot(position), queries the
    sources, and the zero token has the key β/2 for everybody: softmax gives all but e^{−β/2} of its
    weight to the sources, or to the zero token.

    Args:
        slots: the stream.
        read, write: slots or coordinates, equally many.
        source: the token that every token reads, or a boolean matrix, `source[t, s]` where token t
            reads token s; token 0 is the zero token.
        beta: sharpness β of the attention.

    Raises:
        ValueError: unequal numbers of coordinates, or a source that is not in the sequence.

    Source: arXiv 2211.15661, section 4 (`mov`, and the read of the unified operator); the key of
    the zero token is ours.

    >>> slots = Slots(4, x=1, y=1)
    >>> stream = slots.start(4)
    >>> stream[:, slots["x"][0]] = torch.tensor([0.0, 5.0, 6.0, 7.0])
    >>> MoveLayer(slots, "x", "y", source=2)(stream)[:, slots["y"][0]].round().tolist()
    [0.0, 0.0, 6.0, 6.0]
    """

    def __init__(
        self, slots: Slots, read: Read, write: Read, source: int | Tensor, *, beta: float = 1e3
    ) -> None:
        super().__init__()
        reads, writes = slots[read], slots[write]
        if len(reads) != len(writes):
            raise ValueError(f"read has {len(reads)} coordinates, write {len(writes)}")
        position, one = slots["position"], slots["one"]
        self.width, tokens = slots.width, len(position)
        # a query is a row of `source` and, for the zero token's sake, a constant
        if isinstance(source, int):
            if not 0 <= source < tokens:
                raise ValueError(f"source must be in [0, {tokens}), got {source}")
            asked, asker = torch.tensor([source]), one
        else:
            if source.shape != (tokens, tokens):
                shape = tuple(source.shape)
                raise ValueError(f"source must be of shape {(tokens, tokens)}, got {shape}")
            token, asked = source.bool().nonzero(as_tuple=True)
            asker = position[token]
        last = torch.tensor([tokens])
        entries = torch.cat([asked, last]), torch.cat([asker, one])
        self.query = SparseLinear(self.width, tokens + 1, *entries, torch.ones(len(entries[0])))
        sharpness = torch.full((tokens + 1,), float(beta))
        sharpness[-1] /= 2
        entries = torch.cat([torch.arange(tokens), last]), torch.cat([position, position[:1]])
        self.key = SparseLinear(self.width, tokens + 1, *entries, sharpness)
        ones, each = torch.ones(len(reads)), torch.arange(len(reads))
        self.value = SparseLinear(self.width, len(reads), each, reads, ones)
        self.out = SparseLinear(len(reads), self.width, writes, each, ones)

    def forward(self, stream: Tensor) -> Tensor:
        """(…, T, width) → (…, T, width)."""
        q, k, v = self.query(stream), self.key(stream), self.value(stream)
        return stream + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0))


class MLPLayer(nn.Module):
    """A residual MLP with exact GELUs, stream + W₂ GELU(W₁ stream + b₁) + b₂, given its weights."""

    def __init__(self, hidden: SparseLinear, out: SparseLinear) -> None:
        super().__init__()
        self.hidden, self.out = hidden, out
        self.width = hidden.in_features

    def forward(self, stream: Tensor) -> Tensor:
        """(…, width) → (…, width)."""
        return stream + self.out(F.gelu(self.hidden(stream)))


class MultiplyLayer(MLPLayer):
    """An MLP that multiplies entries of a token: `mul`.

    write += weight · (left ∘ right), with products made by GELUs at a small scale ε,

        xy ≈ √(π/2) [G(ε(x + y)) − G(εx) − G(εy)]/ε²                       (3 neurons)
        xy ≈ √(π/2) [G(z₊) + G(−z₊) − G(z₋) − G(−z₋)]/(4ε²), z_± = ε(x ± y)  (4 neurons)

    off by O(ε²) from curvature and by 1e-16 |x|/ε from rounding. float64 and the exact GELU are
    needed: float32 leaves no digit, and the tanh approximation has another quadratic coefficient.

    Args:
        slots: the stream.
        left, right: slots or coordinates, equally many; a single one meets all of the other.
        write: slot or coordinates.
        weight: (coordinates of write, products); the identity by default.
        neurons: 3 or 4 a product; 4 are even in z, and lose fewer digits.
        eps: ε; by default 1e-5 for 3 neurons and 2e-6 for 4, about best for numbers near 1 to 10.

    Raises:
        ValueError: numbers of coordinates or a weight that do not fit, another number of neurons,
            or an eps that is not positive.

    Source: arXiv 2211.15661, section 4 (`mul`); the four-neuron form is ours.

    >>> slots = Slots(1, x=1, y=1, product=1)
    >>> stream = slots.start(1)
    >>> stream[0, slots["x"]], stream[0, slots["y"]] = 3.0, -2.0
    >>> round(MultiplyLayer(slots, "x", "y", "product")(stream)[0, -1].item(), 8)
    -6.0
    """

    def __init__(
        self,
        slots: Slots,
        left: Read,
        right: Read,
        write: Read,
        weight: Tensor | None = None,
        *,
        neurons: int = 4,
        eps: float | None = None,
    ) -> None:
        if neurons not in (3, 4):
            raise ValueError(f"neurons must be 3 or 4, got {neurons!r}")
        eps = {3: 1e-5, 4: 2e-6}[neurons] if eps is None else eps
        if not eps > 0:
            raise ValueError(f"eps must be positive, got {eps}")
        x, y = slots[left], slots[right]
        if len(x) != len(y) and 1 not in (len(x), len(y)):
            raise ValueError(f"left has {len(x)} coordinates, right {len(y)}")
        products = max(len(x), len(y))
        pairs = torch.stack([x.expand(products), y.expand(products)])
        # in units of ε, what a neuron takes of x and of y; and its sign in the sum
        forms: dict[int, list[tuple[int, int, int]]] = {
            3: [(1, 1, 1), (1, 0, -1), (0, 1, -1)],
            4: [(1, 1, 1), (-1, -1, 1), (1, -1, -1), (-1, 1, -1)],
        }
        takes, signs = torch.tensor(forms[neurons], dtype=torch.float64).split([2, 1], dim=1)
        scale = math.sqrt(math.pi / 2) / eps**2 / (1 if neurons == 3 else 4)
        number = torch.arange(neurons * products).view(neurons, 1, products)
        reads = (neurons, 2, products)
        kept = (takes != 0)[..., None].expand(reads)
        hidden = SparseLinear(
            slots.width,
            neurons * products,
            number.expand(reads)[kept],
            pairs.expand(reads)[kept],
            eps * takes[..., None].expand(reads)[kept],
        )
        rows, columns, values = _mixing(slots, write, weight, products)
        out = SparseLinear(
            neurons * products,
            slots.width,
            rows.repeat(neurons),
            number[:, 0, columns].flatten(),
            (scale * signs * values).flatten(),
        )
        super().__init__(hidden, out)


class AffineLayer(MLPLayer):
    """An MLP that maps entries of a token linearly: `aff`.

    write += weight · read + bias, exactly: z = G(z) − G(−z).

    Args:
        slots: the stream.
        read, write: slots or coordinates.
        weight: (coordinates of write, coordinates of read); the identity by default, and a number
            is a multiple of it: −1 with `write` equal to `read` clears.
        bias: (coordinates of write,).

    Raises:
        ValueError: a weight or a bias that does not fit.

    Source: arXiv 2211.15661, section 4 (`aff`).

    >>> slots = Slots(1, x=2, y=1)
    >>> stream = slots.start(1)
    >>> stream[0, slots["x"]] = torch.tensor([3.0, 4.0]).double()
    >>> AffineLayer(slots, "x", "y", torch.tensor([[2.0, -1.0]]))(stream)[0, -1].item()
    2.0
    """

    def __init__(
        self,
        slots: Slots,
        read: Read,
        write: Read,
        weight: Tensor | float | None = None,
        bias: Tensor | None = None,
    ) -> None:
        reads, writes = slots[read], slots[write]
        n = len(reads)
        both = torch.arange(2 * n)
        sign = torch.tensor([1.0, -1.0]).repeat_interleave(n)
        hidden = SparseLinear(slots.width, 2 * n, both, reads.repeat(2), sign)
        rows, columns, values = _mixing(slots, write, weight, n)
        shift = torch.zeros(slots.width, dtype=torch.float64)
        if bias is not None:
            if bias.shape != writes.shape:
                wrong = tuple(bias.shape)
                raise ValueError(f"bias must be of shape ({len(writes)},), got {wrong}")
            shift[writes] = bias.double()
        entries = rows.repeat(2), torch.cat([columns, columns + n]), torch.cat([values, -values])
        super().__init__(hidden, SparseLinear(2 * n, slots.width, *entries, shift))


class ReciprocalLayer(nn.Module):
    """A LayerNorm that divides: write += 1/(read + shift), for read + shift > 0; `div`.

    LayerNorm without an ε maps (a, −a, δ, −δ) to (…, √2 δ/a · (1 − δ²/2a² …), …).

    Args:
        slots: the stream.
        read, write: slots or coordinates, a single one each.
        shift: added before the division.
        delta: δ.

    Raises:
        ValueError: more than one coordinate, or a delta that is not positive.

    Source: arXiv 2211.15661, section 4 (`div`); division by LayerNorm is its idea, these four
    entries are ours.

    >>> slots = Slots(1, a=1, inverse=1)
    >>> stream = slots.start(1)
    >>> stream[0, slots["a"]] = 7.0
    >>> round(7 * ReciprocalLayer(slots, "a", "inverse")(stream)[0, -1].item(), 8)
    1.0
    """

    def __init__(
        self, slots: Slots, read: Read, write: Read, *, shift: float = 0.0, delta: float = 1e-4
    ) -> None:
        super().__init__()
        reads, writes = slots[read], slots[write]
        if len(reads) != 1 or len(writes) != 1:
            raise ValueError(f"one coordinate divides at a time, got {len(reads)}, {len(writes)}")
        if not delta > 0:
            raise ValueError(f"delta must be positive, got {delta}")
        self.width = slots.width
        bias = torch.tensor([shift, -shift, delta, -delta], dtype=torch.float64)
        self.hidden = SparseLinear(self.width, 4, [0, 1], reads.expand(2), [1.0, -1.0], bias)
        self.norm = nn.LayerNorm(4, eps=0.0, elementwise_affine=False)
        self.out = SparseLinear(4, self.width, writes, [2], [1 / (math.sqrt(2) * delta)])

    def forward(self, stream: Tensor) -> Tensor:
        """(…, width) → (…, width)."""
        return stream + self.out(self.norm(self.hidden(stream)))


Layer = MoveLayer | MLPLayer | ReciprocalLayer


def compile_program(ops: Iterable[Layer | Sequence[MLPLayer]]) -> nn.Sequential:
    """A transformer that runs instructions one after another.

    Args:
        ops: layers; several `MultiplyLayer` and `AffineLayer` in a list read the same stream and
            become one MLP layer.

    Returns:
        The layers, as many as `ops`, that map streams (B, T, width) to streams. Names of layers
        are "0", "1", …, as `paperworks.common.ActivationRecorder` wants them.

    Raises:
        ValueError: no instructions, or instructions for streams of different widths.
        TypeError: something else than layers.

    >>> slots = Slots(1, x=1, y=1)
    >>> square = MultiplyLayer(slots, "x", "x", "y")
    >>> clear = AffineLayer(slots, "x", "x", -1.0)
    >>> stream = slots.start(1)
    >>> stream[0, slots["x"]] = 3.0
    >>> [round(value, 6) for value in compile_program([[square, clear]])(stream)[0, 2:].tolist()]
    [0.0, 9.0]
    """
    layers = [_fuse(op) if isinstance(op, Sequence) else op for op in ops]
    for layer in layers:
        if not isinstance(layer, Layer):
            raise TypeError(f"ops must be layers of a program, got {type(layer).__name__}")
    if len({layer.width for layer in layers}) != 1:
        widths = sorted({layer.width for layer in layers})
        raise ValueError(f"ops must be for streams of one width, got {widths or 'none'}")
    return nn.Sequential(*layers)


def _mixing(
    slots: Slots, write: Read, weight: Tensor | float | None, n: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Entries of what writes n numbers into a slot: rows of the stream, columns, values."""
    writes = slots[write]
    if weight is None or isinstance(weight, int | float):
        if len(writes) != n:
            raise ValueError(f"write has {len(writes)} coordinates, for {n} numbers; give a weight")
        each = torch.arange(n)
        return writes, each, torch.full((n,), 1.0 if weight is None else float(weight)).double()
    if weight.shape != (len(writes), n):
        wrong = tuple(weight.shape)
        raise ValueError(f"weight must be of shape {(len(writes), n)}, got {wrong}")
    rows, columns = weight.nonzero(as_tuple=True)
    return writes[rows], columns, weight[rows, columns].double()


def _fuse(layers: Sequence[MLPLayer]) -> MLPLayer:
    """One MLP whose neurons are those of all."""
    if not layers or not all(isinstance(layer, MLPLayer) for layer in layers):
        kinds = [type(layer).__name__ for layer in layers]
        raise TypeError(f"ops: MLP layers only can be one layer, got {kinds}")
    if len({layer.width for layer in layers}) != 1:
        raise ValueError(f"ops must be for streams of one width, got {[a.width for a in layers]}")
    before = [0]
    for layer in layers:
        before.append(before[-1] + layer.hidden.out_features)
    width, neurons = layers[0].width, before[-1]
    ins, outs = [layer.hidden for layer in layers], [layer.out for layer in layers]
    hidden = SparseLinear(
        width,
        neurons,
        torch.cat([part.rows + shift for part, shift in zip(ins, before)]),
        torch.cat([part.columns for part in ins]),
        torch.cat([part.values.detach() for part in ins]),
        torch.cat([part.bias.detach() for part in ins]),
    )
    out = SparseLinear(
        neurons,
        width,
        torch.cat([part.rows for part in outs]),
        torch.cat([part.columns + shift for part, shift in zip(outs, before)]),
        torch.cat([part.values.detach() for part in outs]),
        torch.stack([part.bias.detach() for part in outs]).sum(0),
    )
    return MLPLayer(hidden, out)
