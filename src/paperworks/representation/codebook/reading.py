"""What codes fire on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paperworks.common.activations import Batch, collect_activations
from paperworks.representation.codebook.layers import GroupCodebook
from paperworks.representation.codebook.wrapping import CodebookModel, check_model


@dataclass(frozen=True, eq=False)
class CodeTable:
    """Which codes were active at each of N positions; `record_codes` makes it.

    Attributes:
        ids: by site, LongTensor (N, k), or (N, G, k) of a group of code books.
        num_codes: by site, C.
        tokens: the token at each position (N,); None where the model was not fed tokens.
    """

    ids: dict[str, Tensor]
    num_codes: dict[str, int]
    tokens: Tensor | None = None

    def __len__(self) -> int:
        return len(next(iter(self.ids.values())))

    def fires(self, site: str, code: int, head: int | None = None) -> Tensor:
        """Whether the code is active, at each position: boolean (N,)."""
        ids = self._at(site)
        if ids.dim() == 3:
            if head is None or not 0 <= head < ids.shape[1]:
                raise ValueError(f"site {site!r} has {ids.shape[1]} heads, got head {head!r}")
            ids = ids[:, head]
        elif head is not None:
            raise ValueError(f"site {site!r} has one code book and no heads, got head {head!r}")
        return (ids == code).any(-1)

    def counts(self, site: str, where: Tensor | None = None) -> Tensor:
        """At how many positions (of those in the boolean `where`) each code is active.

        Returns:
            LongTensor (C,), or (G, C).
        """
        ids = self._at(site)
        ids = ids if where is None else ids[self._mask("where", where)]
        lead = ids.shape[1:-1]
        flat = ids + self._starts(site, ids)
        size = max(1, lead.numel()) * self.num_codes[site]
        return torch.bincount(flat.flatten(), minlength=size).view(*lead, self.num_codes[site])

    def precision_recall(self, property_mask: Tensor, site: str) -> tuple[Tensor, Tensor]:
        """Each code as a classifier of a property of positions.

        Precision: of the positions where the code is active, the share that have the property.
        Recall: of the positions that have it, the share where the code is active.

        Args:
            property_mask: boolean (N,).
            site: whose codes.

        Returns:
            precision and recall, each (C,) or (G, C); 0 for codes that are never active.

        Raises:
            ValueError: an unknown site, a mask of another shape or dtype, or no position has the
                property.

        >>> table = CodeTable({"mlp_0": torch.tensor([[0], [0], [1], [0]])}, {"mlp_0": 3})
        >>> table.precision_recall(torch.tensor([True, True, True, False]), "mlp_0")
        (tensor([0.6667, 1.0000, 0.0000]), tensor([0.6667, 0.3333, 0.0000]))
        """
        mask = self._mask("property_mask", property_mask)
        if not mask.any():
            raise ValueError("property_mask: no position has the property")
        hits = self.counts(site, mask)
        return hits / self.counts(site).clamp(min=1), hits / mask.sum()

    def purity(self, labels: Tensor, site: str) -> Tensor:
        """The largest share of a code's positions that have one label; 0 for dead codes.

        With the pair of tokens that ends at a position as its label: 1 for a code that fires on a
        single bigram, as the paper counts them.

        Args:
            labels: LongTensor (N,), numbered from 0.
            site: whose codes.

        Returns:
            (C,) or (G, C).

        Raises:
            ValueError: an unknown site, or labels that are not one integer from 0 a position.
        """
        ids = self._at(site)
        if labels.shape != (len(self),) or labels.dtype != torch.long or (labels < 0).any():
            raise ValueError(
                f"labels must hold an integer from 0 for each of {len(self)} positions"
            )
        flat = ids + self._starts(site, ids)
        kinds = int(labels.max()) + 1
        pairs, counts = torch.unique(
            flat * kinds + labels.view(-1, *[1] * (ids.dim() - 1)), return_counts=True
        )
        total = self.counts(site)
        most = torch.zeros(total.numel(), dtype=torch.long)
        most.scatter_reduce_(0, pairs // kinds, counts, "amax")
        return most.view_as(total) / total.clamp(min=1)

    def tokens_of(self, code: int, site: str, head: int | None = None) -> dict[int, int]:
        """The tokens at which a code is active, each with how often; the most frequent first.

        Raises:
            ValueError: the table has no tokens, or an unknown site or head.
        """
        if self.tokens is None:
            raise ValueError("the table has no tokens: the model was not fed input_ids")
        tokens, counts = self.tokens[self.fires(site, code, head)].unique(return_counts=True)
        order = counts.argsort(descending=True, stable=True)
        return dict(zip(tokens[order].tolist(), counts[order].tolist()))

    @property
    def dead(self) -> dict[str, Tensor]:
        """By site, which codes are never active: boolean (C,) or (G, C)."""
        return {site: self.counts(site) == 0 for site in self.ids}

    def _at(self, site: str) -> Tensor:
        if site not in self.ids:
            raise ValueError(f"no site {site!r}: choose from {', '.join(self.ids)}")
        return self.ids[site]

    def _mask(self, name: str, mask: Tensor) -> Tensor:
        if mask.shape != (len(self),) or mask.dtype != torch.bool:
            raise ValueError(
                f"{name} must be boolean of shape ({len(self)},), got {mask.dtype} "
                f"{tuple(mask.shape)}"
            )
        return mask

    def _starts(self, site: str, ids: Tensor) -> Tensor:
        """Where the numbers of each head's codes start."""
        heads = ids.shape[1] if ids.dim() == 3 else 1
        starts = torch.arange(heads) * self.num_codes[site]
        return starts.unsqueeze(-1) if ids.dim() == 3 else starts


