"""Codebook layers: a hidden state becomes the mean of a few codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.common.autograd import straight_through

Similarity = Literal["cosine", "euclidean"]
Loss = Literal["base", "aeloss", "fullaeloss", "vqvae"]

BLOCKED = -1
"""In place of a code: it adds nothing, and its slot still counts in the mean."""
ABSENT = -2
"""In place of a code: there is no such slot."""

_SCORES = {"cpu": 2**21}  # so many at once: 8 MB in float32; elsewhere 64 MB


def nearest_codes(
    x: Tensor,
    codes: Tensor,
    k: int = 1,
    similarity: Similarity = "cosine",
    chunk: int | None = None,
) -> Tensor:
    """Which k codes are the most similar to each vector, the most similar first.

        "cosine": the largest x·c_j / ‖c_j‖;   "euclidean": the smallest ‖x - c_j‖

    Scores are computed for `chunk` vectors at a time, one matrix product each, so that memory is
    chunk · C numbers instead of n · C. No gradient passes. Equal scores are broken arbitrarily; in
    bfloat16 near-equal ones are equal. arXiv 2310.17230, section 2.

    Args:
        x: vectors (..., d); or (..., G, d), for G code books at once.
        codes: (C, d); or (G, C, d), a book for each of the G parts of x.
        k: how many codes, at most C.
        similarity: "cosine" or "euclidean".
        chunk: vectors at a time; by default as many as bring a few million scores.

    Returns:
        LongTensor (..., k) or (..., G, k) of indices below C.

    Raises:
        TypeError: x or codes is not a floating-point tensor, or their dtypes differ.
        ValueError: shapes that do not fit, an unknown similarity, k not between 1 and C, or a chunk
            that is not positive.

    >>> codes = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> nearest_codes(torch.tensor([1.0, 0.9]), codes)
    tensor([0])
    >>> nearest_codes(torch.tensor([1.0, 0.9]), codes, k=2, similarity="euclidean")
    tensor([1, 0])
    """
    _check_look_up(x, codes, k, similarity, chunk)
    with torch.no_grad():
        groups = codes.shape[:-2]
        rows = x.reshape(-1, *groups, x.shape[-1])
        if groups:
            rows = rows.transpose(0, 1)
        chunk = chunk or max(1, _SCORES.get(x.device.type, 2**24) // codes.shape[:-1].numel())
        if similarity == "cosine":
            keys, offset = F.normalize(codes, dim=-1).mT, None
        else:  # ‖x - c‖² less ‖x‖², over -2
            keys, offset = codes.mT, codes.square().sum(-1).unsqueeze(-2) / 2
        ids = torch.empty((*rows.shape[:-1], k), dtype=torch.long, device=x.device)
        for part, found in zip(rows.split(chunk, -2), ids.split(chunk, -2)):
            scores = part @ keys
            if offset is not None:
                scores -= offset
            found.copy_(_largest(scores, k))
        if groups:
            ids = ids.transpose(0, 1)
        return ids.reshape(*x.shape[:-1], k)


def _largest(scores: Tensor, k: int) -> Tensor:
    if k > 1:
        return scores.topk(k).indices
    if scores.device.type == "cpu" and scores.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(scores.numpy().argmax(-1)).unsqueeze(-1)  # ten times as fast
    return scores.argmax(-1, keepdim=True)


class _Codes(nn.Module):
    """What one code book and a group of them share; `groups` is () or (G,)."""

    codes: nn.Parameter
    usage: Tensor

    def __init__(
        self,
        dim: int,
        groups: tuple[int, ...],
        num_codes: int,
        k: int,
        similarity: Similarity,
        loss: Loss,
        mse_weight: float,
        beta: float,
        layernorm: bool,
    ) -> None:
        for name, size in (("dim", dim), ("num_codes", num_codes)):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be a positive integer, got {size!r}")
        _check_k(k, num_codes)
        _check_choice("similarity", similarity, get_args(Similarity))
        _check_choice("loss", loss, get_args(Loss))
        for name, weight in (("mse_weight", mse_weight), ("beta", beta)):
            if not weight >= 0:
                raise ValueError(f"{name} must not be negative, got {weight!r}")
        super().__init__()
        self.dim, self.num_codes = dim, num_codes
        self._groups, self._k = groups, k
        self.similarity: Similarity = similarity
        self.loss: Loss = loss
        self.mse_weight, self.beta = mse_weight, beta
        width = dim // (groups or (1,))[0]
        self.codes = nn.Parameter(torch.randn(*groups, num_codes, width))
        if layernorm:
            self.weight = nn.Parameter(torch.ones(*groups, width))
            self.bias = nn.Parameter(torch.zeros(*groups, width))
        else:
            self.register_parameter("weight", None)
            self.register_parameter("bias", None)
        usage = torch.zeros(*groups, num_codes, dtype=torch.long)
        self.register_buffer("usage", usage, persistent=False)
        self.ids: Tensor | None = None
        self.reconstruction_error: Tensor | None = None
        self.edit: Callable[[Tensor], Tensor] | None = None

    @property
    def k(self) -> int:
        """How many codes stand for a position; may be set, as a schedule does."""
        return self._k

    @k.setter
    def k(self, k: int) -> None:
        _check_k(k, self.num_codes)
        self._k = k

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        self._check(x, mask)
        h = self.normalize(x)
        ids = nearest_codes(h.detach(), self.codes.detach().to(h.dtype), self.k, self.similarity)
        if self.edit is not None and not self.training:
            ids = self.edit(ids)
        z = self.decode(ids)
        self.ids = ids
        error = self._error(z, h.detach(), mask)
        self.reconstruction_error = error.detach()
        if not self.training:
            return self._join(_pass_on(h, z, codes_learn=True)).to(x.dtype)
        self._count(ids, mask)
        out = _pass_on(h, z, codes_learn=self.loss != "vqvae")
        if self.loss != "base" and torch.is_grad_enabled():
            out = _WithLoss.apply(out, self._auxiliary(error, z, h, mask))
        return self._join(out).to(x.dtype)

    def normalize(self, x: Tensor) -> Tensor:
        """h, to which codes are compared: (..., d), or (..., G, d/G) of a group."""
        h = self._split(x)
        if self.weight is None:
            return h
        return F.layer_norm(h, h.shape[-1:], eps=1e-5) * self.weight + self.bias

    def decode(self, ids: Tensor) -> Tensor:
        """The mean of the codes of these ids, in the shape of h.

        A negative id is one that `steer` put there: -1 adds nothing, and still counts.
        """
        *groups, C, d = self.codes.shape
        codes = self.codes.reshape(-1, d)
        weights = None
        if self.edit is not None:
            weights = (ids >= 0) / (ids != ABSENT).sum(-1, keepdim=True).to(codes.dtype)
            ids, weights = ids.clamp(min=0), weights.to(codes.dtype).reshape(-1, ids.shape[-1])
        if groups:
            ids = ids + torch.arange(0, len(codes), C, device=ids.device).unsqueeze(-1)
        z = F.embedding_bag(
            ids.reshape(-1, ids.shape[-1]),
            codes,
            mode="mean" if weights is None else "sum",
            per_sample_weights=weights,
        )
        return z.reshape(*ids.shape[:-1], d)

    def reset_usage(self) -> None:
        """Count from zero again."""
        self.usage.zero_()

    @torch.no_grad()
    def initialize_(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Put the codes at the centres of h, by mini-batch k-means, in place of normal draws.

        Args:
            x: activations (..., dim), at least as many as there are codes; a thousand in the paper.
            generator: a CPU generator; without one, the same start every time.

        Raises:
            ValueError: fewer activations than codes.
        """
        h = self._rows(x)
        if len(h) < self.num_codes:
            raise ValueError(f"{self.num_codes} codes need as many activations, got {len(h)}")
        state = int(torch.randint(2**31, (), generator=_or_fixed(generator)))
        for codes, part in zip(self._books(self.codes), self._books(h.transpose(0, -2))):
            kmeans = MiniBatchKMeans(self.num_codes, random_state=state, n_init=1)
            centres = kmeans.fit(part.double().cpu().numpy()).cluster_centers_
            codes.copy_(torch.from_numpy(centres))

    @torch.no_grad()
    def replace_unused_(
        self, x: Tensor, noise: float = 0.0, generator: torch.Generator | None = None
    ) -> int:
        """Move codes that were never chosen since the last `reset_usage` onto current activations.

        Each goes to a random row of h, plus `noise` times standard normal noise; counting then
        starts again. Call it every r training steps. Off in the paper by default.

        Args:
            x: activations (..., dim) of the current network.
            noise: ρ, in the units of h, which LayerNorm gives variance one.
            generator: a CPU generator; without one, the same draw every time.

        Returns:
            How many codes moved.

        Raises:
            ValueError: no activations, or negative noise.
        """
        if not noise >= 0:
            raise ValueError(f"noise must not be negative, got {noise!r}")
        h, generator = self._rows(x), _or_fixed(generator)
        if not len(h):
            raise ValueError("x holds no activations")
        books = zip(self._books(self.codes), self._books(h.transpose(0, -2)))
        for (codes, part), unused in zip(books, self._books(self.usage.unsqueeze(-1) == 0)):
            places = unused.squeeze(-1).nonzero().squeeze(-1)
            rows = torch.randint(len(part), places.shape, generator=generator).to(part.device)
            shift = torch.randn(len(places), codes.shape[-1], generator=generator) * noise
            codes[places] = part[rows].to(codes.dtype) + shift.to(codes)
        moved = int((self.usage == 0).sum())
        self.reset_usage()
        return moved

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_codes={self.num_codes}, k={self.k}, "
            f"similarity={self.similarity!r}, loss={self.loss!r}"
        )

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (*self._groups, -1)) if self._groups else x

    def _join(self, z: Tensor) -> Tensor:
        return z.flatten(-2) if self._groups else z

    def _books(self, values: Tensor) -> Tensor:
        """(G, ., .), one for each book."""
        return values if self._groups else values.unsqueeze(0)

    def _rows(self, x: Tensor) -> Tensor:
        self._check(x, None)
        return self.normalize(x.reshape(-1, self.dim).to(self.codes.dtype))

    def _error(self, z: Tensor, h: Tensor, mask: Tensor | None) -> Tensor:
        """Mean over positions of ‖z - h‖²."""
        error = (z - h).square().flatten(-1 - len(self._groups)).sum(-1)
        if mask is None:
            return error.mean()
        return torch.where(mask, error, 0).sum() / mask.sum().clamp(min=1)

    def _auxiliary(self, error: Tensor, z: Tensor, h: Tensor, mask: Tensor | None) -> Tensor:
        loss = self.mse_weight * error
        if self.loss in ("fullaeloss", "vqvae"):
            loss = loss + self.beta * self._error(z.detach(), h, mask)
        return loss

    def _count(self, ids: Tensor, mask: Tensor | None) -> None:
        chosen = ids if mask is None else ids[mask]
        if self._groups:
            starts = torch.arange(0, self.usage.numel(), self.num_codes, device=ids.device)
            chosen = chosen + starts.unsqueeze(-1)
        counts = torch.bincount(chosen.flatten(), minlength=self.usage.numel())
        self.usage += counts.view_as(self.usage)

    def _check(self, x: Tensor, mask: Tensor | None) -> None:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"x must be a floating-point tensor, got {kind}")
        if x.dim() == 0 or x.shape[-1] != self.dim:
            raise ValueError(
                f"expected last dim {self.dim}, got {x.shape[-1] if x.dim() else 'none'}"
            )
        if mask is not None and (mask.shape != x.shape[:-1] or mask.dtype != torch.bool):
            raise ValueError(
                f"mask must be boolean of shape {tuple(x.shape[:-1])}, got "
                f"{mask.dtype} {tuple(mask.shape)}"
            )


