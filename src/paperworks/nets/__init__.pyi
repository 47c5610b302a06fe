from .activations import make_activation as make_activation
from .mlp import MLP as MLP
from .mobilenet import MobileNet as MobileNet
from .sentences import SentenceEncoder as SentenceEncoder
from .sentences import sentence_encoder as sentence_encoder
from .training import History as History
from .training import fit as fit
from .training import pick as pick
