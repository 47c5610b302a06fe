"""Where a trained network may be cut: embedding, blocks, head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.common.activations import evaluating, find_modules, first_tensor
from paperworks.nets import ResidualMLP

Part = str | nn.Module
"""A submodule's name, or a module."""

GATHERING = (
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.Flatten,
    nn.Dropout,
)
"""What a head in an `nn.Sequential` begins with."""


class Chain(nn.Module):
    """Embedding, blocks one after another, head.

        `h_0 = embed(inputs)`, `h_{j+1} = block_j(h_j)`, `head(h_L)`

    `StitchableNetwork.materialize` returns one.

    Args:
        embed: takes the inputs, and gives h_0, or `(h_0, context)` with a dict of arguments that
            every block is called with beside h, an attention mask say.
        blocks: each gives h, or a tuple that starts with it.
        head: takes the last h alone.
    """

    def __init__(self, embed: nn.Module, blocks: Iterable[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.embed = embed
        self.blocks = nn.ModuleList(blocks)
        self.head = head

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return run_chain(self.embed, self.blocks, self.head, *args, **kwargs)


class AnchorAdapter(Chain):
    """A trained network as a chain of blocks, so that it can be stitched to its like.

    It holds the model's own modules and copies nothing; called, it computes what the model does.
    `AnchorAdapter.of` cuts the networks that it knows without being told where.

    Args:
        model: where the names are looked up.
        embed: name of a submodule, or a module: see `Chain`. What is no submodule of the model,
            such as one that takes its first token, is written as a module over submodules.
        blocks: a container whose children are the blocks, or its name; or a list of names or
            modules. In a hierarchical network some items are themselves lists: these are its
            stages, and what stands between them, such as a patch merging, belongs to none. All
            blocks of a stage must work on one grid. Stitches lie inside stages, not in the last.
        head: as `embed`; takes the last block's output.
        channels_last: whether the last dimension of what the blocks pass on is its width, or the
            second. By default the second where blocks hold convolutions over all dimensions behind
            it, else the last.

    Attributes:
        stages: for each stage the range of its blocks.

    Raises:
        ValueError: a name that the model does not have, no blocks, an empty stage, a model that
            `of` does not know.
        TypeError: something that is neither a name nor a module.

    Source: arXiv 2302.06586, section 3.2; the form of the cut is ours.

    >>> mlp = nn.Sequential(
    ...     nn.Flatten(), nn.Linear(64, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 10)
    ... )
    >>> anchor = AnchorAdapter(mlp, nn.Sequential(mlp[0], mlp[1]), ["2", "3"], "4")
    >>> x = torch.rand(5, 1, 8, 8)
    >>> anchor.stages, torch.equal(anchor(x), mlp(x))
    ([range(0, 2)], True)
    """

    def __init__(
        self,
        model: nn.Module,
        embed: Part,
        blocks: Part | Sequence[Part | Sequence[Part]],
        head: Part,
        *,
        channels_last: bool | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        groups = _groups(model, blocks)
        flat = [block for group, _ in groups for block in group]
        super().__init__(_part(model, embed, "embed"), flat, _part(model, head, "head"))
        self.channels_last = channels_last
        self.stages = _stages(groups)
        self.training = model.training

    @classmethod
    def of(cls, model: nn.Module) -> AnchorAdapter:
        """The cut of a network that is known.

        - `nets.ResidualMLP`: its blocks.
        - `nn.Sequential`: a module with a matrix or kernel (a linear layer, a convolution, a nested
          block) begins a block, and what follows without one belongs to it. The first is the
          embedding; the last, with pooling, flattening and dropout before it, the head.
        - ViT, DeiT and BERT of `transformers`, bare or as classifiers: their layers. The anchor
          returns the tensor that counts, logits or the last hidden state, and takes pixel values,
          or token ids with a mask, kinds and positions.

        An `AnchorAdapter` is returned as it is.

        Raises:
            ValueError: any other model; a chain with fewer than three such modules.
            TypeError: the model is no module.

        >>> chain = nn.Sequential(
        ...     nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)
        ... )
        >>> [len(part) for part in AnchorAdapter.of(chain).blocks]
        [2]
        """
        if isinstance(model, AnchorAdapter):
            return model
        if isinstance(model, ResidualMLP):
            return cls(model, "embed", "blocks", nn.Sequential(model.norm, model.head))
        if isinstance(model, nn.Sequential):
            return cls(model, *_cut_sequential(model))
        if not isinstance(model, nn.Module):
            raise TypeError(f"an anchor must be a torch.nn.Module, got {type(model).__name__}")
        return cls(model, *_cut_transformer(model))

    def is_channels_last(self, h: Tensor) -> bool:
        """Whether the last dimension of h, what a block passes on, is its width."""
        if self.channels_last is not None or h.dim() < 3:
            return self.channels_last is not False
        return not any(
            isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
            and len(module.kernel_size) == h.dim() - 2
            for module in self.blocks.modules()
        )


def run_chain(
    embed: nn.Module, blocks: Iterable[nn.Module], head: nn.Module, *args: Any, **kwargs: Any
) -> Any:
    """What a `Chain` of these parts returns."""
    h, context = embedded(embed, *args, **kwargs)
    for block in blocks:
        h = passed_on(block(h, **context))
    return head(h)


def embedded(embed: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, dict[str, Any]]:
    """h_0, and what blocks are told beside it."""
    start = embed(*args, **kwargs)
    if isinstance(start, tuple) and len(start) == 2 and isinstance(start[1], dict):
        return passed_on(start[0]), start[1]
    return passed_on(start), {}


def passed_on(output: Any) -> Tensor:
    h = first_tensor(output)
    if h is None:
        raise TypeError(
            "an embedding or block must give a tensor, or a tuple that starts with one, got "
            f"{type(output).__name__}"
        )
    return h


@torch.no_grad()
def trace(anchor: AnchorAdapter, *args: Any, **kwargs: Any) -> tuple[list[Tensor], dict[str, Any]]:
    """h_0 to h_L in evaluation mode, and the context: block j takes h_j and gives h_{j+1}."""
    with evaluating(anchor):
        h, context = embedded(anchor.embed, *args, **kwargs)
        states = [h.clone()]  # a later block may work in place
        for block in anchor.blocks:
            h = passed_on(block(h, **context))
            states.append(h.clone())
    return states, context


def _part(model: nn.Module, part: Part, what: str) -> nn.Module:
    if isinstance(part, str):
        return find_modules(model, [part], what)[part]
    if isinstance(part, nn.Module):
        return part
    raise TypeError(f"{what} must be a submodule's name or a module, got {type(part).__name__}")


def _groups(
    model: nn.Module, blocks: Part | Sequence[Part | Sequence[Part]]
) -> list[tuple[list[nn.Module], bool]]:
    """Blocks that stand together, and whether they are a stage."""
    if isinstance(blocks, str | nn.Module):
        items: list[Any] = list(_part(model, blocks, "blocks").children())
    elif isinstance(blocks, Sequence):
        items = list(blocks)
    else:
        raise TypeError(f"blocks must be a container or a list, got {type(blocks).__name__}")
    if not any(isinstance(item, list | tuple) for item in items):
        items = [items]
    groups = []
    for item in items:
        is_stage = isinstance(item, list | tuple)
        found = [_part(model, part, "block") for part in (item if is_stage else [item])]
        if not found:
            raise ValueError(f"blocks must have at least one block in each stage, got {blocks!r}")
        groups.append((found, is_stage))
    return groups


def _stages(groups: list[tuple[list[nn.Module], bool]]) -> list[range]:
    stages, start = [], 0
    for group, is_stage in groups:
        if is_stage:
            stages.append(range(start, start + len(group)))
        start += len(group)
    return stages


def _cut_sequential(model: nn.Sequential) -> tuple[nn.Module, list[Part], nn.Module]:
    children = list(model)
    starts = [i for i, child in enumerate(children) if any(p.dim() > 1 for p in child.parameters())]
    if len(starts) < 3:
        raise ValueError(
            f"an nn.Sequential needs three modules with weights or more, got {len(starts)}: the "
            "first embeds, the last is the head; or say where to cut with AnchorAdapter(...)"
        )
    while isinstance(children[starts[-1] - 1], GATHERING):
        starts[-1] -= 1
    edges = [0, *starts[1:], len(children)]
    parts = [_joined(children[a:b]) for a, b in pairwise(edges)]
    return parts[0], list(parts[1:-1]), parts[-1]


def _joined(modules: list[nn.Module]) -> nn.Module:
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)


# --- transformers ---------------------------------------------------------------------------------


class _PictureEmbedding(nn.Module):
    def __init__(self, embeddings: nn.Module) -> None:
        super().__init__()
        self.embeddings = embeddings

    def forward(self, pixel_values: Tensor) -> Tensor:
        dtype = next(self.embeddings.parameters()).dtype
        return self.embeddings(pixel_values.to(dtype))


class _TextEmbedding(nn.Module):
    """Token embeddings, and the mask in the form that the layers take."""

    def __init__(self, embeddings: nn.Module, config: Any) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.config = config

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        from transformers.masking_utils import create_bidirectional_mask

        h = self.embeddings(
            input_ids=input_ids, token_type_ids=token_type_ids, position_ids=position_ids
        )
        mask = create_bidirectional_mask(self.config, h, attention_mask)
        return h, {"attention_mask": mask}


class _FirstTokens(nn.Module):
    """The mean of what each classifier says of its token: the first of the class token, ..."""

    def __init__(self, norm: nn.Module, classifiers: list[nn.Module]) -> None:
        super().__init__()
        self.norm = norm
        self.classifiers = nn.ModuleList(classifiers)

    def forward(self, h: Tensor) -> Tensor:
        tokens = self.norm(h).unbind(1)
        said = [classifier(token) for classifier, token in zip(self.classifiers, tokens)]
        return said[0] if len(said) == 1 else sum(said[1:], said[0]) / len(said)


def _norm(model: Any) -> nn.Module:
    return model.layernorm


def _classifier(model: Any) -> nn.Module:
    return _FirstTokens(model.base_model.layernorm, [model.classifier])


def _two_classifiers(model: Any) -> nn.Module:
    both = [model.cls_classifier, model.distillation_classifier]
    return _FirstTokens(model.base_model.layernorm, both)


def _pooled(model: Any) -> nn.Module:
    return nn.Sequential(model.base_model.pooler, model.dropout, model.classifier)


HEADS: dict[str, Callable[[Any], nn.Module]] = {
    "ViTModel": _norm,
    "DeiTModel": _norm,
    "BertModel": lambda model: nn.Identity(),
    "ViTForImageClassification": _classifier,
    "DeiTForImageClassification": _classifier,
    "DeiTForImageClassificationWithTeacher": _two_classifiers,
    "BertForSequenceClassification": _pooled,
}
"""What follows the last layer, by the model's class."""


def _cut_transformer(model: Any) -> tuple[nn.Module, list[nn.Module], nn.Module]:
    kind = next((c.__name__ for c in type(model).__mro__ if c.__name__ in HEADS), None)
    if kind is None:
        raise ValueError(
            f"no ready cut of {type(model).__name__}: say where to cut with "
            "AnchorAdapter(model, embed, blocks, head)"
        )
    base = model.base_model
    embed: nn.Module = _PictureEmbedding(base.embeddings)
    if kind.startswith("Bert"):
        if base.config.is_decoder:
            raise ValueError(f"this {kind} is a decoder, only encoders have a ready cut")
        embed = _TextEmbedding(base.embeddings, base.config)
    layers = base.layers if hasattr(base, "layers") else base.encoder.layer
    return embed, list(layers), HEADS[kind](model)
