"""SortedNet: one training run, one set of weights, and every smaller network inside it.

Valipour et al. 2023, arXiv 2309.00255. `to_sorted` converts a network, `SortedTrainer` trains it at
all of its sizes, `SortedModel.materialize` cuts one out. The layers are there for networks of your
own.
"""

from paperworks.compress.sortednet.attention import SortedMultiheadAttention
from paperworks.compress.sortednet.convert import to_sorted
from paperworks.compress.sortednet.layers import (
    SortedBatchNorm1d,
    SortedBatchNorm2d,
    SortedConv1d,
    SortedConv2d,
    SortedInstanceNorm2d,
    SortedLayerNorm,
    SortedLinear,
)
from paperworks.compress.sortednet.model import SortedModel
from paperworks.compress.sortednet.spec import SortedSpec
from paperworks.compress.sortednet.trainer import SortedTrainer

__all__ = [
    "SortedBatchNorm1d",
    "SortedBatchNorm2d",
    "SortedConv1d",
    "SortedConv2d",
    "SortedInstanceNorm2d",
    "SortedLayerNorm",
    "SortedLinear",
    "SortedModel",
    "SortedMultiheadAttention",
    "SortedSpec",
    "SortedTrainer",
    "to_sorted",
]
