"""The variant for transferability: source models of many sizes, queries of many classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.representation.know2vec.encoders import UnitEncoder, check_input, check_sizes
from paperworks.representation.know2vec.probing import check_labels


class TransferModelEncoder(UnitEncoder):
    """A vector for a source model, from the rows of its first three classes.

        s_i = BiLSTM_i(M_i1, ..., M_iK), at the last step,   v ∝ W₂ (W₁ mean_i s_i + b₁) + b₂

    Each BiLSTM has two layers. Where a boundary point is missing, give the row's node instead: M is
    full. arXiv 2412.16251, transferability; its digest names no activation between the two linear
    layers, and there is none.

    Args:
        in_features: f, width of the reference encoder.
        dim: e, width of v; 128 for classification, 256 for regression.
        hidden: width of each direction.
        rows: how many source classes are read.

    Shapes: input (n, rows or more, K, f), K any; output (n, dim).

    Raises:
        ValueError: sizes that are no positive integers, or another input.

    >>> TransferModelEncoder(32)(torch.rand(2, 3, 10, 32)).shape
    torch.Size([2, 128])
    """

    def __init__(self, in_features: int, dim: int = 128, hidden: int = 128, rows: int = 3) -> None:
        check_sizes(in_features=in_features, dim=dim, hidden=hidden, rows=rows)
        super().__init__()
        self.in_features, self.dim = in_features, dim
        self.rows = nn.ModuleList(_two_layers(in_features, hidden) for _ in range(rows))
        self.head = nn.Sequential(nn.Linear(2 * hidden, 128), nn.Linear(128, dim))

    def embed(self, x: Tensor) -> Tensor:
        check_input(x, (None, None, self.in_features))
        if x.shape[1] < len(self.rows) or x.shape[2] == 0:
            raise ValueError(
                f"input must hold {len(self.rows)} classes or more, got shape {tuple(x.shape)}"
            )
        s = torch.stack([lstm(x[:, i])[0][:, -1] for i, lstm in enumerate(self.rows)])
        o: Tensor = self.head(s.mean(0))
        return o


class TransferQueryEncoder(nn.Module):
    """A vector for a target task of any number of classes, not normalised.

        u = W h_K + b

    with h_K the output of a BiLSTM of two layers at the last true class. Class means are padded to
    a common length, and padding changes nothing: the backward direction starts at the last true
    class too. That it does is our reading; the digest only names the position of the output.

    Args:
        in_features: f.
        dim: e.
        hidden: width of each direction.

    Shapes: input (n, L, f) with lengths (n,) from 1 to L, or None where all are L; output (n, dim).

    Raises:
        ValueError: sizes that are no positive integers, another input, or lengths out of range.
        TypeError: lengths are no whole numbers.

    >>> encoder = TransferQueryEncoder(32)
    >>> means = torch.rand(2, 50, 32)  # of tasks of 3 and of 37 classes, padded to 50
    >>> encoder(means, torch.tensor([3, 37])).shape
    torch.Size([2, 128])
    """

    def __init__(self, in_features: int, dim: int = 128, hidden: int = 128) -> None:
        check_sizes(in_features=in_features, dim=dim, hidden=hidden)
        super().__init__()
        self.in_features = in_features
        self.lstm = _two_layers(in_features, hidden)
        self.head = nn.Linear(2 * hidden, dim)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        check_input(x, (None, self.in_features))
        n, longest = x.shape[:2]
        if lengths is None:
            lengths = torch.full((n,), longest)
        check_labels("lengths", lengths, n)
        if lengths.min() < 1 or lengths.max() > longest:
            raise ValueError(f"lengths must be in [1, {longest}], got {lengths.tolist()}")
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        outputs, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        last = outputs[torch.arange(n, device=x.device), lengths.to(x.device) - 1]
        u: Tensor = self.head(last)
        return u


def transfer_loss(v: Tensor, u: Tensor, accuracy: Tensor, margin: float = 0.2) -> Tensor:
    """Bring each target task near its best source model, and away from the closest other.

        ½ [1 - cos(u, v⁺)] + ½ [cos(u, v⁻) - margin]₊

    with v⁺ the model of the highest fine-tuned accuracy on the task and v⁻ the best-scoring other
    one. arXiv 2412.16251, transferability.

    Args:
        v: vectors of the models (m, d), m ≥ 2.
        u: of the target tasks (n, d).
        accuracy: of each model fine-tuned to each task, (n, m).
        margin: which cosine of v⁻ costs nothing.

    Returns:
        The mean over tasks.

    Raises:
        ValueError: shapes disagree, or there is one model only.

    >>> v = torch.eye(2)
    >>> transfer_loss(v, v[:1], torch.tensor([[0.9, 0.5]])).item()
    0.0
    >>> round(transfer_loss(v, v[:1], torch.tensor([[0.5, 0.9]])).item(), 3)  # ½ · 1 + ½ · 0.8
    0.9
    """
    fits = v.dim() == u.dim() == 2 and v.shape[1] == u.shape[1] and len(v) > 1
    if not fits or accuracy.shape != (len(u), len(v)):
        raise ValueError(
            "v, u and accuracy must have shapes (m, d), (n, d) and (n, m) with m >= 2, got "
            f"{tuple(v.shape)}, {tuple(u.shape)} and {tuple(accuracy.shape)}"
        )
    cosine = F.normalize(u, dim=1) @ F.normalize(v, dim=1).T
    best = accuracy.argmax(1, keepdim=True)
    positive = cosine.gather(1, best).squeeze(1)
    negative = cosine.scatter(1, best, -torch.inf).amax(1)
    return ((1 - positive) / 2 + (negative - margin).relu() / 2).mean()


def _two_layers(in_features: int, hidden: int) -> nn.LSTM:
    return nn.LSTM(in_features, hidden, num_layers=2, batch_first=True, bidirectional=True)
