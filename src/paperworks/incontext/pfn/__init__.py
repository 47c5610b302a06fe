"""Prior-data fitted networks: posterior predictive distributions in one forward pass.

Müller, Hollmann, Pineda Arango, Grabocka and Hutter 2021, "Transformers Can Do Bayesian Inference",
arXiv 2112.10510. Bring a prior that can be sampled; `fit_pfn` trains a `PFN` on its tasks;
`PFNClassifier` and `PFNRegressor` use one as scikit-learn does, by default one that is shipped;
`exact_gp_ppd` and `hmc_ppd` say what should come out.
"""

from paperworks.incontext.pfn.bar import BarDistribution, CategoricalHead
from paperworks.incontext.pfn.estimators import PFNClassifier, PFNRegressor
from paperworks.incontext.pfn.model import PFN, load_pfn, save_pfn
from paperworks.incontext.pfn.priors import (
    BNNPrior,
    FunctionPrior,
    GPPrior,
    MixturePrior,
    Prior,
    log_uniform,
)
from paperworks.incontext.pfn.references import exact_gp_ppd, hmc_ppd
from paperworks.incontext.pfn.training import fit_pfn, standardize_context

__all__ = [
    "PFN",
    "BNNPrior",
    "BarDistribution",
    "CategoricalHead",
    "FunctionPrior",
    "GPPrior",
    "MixturePrior",
    "PFNClassifier",
    "PFNRegressor",
    "Prior",
    "exact_gp_ppd",
    "fit_pfn",
    "hmc_ppd",
    "load_pfn",
    "log_uniform",
    "save_pfn",
    "standardize_context",
]
