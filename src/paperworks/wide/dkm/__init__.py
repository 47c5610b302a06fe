"""Deep kernel machines: Gram matrices that are learned layer by layer, without features.

Yang, Robeyns, Milsom, Anson, Schoots and Aitchison 2021, "A theory of representation learning gives
a deep generalisation of kernel methods", arXiv 2108.13097. In a deep Gaussian process whose layers
and labels are both multiplied, the posterior over features becomes Gaussian, with the Gram
matrices that maximise the objective of `dkm_objective`. `DeepKernelMachine` finds them for all
training rows; `SparseDKM` and the estimators on it for inducing points, at a cost linear in the
data; `sample_dgp_grams` draws from the processes of finite width.
"""

from paperworks.wide.dkm.estimators import (
    DeepKernelMachine,
    SparseDKMClassifier,
    SparseDKMRegressor,
)
from paperworks.wide.dkm.full import DGPSamples, dkm_objective, sample_dgp_grams
from paperworks.wide.dkm.grams import (
    Gram,
    GramKernel,
    LinearKernel,
    ReLUKernel,
    SqExpKernel,
    gaussian_kl,
)
from paperworks.wide.dkm.layers import (
    GaussianLikelihood,
    GramLayer,
    InducingInput,
    SoftmaxLikelihood,
    SparseDKM,
    SVGPOutput,
    dkm_regularizer,
)

__all__ = [
    "DGPSamples",
    "DeepKernelMachine",
    "GaussianLikelihood",
    "Gram",
    "GramKernel",
    "GramLayer",
    "InducingInput",
    "LinearKernel",
    "ReLUKernel",
    "SVGPOutput",
    "SoftmaxLikelihood",
    "SparseDKM",
    "SparseDKMClassifier",
    "SparseDKMRegressor",
    "SqExpKernel",
    "dkm_objective",
    "dkm_regularizer",
    "gaussian_kl",
    "sample_dgp_grams",
]
