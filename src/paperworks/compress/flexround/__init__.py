"""FlexRound: learnable rounding by element-wise division, for post-training quantisation.

Lee, Kim, Kwon, Lee 2023, ICML, arXiv 2306.00317. `reconstruct_` does the whole job on a network;
`FlexRound` is one weight's parametrisation, `AdaRound`, `AdaQuant` and `RoundToNearest` are its
rivals on the same grid.
"""

from paperworks.compress.flexround.folding import fold_batchnorm
from paperworks.compress.flexround.grid import IntegerWeight, fit_scale, quant_range
from paperworks.compress.flexround.reconstruction import (
    BlockReport,
    Reconstruction,
    reconstruct_,
)
from paperworks.compress.flexround.rounding import (
    AdaQuant,
    AdaRound,
    FlexRound,
    Rounding,
    RoundToNearest,
    bake_,
)
from paperworks.compress.flexround.storage import float_state_dict, integer_state_dict

__all__ = [
    "AdaQuant",
    "AdaRound",
    "BlockReport",
    "FlexRound",
    "IntegerWeight",
    "Reconstruction",
    "RoundToNearest",
    "Rounding",
    "bake_",
    "fit_scale",
    "float_state_dict",
    "fold_batchnorm",
    "integer_state_dict",
    "quant_range",
    "reconstruct_",
]
