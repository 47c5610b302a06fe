"""Forcing codes while a network runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from paperworks.representation.codebook.layers import ABSENT, BLOCKED, GroupCodebook
from paperworks.representation.codebook.wrapping import Codebook, CodebookModel, check_model

Positions = int | slice | Sequence[int] | Tensor


@dataclass(frozen=True, eq=False)
class CodeEdit:
    """One change of codes for `steer`.

    Args:
        site: a name in `model.codebooks`.
        code: the code to force; -1 blocks the slot: it adds nothing and still counts in the mean.
            Or ids that broadcast to those it replaces, such as the `ids` of another input: shape
            (batch, length), with slot="all" (batch, length, k), in a group without `head` with one
            more dimension G before k.
        positions: of the whole text, from 0, those in the cache included; all without. A position,
            several, a slice such as `slice(5, None)`, or a boolean mask, (length,) or (batch,
            length), False beyond its end.
        slot: which of the k codes, the most similar is 0. -1, the least similar, changes least;
            "all" replaces all k, "append" adds one more (the mean is then over k + 1, our reading).
        head: of a group of code books, which one; all without.
    """

    site: str
    code: int | Tensor
    positions: Positions | None = None
    slot: int | Literal["all", "append"] = -1
    head: int | None = None


@contextmanager
def steer(model: CodebookModel, edits: Sequence[CodeEdit]) -> Iterator[CodebookModel]:
    """Force codes inside the block: every forward, and `generate`, runs with them.

    What the codebook layer puts out is computed anew from the changed codes; later layers choose
    theirs freely. Edits apply in order, later ones over earlier ones, and inner blocks over outer
    ones. arXiv 2310.17230, section 2 ("controlling").

    Args:
        model: in evaluation mode, with codebooks enabled.
        edits: what to force where.

    Yields:
        The model.

    Raises:
        TypeError: model has no codebooks, or an edit is no `CodeEdit`.
        ValueError: model is in training mode or its codebooks are disabled; a site, code, slot,
            head or position that does not exist. In a forward: ids of another shape, or positions
            where activations are not (batch, length, width).

    >>> from paperworks.nets import causal_lm
    >>> from paperworks.representation import wrap_codebooks
    >>> model = wrap_codebooks(causal_lm("gpt2", 11, 16, 2, 2, 8), num_codes=20)
    >>> prompt = torch.tensor([[1, 2]])
    >>> with steer(model, [CodeEdit("mlp_0", code=7, positions=slice(2, None))]):
    ...     text = model.generate(prompt, max_new_tokens=3, do_sample=False)
    >>> text.shape, model.codebooks["mlp_0"].ids
    (torch.Size([1, 5]), tensor([[[7]]]))
    """
    check_model(model)
    if model.training:
        raise ValueError("model is in training mode: steer needs model.eval()")
    if not model.enabled:
        raise ValueError("the model's codebooks are disabled: call model.enable()")
    for edit in edits:
        _check(model, edit)
    before = {name: codebook.edit for name, codebook in model.codebooks.items()}
    try:
        for edit in edits:
            codebook: Any = model.codebooks[edit.site]
            codebook.edit = _Edit(edit, codebook, model._now, codebook.edit)
        yield model
    finally:
        for name, earlier in before.items():
            codebook = model.codebooks[name]
            codebook.edit = earlier


class _Edit:
    """Changes ids, after what an earlier edit has changed."""

    def __init__(self, edit: CodeEdit, codebook: Codebook, now: Any, earlier: Any) -> None:
        self.edit, self.now, self.earlier = edit, now, earlier
        self.grouped = isinstance(codebook, GroupCodebook)

    def __call__(self, ids: Tensor) -> Tensor:
        ids = (ids if self.earlier is None else self.earlier(ids)).clone()
        if self.edit.slot == "append":
            ids = torch.cat([ids, torch.full_like(ids[..., :1], ABSENT)], -1)
        part = self._part(ids)
        where = self._where(ids)
        while where.dim() < part.dim():
            where = where.unsqueeze(-1)
        part.copy_(torch.where(where, self._codes(part), part))
        return ids

    def _part(self, ids: Tensor) -> Tensor:
        """A view of what is replaced."""
        if self.edit.head is not None:
            ids = ids[..., self.edit.head, :]
        slot = self.edit.slot
        return ids if slot == "all" else ids[..., -1 if slot == "append" else slot]

    def _codes(self, part: Tensor) -> Tensor:
        codes = torch.as_tensor(self.edit.code, device=part.device)
        try:
            return codes.expand_as(part)
        except RuntimeError:
            raise ValueError(
                f"code of site {self.edit.site!r} must broadcast to {tuple(part.shape)}, got "
                f"{tuple(codes.shape)}"
            ) from None

    def _where(self, ids: Tensor) -> Tensor:
        """Which positions: (length,) or (batch, length), or everything."""
        positions, past = self.edit.positions, self.now.past
        lead = ids.shape[: -2 if self.grouped else -1]
        if positions is None:
            return torch.ones(lead, dtype=torch.bool, device=ids.device)
        if len(lead) != 2:
            raise ValueError(
                f"positions need activations (batch, length, width), site {self.edit.site!r} has "
                f"{tuple(lead)} before the width"
            )
        here = torch.arange(past, past + lead[1], device=ids.device)
        if isinstance(positions, Tensor) and positions.dtype == torch.bool:
            short = max(0, past + lead[1] - positions.shape[-1])
            mask = torch.nn.functional.pad(positions.to(ids.device), (0, short))
            return mask[..., past : past + lead[1]].expand(lead)
        if isinstance(positions, slice):
            positions = torch.arange(past + lead[1])[positions]
        listed = torch.as_tensor(positions, device=ids.device).reshape(-1)
        return torch.isin(here, listed).expand(lead)


def _check(model: CodebookModel, edit: CodeEdit) -> None:
    if not isinstance(edit, CodeEdit):
        raise TypeError(f"edits must be CodeEdit, got {type(edit).__name__}")
    if edit.site not in model.codebooks:
        raise ValueError(f"no site {edit.site!r}: choose from {', '.join(model.codebooks)}")
    codebook: Any = model.codebooks[edit.site]
    codes = torch.as_tensor(edit.code)
    if codes.dtype != torch.long or codes.numel() == 0:
        raise ValueError(f"code must be an integer or a LongTensor, got {edit.code!r}")
    if codes.min() < BLOCKED or codes.max() >= codebook.num_codes:
        raise ValueError(
            f"code must be from -1 to {codebook.num_codes - 1} at {edit.site!r}, got "
            f"{int(codes.min())} to {int(codes.max())}"
        )
    numbered = isinstance(edit.slot, int) and -codebook.k <= edit.slot < codebook.k
    if not numbered and edit.slot not in ("all", "append"):
        raise ValueError(f"slot must be below k={codebook.k}, 'all' or 'append', got {edit.slot!r}")
    heads = codebook.groups if isinstance(codebook, GroupCodebook) else 0
    if edit.head is not None and not 0 <= edit.head < heads:
        raise ValueError(f"site {edit.site!r} has {heads} heads, got head {edit.head}")
    _check_positions(edit.positions)


def _check_positions(positions: Positions | None) -> None:
    if isinstance(positions, slice):
        ends = [end for end in (positions.start, positions.stop) if end is not None]
        if any(end < 0 for end in ends):
            raise ValueError(f"positions count from the start of the text, got {positions!r}")
    elif positions is not None:
        listed = torch.as_tensor(positions)
        if listed.dtype == torch.bool:
            if listed.dim() not in (1, 2):
                raise ValueError(
                    "a mask of positions is (length,) or (batch, length), got "
                    f"{tuple(listed.shape)}"
                )
        elif listed.dtype != torch.long or (listed < 0).any():
            raise ValueError(
                f"positions must be integers from the start of the text, got {positions!r}"
            )
