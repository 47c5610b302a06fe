"""Scale mixtures of neural network Gaussian processes: wide networks with heavy tails.

Lee, Yun, Yang and Lee 2021, arXiv 2107.01408. Give the weights of a wide network's last layer a
random variance s, and its outputs are no Gaussian process any more, but a mixture of such over s:
with an inverse gamma a Student-t process. `scale_mixture` is that law, `ScaleMixtureRegressor` its
posterior given data, `SVSP` and `ScaleMixtureClassifier` its approximation for classes, and
`HeavyTailedEnsemble` the same for networks of finite width.
"""

from paperworks.wide.smnngp.classification import SVSP, ScaleMixtureClassifier
from paperworks.wide.smnngp.distributions import (
    BurrXII,
    Delta,
    GaussianScaleMixture,
    MultivariateStudentT,
    scale_mixture,
)
from paperworks.wide.smnngp.kernel import NNGPKernel
from paperworks.wide.smnngp.networks import HeavyTailedEnsemble, scale_last_layer_
from paperworks.wide.smnngp.regression import ScaleMixtureRegressor

__all__ = [
    "SVSP",
    "BurrXII",
    "Delta",
    "GaussianScaleMixture",
    "HeavyTailedEnsemble",
    "MultivariateStudentT",
    "NNGPKernel",
    "ScaleMixtureClassifier",
    "ScaleMixtureRegressor",
    "scale_last_layer_",
    "scale_mixture",
]
