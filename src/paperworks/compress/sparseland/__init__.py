"""Sparse networks before, during and after training, with comparable budgets.

Liu and Wang 2023, "Ten Lessons We Have Learned in the New Sparseland", arXiv 2302.02596. The
handbook proposes no method; it tells apart what gets mixed up. Here are the methods it tells apart:
`layer_densities` (how much each layer keeps), `scores` and `make_masks` (which weights, in what
structure), `Masks` (holding a model to them), and when: `prune_at_init` before training,
`GradualPruning` and `DynamicSparsity` during, `scores(model, "magnitude")` and `lottery_ticket`
after. "Density" is the kept fraction, everywhere. `remove_channels` makes a masked network small.
"""

from paperworks.compress.sparseland.before import lottery_ticket, prune_at_init
from paperworks.compress.sparseland.densities import layer_densities, prunable
from paperworks.compress.sparseland.during import (
    DynamicSparsity,
    GradualPruning,
    Phase,
    training_macs,
)
from paperworks.compress.sparseland.hardware import to_2_4
from paperworks.compress.sparseland.masks import Masks, make_masks
from paperworks.compress.sparseland.scoring import scores
from paperworks.compress.sparseland.storage import dense_state_dict, sparse_state_dict

__all__ = [
    "DynamicSparsity",
    "GradualPruning",
    "Masks",
    "Phase",
    "dense_state_dict",
    "layer_densities",
    "lottery_ticket",
    "make_masks",
    "prunable",
    "prune_at_init",
    "scores",
    "sparse_state_dict",
    "to_2_4",
    "training_macs",
]
