"""The contract of a study and the engine that runs it; see README.md beside this file."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