class CodebookLayer(_Codes):
    """Replaces each activation by the mean of the k of C learned codes that resemble it most.

        h = LayerNorm(a),   T = the k codes of largest h·c_j / ‖c_j‖,   z = (1/k) Σ_{j∈T} c_j

    z goes on in place of a. Put it where a network's hidden states shall be a few discrete symbols
    per position, and fine-tune: what each symbol stands for can then be listed, and a symbol can be
    forced. `wrap_codebooks` puts layers into a transformer.

    Codes are ranked by direction and put out with their own lengths; h is not scaled back. The
    backward pass is straight-through, ∂L/∂h := ∂L/∂z; codes get the true gradient of the output,
    and in training mode that of λ · mean over positions of ‖z - h‖², which the layer adds to
    whatever loss is differentiated: per selected code ∂L/∂z / k + 2λ (z - h) / (n k), n positions.
    Nothing has to be added to your loss; where you multiply your loss (gradient accumulation,
    a gradient scaler), multiply `mse_weight` too. arXiv 2310.17230, section 2; the mean in place of
    the paper's sum is the official code's, which also adds the gradient this way.

    Args:
        dim: width d of the activations.
        num_codes: C. Codes start as `nn.Embedding`'s do, standard normal; see `initialize_`.
        k: how many codes stand for an activation.
        similarity: "cosine" as above, or "euclidean", the smallest ‖h - c_j‖.
        loss: what is added in training. "base": nothing. "aeloss": as above, for the codes alone.
            "fullaeloss": also β ‖z - h‖² for h. "vqvae": as "fullaeloss", and codes get no gradient
            of the output (our reading of the official options of these names).
        mse_weight: λ.
        beta: β.
        layernorm: False compares codes with the activation itself.

    Attributes:
        codes: (C, d).
        ids: the codes of the latest forward, (..., k), the most similar first.
        reconstruction_error: mean over positions of ‖z - h‖² in the latest forward.
        usage: how often each code was chosen in training, (C,).
        edit: in evaluation mode, a function that changes ids before they are decoded; `steer` sets
            it.

    Shapes: x (..., d) and mask (...), False for padding, which enters neither n nor the usage;
    output as x.

    Raises:
        ValueError: a size that is no positive integer, k above C, an unknown similarity or loss, a
            negative weight; in the forward, another width than d.
        TypeError: in the forward, x is not a floating-point tensor.

    >>> layer = CodebookLayer(4, num_codes=10, k=2)
    >>> layer(torch.rand(3, 5, 4)).shape, layer.ids.shape
    (torch.Size([3, 5, 4]), torch.Size([3, 5, 2]))
    """

    def __init__(
        self,
        dim: int,
        num_codes: int,
        k: int = 1,
        similarity: Similarity = "cosine",
        loss: Loss = "aeloss",
        mse_weight: float = 1.0,
        layernorm: bool = True,
        beta: float = 1.0,
    ) -> None:
        super().__init__(
            dim, (), num_codes, k, similarity, loss, mse_weight, beta=beta, layernorm=layernorm
        )


