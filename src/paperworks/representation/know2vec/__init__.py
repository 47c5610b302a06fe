"""Find the model of a zoo that fits a task from a few labelled samples, without running the models.

Shang, Liu, Liu, Gu, Ding & Ji 2025, "Know2Vec: A Black-Box Proxy for Neural Network Retrieval",
arXiv 2412.16251 (AAAI 2025).

Once for each model: `probe_knowledge` asks it, as a black box, for examples of its classes and of
the boundaries between them (`probe_zoo` for all of a `ModelZoo` folder, or of any mapping of names
to functions). Once for the zoo: `ModelRetriever.fit`. For each new task: `query_knowledge`, and
`ModelRetriever.rank`. The order of classes couples models and tasks: a permuted task is another
one. Pool, query samples and the models' training data must not share samples.

`NearestKnowledge`, `NoiseFingerprint`, `leep` and `logme` are what to compare with;
`TransferModelEncoder`, `TransferQueryEncoder` and `transfer_loss` the paper's variant for models
and tasks of any number of classes.
"""

from paperworks.representation.know2vec.baselines import NoiseFingerprint, leep, logme
from paperworks.representation.know2vec.encoders import ModelEncoder, QueryEncoder, TaskClassifier
from paperworks.representation.know2vec.losses import hardest_negative_loss, official_batch_score
from paperworks.representation.know2vec.probing import (
    Knowledge,
    probe_knowledge,
    probe_zoo,
    query_knowledge,
)
from paperworks.representation.know2vec.retrieval import ModelRetriever, NearestKnowledge
from paperworks.representation.know2vec.transfer import (
    TransferModelEncoder,
    TransferQueryEncoder,
    transfer_loss,
)
from paperworks.representation.know2vec.zoo import ModelZoo

__all__ = [
    "Knowledge",
    "ModelEncoder",
    "ModelRetriever",
    "ModelZoo",
    "NearestKnowledge",
    "NoiseFingerprint",
    "QueryEncoder",
    "TaskClassifier",
    "TransferModelEncoder",
    "TransferQueryEncoder",
    "hardest_negative_loss",
    "leep",
    "logme",
    "official_batch_score",
    "probe_knowledge",
    "probe_zoo",
    "query_knowledge",
    "transfer_loss",
]
