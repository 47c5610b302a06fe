"""In-context learners of linear regression: constructed, trained, compared, probed.

Akyürek, Schuurmans, Andreas, Ma and Zhou 2022, "What learning algorithm is in-context learning?
Investigations with linear models", arXiv 2211.15661. `SGDTransformer` and `RidgeTransformer` are
transformers with written-down weights that run a known algorithm, made of the instructions of
`compile_program`; `InContextRegressor` and `train_in_context` make trained ones of `LinearTasks`;
`nearest_algorithm`, `implicit_weights` and `probe_hidden_states` ask any of them, or your own,
which algorithm it runs.
"""

from paperworks.incontext.iclinear.algorithms import (
    online_gd,
    online_knn,
    online_ridge,
    online_sgd,
)
from paperworks.incontext.iclinear.constructed import RidgeTransformer, SGDTransformer
from paperworks.incontext.iclinear.learner import InContextRegressor, train_in_context
from paperworks.incontext.iclinear.metrics import (
    ImplicitWeights,
    implicit_weight_difference,
    implicit_weights,
    nearest_algorithm,
    probe_hidden_states,
    squared_prediction_difference,
)
from paperworks.incontext.iclinear.predictors import OnlinePredictor
from paperworks.incontext.iclinear.programs import (
    AffineLayer,
    MoveLayer,
    MultiplyLayer,
    ReciprocalLayer,
    Slots,
    compile_program,
)
from paperworks.incontext.iclinear.tasks import LinearTasks, deinterleave, interleave

__all__ = [
    "AffineLayer",
    "ImplicitWeights",
    "InContextRegressor",
    "LinearTasks",
    "MoveLayer",
    "MultiplyLayer",
    "OnlinePredictor",
    "ReciprocalLayer",
    "RidgeTransformer",
    "SGDTransformer",
    "Slots",
    "compile_program",
    "deinterleave",
    "implicit_weight_difference",
    "implicit_weights",
    "interleave",
    "nearest_algorithm",
    "online_gd",
    "online_knn",
    "online_ridge",
    "online_sgd",
    "probe_hidden_states",
    "squared_prediction_difference",
    "train_in_context",
]
