"""Deep networks at criticality: which variances let signals and gradients survive depth.

Roberts, Yaida and Hanin 2021, "The Principles of Deep Learning Theory", arXiv 2106.10165.
`criticality` gives the variances for an activation and `init_critical_` draws them, `diagnose`
says how a network will fare, `kernel_flow`, `vertex_flow` and `ntk_flow` what theory predicts.
"""

from paperworks.wide.pdlt.critical import (
    Criticality,
    criticality,
    gaussian_mean,
    gaussian_mean2,
    optimal_aspect_ratio,
    susceptibilities,
)
from paperworks.wide.pdlt.flows import kernel_flow, layer_learning_rates, ntk_flow, vertex_flow
from paperworks.wide.pdlt.networks import diagnose, init_critical_

__all__ = [
    "Criticality",
    "criticality",
    "diagnose",
    "gaussian_mean",
    "gaussian_mean2",
    "init_critical_",
    "kernel_flow",
    "layer_learning_rates",
    "ntk_flow",
    "optimal_aspect_ratio",
    "susceptibilities",
    "vertex_flow",
]
