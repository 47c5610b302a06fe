"""Stitchable networks: trained networks of one family joined into one of selectable cost.

Pan, Cai, Zhuang 2023, CVPR, arXiv 2302.06586. `StitchableNetwork` does the whole job on trained
networks, `stitch_finetune` trains it, `pareto_front` keeps what is worth running; `AnchorAdapter`
says where a network of your own may be cut.
"""

from paperworks.compress.snnet.anchors import AnchorAdapter, Chain
from paperworks.compress.snnet.enumeration import (
    StitchConfig,
    paired_stitches,
    unpaired_stitches,
)
from paperworks.compress.snnet.layers import StitchLayer, fit_stitch
from paperworks.compress.snnet.network import StitchableNetwork
from paperworks.compress.snnet.training import StitchHistory, pareto_front, stitch_finetune

__all__ = [
    "AnchorAdapter",
    "Chain",
    "StitchConfig",
    "StitchHistory",
    "StitchLayer",
    "StitchableNetwork",
    "fit_stitch",
    "paired_stitches",
    "pareto_front",
    "stitch_finetune",
    "unpaired_stitches",
]
