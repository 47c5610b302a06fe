"""Transformers that map a training set and queries to predictive distributions."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from paperworks.compress.storage import load_tensors, save_tensors
from paperworks.incontext.iclinear.tasks import check_counts
from paperworks.incontext.pfn.bar import BarDistribution, CategoricalHead


class PFN(nn.Module):
    """A prior-data fitted network: posterior predictive distributions in one forward pass.

    Context tokens are e_x(x) + e_y(y), queries e_x(x), with linear e_x and e_y and no positions, so
    that the order of the context does not matter. Blocks have their LayerNorms after the sums and
    GELU. Every token sees the context, and a query also itself, but no other query: memory is
    linear in the queries, and no mask is made. Outputs of all residual branches start at 0.
    `fit_pfn` trains it on a prior; then q(y | x, D) ≈ ∫ p(y | x, θ) p(θ | D) dθ.

    Args:
        num_features: F.
        head: `BarDistribution` for numbers y, `CategoricalHead` for labels, or your own with
            `num_outputs` and `log_prob(logits, y)`.
        d_model, num_layers, num_heads: width of the stream, a multiple of num_heads; blocks; heads.
        d_ff: hidden units of each block and of the head. The paper names 1024; its notebook loops
            over a size that it never passes, so that 200 was used.

    Attributes:
        x_mean, x_std: (F,), what inputs are normalised with; `fit_pfn` takes them from the prior.
        trained_steps, max_context: of `fit_pfn`; 0 before.
        standardize: whether it was trained on tasks standardised by their contexts.

    Raises:
        ValueError: a number that is not a positive integer, or d_model is no multiple of num_heads.

    Source: arXiv 2112.10510, section 4 and appendix; labels enter as numbers as in its code.

    >>> model = PFN(3, CategoricalHead(2), d_model=8, num_layers=1, num_heads=2, d_ff=16)
    >>> model(torch.rand(5, 10, 3), torch.ones(5, 10), torch.rand(5, 4, 3)).shape
    torch.Size([5, 4, 2])
    """

    x_mean: Tensor
    x_std: Tensor
    trained_steps: Tensor
    max_context: Tensor
    standardize: Tensor

    def __init__(
        self,
        num_features: int,
        head: nn.Module,
        d_model: int = 512,
        num_layers: int = 6,
        num_heads: int = 4,
        d_ff: int = 1024,
    ) -> None:
        check_counts(
            num_features=num_features, d_model=d_model, num_layers=num_layers,
            num_heads=num_heads, d_ff=d_ff,
        )  # fmt: skip
        if d_model % num_heads:
            raise ValueError(f"d_model must be a multiple of {num_heads} heads, got {d_model}")
        super().__init__()
        self.num_features, self.d_model, self.d_ff = num_features, d_model, d_ff
        self.num_layers, self.num_heads = num_layers, num_heads
        self.head = head
        num_outputs: int = head.num_outputs  # type: ignore[assignment]
        self.embed_x = nn.Linear(num_features, d_model)
        self.embed_y = nn.Linear(1, d_model)
        self.blocks = nn.ModuleList(_Block(d_model, num_heads, d_ff) for _ in range(num_layers))
        self.decoder = nn.Sequential(
            nn.Linear(d_model, d_ff), nn.GELU(), nn.Linear(d_ff, num_outputs)
        )
        self.register_buffer("x_mean", torch.zeros(num_features))
        self.register_buffer("x_std", torch.ones(num_features))
        self.register_buffer("trained_steps", torch.tensor(0))
        self.register_buffer("max_context", torch.tensor(0))
        self.register_buffer("standardize", torch.tensor(False))

    def forward(self, x_ctx: Tensor, y_ctx: Tensor, x_query: Tensor) -> Tensor:
        """Logits of `head` at the queries.

        Args:
            x_ctx: (B, n, F); n may be 0.
            y_ctx: (B, n).
            x_query: (B, Q, F).

        Returns:
            (B, Q, num_outputs).

        Raises:
            ValueError: other shapes.
        """
        self._check(x_ctx, y_ctx, x_query)
        n = x_ctx.shape[1]
        x = torch.cat([x_ctx, x_query.to(x_ctx)], dim=1).to(self.x_mean)
        tokens = self.embed_x((x - self.x_mean) / self.x_std)
        seen = tokens[:, :n] + self.embed_y(y_ctx.to(tokens)[..., None])
        tokens = torch.cat([seen, tokens[:, n:]], dim=1)
        for block in self.blocks:
            tokens = block(tokens, n)
        return self.decoder(tokens[:, n:])

    def _check(self, x_ctx: Tensor, y_ctx: Tensor, x_query: Tensor) -> None:
        F = self.num_features
        for name, x in (("x_ctx", x_ctx), ("x_query", x_query)):
            if x.ndim != 3 or x.shape[2] != F or len(x) != len(x_ctx):
                raise ValueError(f"{name} must be (B, rows, {F} features), got {tuple(x.shape)}")
        if y_ctx.shape != x_ctx.shape[:2]:
            wanted = tuple(x_ctx.shape[:2])
            raise ValueError(f"y_ctx must be {wanted} as x_ctx is, got {tuple(y_ctx.shape)}")


class _Block(nn.Module):
    def __init__(self, d_model: int, num_heads: int, d_ff: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)
        self.linear1, self.linear2 = nn.Linear(d_model, d_ff), nn.Linear(d_ff, d_model)
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        for layer in (self.out, self.linear2):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor, n: int) -> Tensor:
        """(B, n + Q, E), the context first."""
        heads = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        read = _attend_queries(q[:, :, n:], k, v, n)
        if n:
            context = (each[:, :, :n] for each in (q, k, v))
            read = torch.cat([functional.scaled_dot_product_attention(*context), read], dim=2)
        tokens = self.norm1(tokens + self.out(read.transpose(1, 2).flatten(2)))
        return self.norm2(tokens + self.linear2(functional.gelu(self.linear1(tokens))))


def _attend_queries(q: Tensor, k: Tensor, v: Tensor, n: int) -> Tensor:
    """Attention of each query to n context tokens and to itself, (B, H, Q, d).

    One more entry makes it plain attention without a mask: queries (q, q·k_own), keys (k, 0) and
    one (0, 1), which scores q·k_own; values likewise, so that the last entry of what is read is the
    weight of the query's own value.
    """
    own = (q * k[:, :, n:]).sum(-1, keepdim=True)
    corner = k.new_zeros(n + 1, k.shape[-1] + 1)
    corner[-1, -1] = 1
    keys, values = (functional.pad(each[:, :, :n], (0, 1, 0, 1)) + corner for each in (k, v))
    read = functional.scaled_dot_product_attention(
        torch.cat([q, own], dim=-1), keys, values, scale=q.shape[-1] ** -0.5
    )
    return read[..., :-1] + read[..., -1:] * v[:, :, n:]


def save_pfn(model: PFN, file: str | Path) -> None:
    """Write a PFN to a safetensors file that `load_pfn` reads.

    Raises:
        TypeError: its head is neither a `BarDistribution` nor a `CategoricalHead`.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "pfn.safetensors"
    >>> save_pfn(PFN(1, CategoricalHead(3), 8, 1, 1, 8), file)
    >>> load_pfn(file).head.num_outputs
    3
    """
    head = model.head
    if not isinstance(head, BarDistribution | CategoricalHead):
        raise TypeError(f"only PFNs with the two heads here are saved, got {type(head).__name__}")
    sizes = [model.num_features, model.d_model, model.num_layers, model.num_heads, model.d_ff]
    tails = isinstance(head, BarDistribution) and head.full_support
    architecture = torch.tensor([*sizes, head.num_outputs, tails])
    save_tensors({"architecture": architecture, **model.state_dict()}, file)


def load_pfn(file: str | Path) -> PFN:
    """The PFN that `save_pfn` wrote, with its dtype, in main memory. Nothing is unpickled.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no PFN.
    """
    tensors = load_tensors(file)
    if "architecture" not in tensors or "embed_x.weight" not in tensors:
        raise ValueError(f"{file} holds no PFN: write it with save_pfn")
    *sizes, num_outputs, tails = tensors.pop("architecture").tolist()
    borders = tensors.get("head.borders")
    if borders is None:
        head: nn.Module = CategoricalHead(num_outputs)
    else:
        head = BarDistribution(borders, bool(tails))
    with torch.device("meta"):  # draws no weights
        model = PFN(sizes[0], head, *sizes[1:])
    model.load_state_dict(tensors, assign=True)
    return model.eval()
