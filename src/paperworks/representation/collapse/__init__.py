"""How far the last layers of a classifier have collapsed, and toward which geometry.

Dang, Tran, Osher, Tran-The, Ho and Nguyen 2023, "Neural Collapse in Deep Linear Networks: From
Balanced to Imbalanced Data", arXiv 2301.00437. `collapse_metrics` and `layerwise_collapse` measure
a network; `gof_optimum`, `mse_bias_optimum`, `ce_etf_point` and `minority_threshold` say in closed
form what it should tend to; `UnconstrainedFeatures` and `peeled_decay_loss` train toward it.
"""

from paperworks.representation.collapse.metrics import collapse_metrics, layerwise_collapse
from paperworks.representation.collapse.optima import (
    ETF,
    GOF,
    ce_etf_point,
    gof_matrices,
    gof_optimum,
    minority_threshold,
    mse_bias_optimum,
)
from paperworks.representation.collapse.training import UnconstrainedFeatures, peeled_decay_loss

__all__ = [
    "ETF",
    "GOF",
    "UnconstrainedFeatures",
    "ce_etf_point",
    "collapse_metrics",
    "gof_matrices",
    "gof_optimum",
    "layerwise_collapse",
    "minority_threshold",
    "mse_bias_optimum",
    "peeled_decay_loss",
]
