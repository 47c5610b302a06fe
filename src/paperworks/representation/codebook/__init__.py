"""Codebook features: hidden states of a network as a few discrete codes a position.

Tamkin, Taufeeque and Goodman 2023, "Codebook Features: Sparse and Discrete Interpretability for
Neural Networks", arXiv 2310.17230 (ICML 2024).

`wrap_codebooks` puts codebooks into a transformer; after fine-tuning with `codebook_param_groups`,
`record_codes` lists what each code fires on, and `steer` forces codes while the network generates.
`CodebookLayer` and `GroupCodebook` are the layers, for networks of your own; `nearest_codes` is
their look-up. `FiniteStateMachine` makes the paper's test data, where the right answer is known.
"""

from paperworks.representation.codebook.layers import CodebookLayer, GroupCodebook, nearest_codes
from paperworks.representation.codebook.machine import FiniteStateMachine, js_divergence
from paperworks.representation.codebook.reading import (
    CodeTable,
    neuron_precision_at_recall,
    record_codes,
)
from paperworks.representation.codebook.steering import CodeEdit, steer
from paperworks.representation.codebook.wrapping import (
    CodebookModel,
    Site,
    codebook_param_groups,
    initialize_codes_,
    load_codebooks,
    replace_unused_codes_,
    wrap_codebooks,
)

__all__ = [
    "CodeEdit",
    "CodeTable",
    "CodebookLayer",
    "CodebookModel",
    "FiniteStateMachine",
    "GroupCodebook",
    "Site",
    "codebook_param_groups",
    "initialize_codes_",
    "js_divergence",
    "load_codebooks",
    "nearest_codes",
    "neuron_precision_at_recall",
    "record_codes",
    "replace_unused_codes_",
    "steer",
    "wrap_codebooks",
]
