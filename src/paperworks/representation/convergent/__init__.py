"""Which units of two networks correspond: one to one, few to one, or as groups.

Li, Yosinski, Clune, Lipson & Hopcroft 2015, "Convergent Learning: Do different neural networks
learn the same representations?", arXiv 1511.07543 (ICLR 2016).

One number such as CKA says how alike two layers are and names no unit. Here `correlation` or
`mutual_information` compares every unit of network A with every unit of B, `match_units` pairs them
up, `SparsePrediction` finds the few units of A that together make one of B, `spectral_matching`
finds groups that span much the same, and `align_model` puts B's units into A's order.

Activations have a row an observation and a column a unit, the rows of both networks in the same
order: `paperworks.common.collect_activations` with `transform=unit_rows` gives them. A loader that
shuffles destroys the order, and the correlation of 0 that follows looks like a finding.
"""

from paperworks.representation.convergent.alignment import align_model
from paperworks.representation.convergent.correlations import CorrelationAccumulator, correlation
from paperworks.representation.convergent.information import mutual_information
from paperworks.representation.convergent.matching import Matching, match_units
from paperworks.representation.convergent.prediction import SparsePrediction
from paperworks.representation.convergent.spectral import cluster_tree, spectral_matching

__all__ = [
    "CorrelationAccumulator",
    "Matching",
    "SparsePrediction",
    "align_model",
    "cluster_tree",
    "correlation",
    "match_units",
    "mutual_information",
    "spectral_matching",
]
