"""A smaller ordinary architecture for a trained network, found by policy gradient.

Ashok, Rhinehart, Beainy and Kitani 2018, "N2N Learning: Network to Network Compression via Policy
Gradient Reinforcement Learning", arXiv 1709.06030. `N2N` is the search, `random_architectures` the
same by chance. Its pieces work alone: `describe_layers`, `RemovalPolicy` and `ShrinkagePolicy`,
`apply_removal` and `apply_shrinkage`, `compression_reward`, `Reinforce`, `distill`.
"""

from paperworks.compress.n2n.children import (
    apply_removal,
    apply_shrinkage,
    architecture,
    default_frozen,
    describe_layers,
)
from paperworks.compress.n2n.policies import (
    CODE_RATIOS,
    PAPER_RATIOS,
    Reinforce,
    RemovalPolicy,
    ShrinkagePolicy,
)
from paperworks.compress.n2n.search import (
    N2N,
    Rollout,
    SearchResult,
    compression_reward,
    distill,
    random_architectures,
)

__all__ = [
    "CODE_RATIOS",
    "N2N",
    "PAPER_RATIOS",
    "Reinforce",
    "RemovalPolicy",
    "Rollout",
    "SearchResult",
    "ShrinkagePolicy",
    "apply_removal",
    "apply_shrinkage",
    "architecture",
    "compression_reward",
    "default_frozen",
    "describe_layers",
    "distill",
    "random_architectures",
]