class GroupCodebook(_Codes):
    """Cuts an activation into G equal parts, each with a code book of its own.

    A book for each head of an attention layer, on what the head gives before the output projection,
    or for each chunk of a wide activation: G symbols of C each say more than one of C. Everything
    else is as in `CodebookLayer`, computed for all parts at once; the reconstruction errors of the
    parts are summed. arXiv 2310.17230, section 2.

    Args:
        dim: width of the activations.
        groups: G, a divisor of dim.
        num_codes: C of each part.
        k: how many codes stand for a part.
        similarity, loss, mse_weight, layernorm, beta: see `CodebookLayer`.

    Attributes:
        codes: (G, C, dim/G).
        ids: (..., G, k).
        usage: (G, C).

    Raises:
        ValueError: as `CodebookLayer`, or dim is no multiple of groups.

    >>> layer = GroupCodebook(8, groups=2, num_codes=10)
    >>> layer(torch.rand(3, 5, 8)).shape, layer.ids.shape
    (torch.Size([3, 5, 8]), torch.Size([3, 5, 2, 1]))
    """

    def __init__(
        self,
        dim: int,
        groups: int,
        num_codes: int,
        k: int = 1,
        similarity: Similarity = "cosine",
        loss: Loss = "aeloss",
        mse_weight: float = 1.0,
        layernorm: bool = True,
        beta: float = 1.0,
    ) -> None:
        if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
            raise ValueError(f"groups must be a positive integer, got {groups!r}")
        if isinstance(dim, int) and dim % groups:
            raise ValueError(f"dim must be a multiple of groups, got {dim} and {groups}")
        super().__init__(
            dim,
            (groups,),
            num_codes,
            k,
            similarity,
            loss,
            mse_weight,
            beta=beta,
            layernorm=layernorm,
        )

    @property
    def groups(self) -> int:
        return self._groups[0]

    def extra_repr(self) -> str:
        return f"groups={self.groups}, {super().extra_repr()}"


