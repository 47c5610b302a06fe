"""How far the right pairs of models and queries are ahead."""

from __future__ import annotations

import torch
from torch import Tensor

from paperworks.representation.know2vec.probing import check_labels


def hardest_negative_loss(
    v: Tensor, u: Tensor, labels: Tensor, margin: float = 0.2, mask_same: bool = True
) -> Tensor:
    """Ask each query to score its own model above the best wrong one.

        S = V Uᵀ,   (1/B) Σ_q [ max_{i ∈ N(q)} S_iq - S_qq + margin ]₊

    with N(q) the models of other tasks than q's. Without `mask_same` N(q) is the whole batch, the
    right model and others of its task included: with `margin=0` that is what the released code
    computes, and its loss can be 0 with nothing told apart. Masking, and the margin of 0.2, follow
    the unused loss of its parent in the same file.

    Args:
        v: vectors of the models (B, d).
        u: of the queries (B, d), row b of the same task as v's.
        labels: tasks (B,), whole numbers.
        margin: by how much.
        mask_same: leave out models of the query's own task.

    Returns:
        The mean over queries; those without a wrong model in the batch count 0.

    Raises:
        TypeError: labels are no whole numbers.
        ValueError: shapes disagree, or the batch is empty.

    >>> v, u = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.eye(2)
    >>> hardest_negative_loss(v, u, torch.tensor([0, 1])).item()  # each prefers the other's
    1.2000000476837158
    """
    _check_pairs(v, u, labels)
    s = v @ u.T
    positive = s.diagonal()
    if mask_same:
        s = s.masked_fill(labels.unsqueeze(1) == labels, -torch.inf)
    return (s.amax(0) - positive + margin).relu().mean()


def official_batch_score(v: Tensor, u: Tensor, labels: Tensor) -> float:
    """The released code's accuracy: for each model of a batch, is its best query of its task?

        (1/B) Σ_i [ task of argmax_q (V Uᵀ)_iq = task of i ]

    It is no retrieval, in which a query ranks all models of a zoo; use it to compare with printed
    numbers only. Arguments as for `hardest_negative_loss`.

    >>> v = torch.tensor([[0.9, 0.8], [0.95, 0.1]])
    >>> official_batch_score(v, torch.eye(2), torch.tensor([0, 1]))
    0.5
    """
    _check_pairs(v, u, labels)
    best = (v @ u.T).argmax(1)
    return (labels[best] == labels).double().mean().item()


def _check_pairs(v: Tensor, u: Tensor, labels: Tensor) -> None:
    if v.dim() != 2 or v.shape != u.shape or len(v) == 0:
        raise ValueError(
            f"v and u must share a shape (B, d), got {tuple(v.shape)} and {tuple(u.shape)}"
        )
    check_labels("labels", labels, len(v))