def record_codes(model: CodebookModel, batches: Tensor | Iterable[Batch]) -> CodeTable:
    """Which codes are active at every position of some data, in evaluation mode.

    Args:
        model: from `wrap_codebooks`, codebooks enabled.
        batches: a tensor (one batch), or an iterable of tensors, of tuples (x, ...) of which x is
            fed, or of dicts of arguments (`input_ids`, `attention_mask`); where that mask is 0,
            positions are left out.

    Returns:
        A `CodeTable`, on the CPU; positions in the order of the data.

    Raises:
        TypeError: model has no codebooks, or a batch is none of the kinds above.
        ValueError: there are no batches, or the codebooks are disabled.

    >>> from paperworks.nets import causal_lm
    >>> from paperworks.representation import wrap_codebooks
    >>> model = wrap_codebooks(causal_lm("gpt2", 11, 16, 2, 2, 8), num_codes=20)
    >>> table = record_codes(model, torch.randint(11, (3, 8)))
    >>> len(table), table.ids["mlp_0"].shape, table.ids["attn_0"].shape
    (24, torch.Size([24, 1]), torch.Size([24, 2, 1]))
    """
    check_model(model)
    if not model.enabled:
        raise ValueError("the model's codebooks are disabled: call model.enable()")
    ids: dict[str, list[Tensor]] = {name: [] for name in model.codebooks}
    tokens: list[Tensor] = []

    def keep(_: Any, batch: Batch) -> None:
        fed, mask = _fed(batch)
        for name, codebook in model.codebooks.items():
            assert isinstance(codebook.ids, Tensor)
            found = codebook.ids.cpu()
            last = -3 if isinstance(codebook, GroupCodebook) else -2
            ids[name].append(found.flatten(0, last) if mask is None else found[mask])
        if fed is not None:
            tokens.append(fed[mask] if mask is not None else fed.flatten())

    paths = [f"codebooks.{name}" for name in model.codebooks]
    collect_activations(model, batches, paths, transform=lambda _: None, reduce=keep)
    return CodeTable(
        {name: torch.cat(parts) for name, parts in ids.items()},
        {name: codebook.num_codes for name, codebook in model.codebooks.items()},  # type: ignore[misc]
        torch.cat(tokens) if tokens else None,
    )


def neuron_precision_at_recall(acts: Tensor, mask: Tensor, recall: float | Tensor) -> Tensor:
    """How precisely neurons can tell a property, when they must find as much of it as a code does.

    A neuron says yes where its activation reaches a threshold. Of all thresholds at which its
    recall is at least `recall`, the one of highest precision counts (at least as good for the
    neuron as the paper's, the threshold that reaches the recall). arXiv 2310.17230, section 3.

    Args:
        acts: activations (N, M) of M neurons, latents, or whatever else has a number a position;
            add their negatives for neurons that may also say yes by being low.
        mask: boolean (N,), which positions have the property; or (P, N), for P properties.
        recall: in [0, 1]; or (P,), one a property.

    Returns:
        The best precision of each neuron, (M,) or (P, M).

    Raises:
        ValueError: shapes that do not fit, a mask that is not boolean, a property that no position
            has, or a recall outside [0, 1].

    >>> acts = torch.tensor([[3.0], [2.0], [1.0], [0.0]])
    >>> mask = torch.tensor([True, False, True, False])
    >>> neuron_precision_at_recall(acts, mask, 0.5), neuron_precision_at_recall(acts, mask, 1.0)
    (tensor([1.]), tensor([0.6667]))
    """
    masks = mask if mask.dim() == 2 else mask.unsqueeze(0)
    recalls = torch.as_tensor(recall, dtype=torch.float64).expand(len(masks))
    if acts.dim() != 2 or masks.shape[1:] != acts.shape[:1] or masks.dtype != torch.bool:
        raise ValueError(
            "acts must be (N, M) and mask boolean (N,) or (P, N), got "
            f"{tuple(acts.shape)} and {mask.dtype} {tuple(mask.shape)}"
        )
    if not masks.any(1).all():
        raise ValueError("mask: a property that no position has")
    if not ((recalls >= 0) & (recalls <= 1)).all():
        raise ValueError(f"recall must lie in [0, 1], got {recall!r}")
    high, order = acts.T.sort(descending=True)  # (M, N)
    last = torch.ones_like(high, dtype=torch.bool)
    last[:, :-1] = high[:, :-1] > high[:, 1:]  # a threshold takes all of equal activation
    said = torch.arange(1, acts.shape[0] + 1, device=acts.device)
    best = []
    for property, wanted in zip(masks, recalls.tolist()):
        hits = property[order].cumsum(1)
        enough = last & (hits >= wanted * property.sum() - 1e-9)
        best.append(torch.where(enough, hits / said, 0).amax(1))
    found = torch.stack(best)
    return found if mask.dim() == 2 else found[0]


def _fed(batch: Batch) -> tuple[Tensor | None, Tensor | None]:
    """Tokens and mask of a batch, if it has them."""
    mask = None
    if isinstance(batch, Mapping):
        mask = batch.get("attention_mask")
        batch = batch.get("input_ids")
    elif isinstance(batch, tuple | list):
        batch = batch[0]
    whole = isinstance(batch, Tensor) and not batch.is_floating_point()
    return (batch.cpu() if whole else None), (None if mask is None else mask.bool().cpu())
