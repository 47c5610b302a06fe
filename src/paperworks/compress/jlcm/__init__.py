"""Weights as indices into small codebooks, with codebooks and mappings learned together.

Yvinec, Dapogny, Bailly 2023, ICLR 2024, arXiv 2309.17361. `learn_codebooks` does the whole job on a
network and `load_codebooks` reads what was saved of it; `LearnableCodebook` is one weight's
parametrisation, `CodebookLinear` and its like are what is kept. The paper's equations were not
available: what its abstract, reviews and figure captions leave open is our reading, and marked.
"""

from paperworks.compress.jlcm.clustering import group_neurons, kmeans1d
from paperworks.compress.jlcm.layers import (
    CodebookConv1d,
    CodebookConv2d,
    CodebookConv3d,
    CodebookLinear,
    load_codebooks,
)
from paperworks.compress.jlcm.learning import (
    CodebookWeight,
    LearnableCodebook,
    exponential_proximity,
    inverse_proximity,
)
from paperworks.compress.jlcm.permutation import RowPermutation, permute_neurons
from paperworks.compress.jlcm.reconstruction import learn_codebooks

__all__ = [
    "CodebookConv1d",
    "CodebookConv2d",
    "CodebookConv3d",
    "CodebookLinear",
    "CodebookWeight",
    "LearnableCodebook",
    "RowPermutation",
    "exponential_proximity",
    "group_neurons",
    "inverse_proximity",
    "kmeans1d",
    "learn_codebooks",
    "load_codebooks",
    "permute_neurons",
]