def _pass_on(h: Tensor, z: Tensor, codes_learn: bool) -> Tensor:
    """z, with a gradient of 1 to h, and the true one to the codes."""
    if not torch.is_grad_enabled():
        return z
    h = h.to(z.dtype)
    return straight_through(h + z if codes_learn else h, z.detach())


class _WithLoss(torch.autograd.Function):
    """A tensor as it is; whoever differentiates it differentiates the loss too, with weight 1."""

    @staticmethod
    def forward(output: Tensor, loss: Tensor) -> Tensor:
        return output.view_as(output)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.loss = torch.ones_like(inputs[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, ctx.loss


def _or_fixed(generator: torch.Generator | None) -> torch.Generator:
    return generator or torch.Generator().manual_seed(0)


def _check_k(k: int, num_codes: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= num_codes:
        raise ValueError(f"k must be an integer from 1 to num_codes {num_codes}, got {k!r}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _check_look_up(
    x: Tensor, codes: Tensor, k: int, similarity: Similarity, chunk: int | None
) -> None:
    for name, value in (("x", x), ("codes", codes)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name} must be a floating-point tensor, got {kind}")
    if x.dtype != codes.dtype:
        raise TypeError(f"x is {x.dtype} but codes are {codes.dtype}")
    if codes.dim() not in (2, 3) or 0 in codes.shape:
        raise ValueError(f"codes must have shape (C, d) or (G, C, d), got {tuple(codes.shape)}")
    fits = (*codes.shape[:-2], codes.shape[-1])
    if x.shape[-len(fits) :] != fits:
        raise ValueError(
            f"x must end in {fits} for codes {tuple(codes.shape)}, got {tuple(x.shape)}"
        )
    _check_k(k, codes.shape[-2])
    _check_choice("similarity", similarity, get_args(Similarity))
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise ValueError(f"chunk must be a positive integer, got {chunk!r}")
