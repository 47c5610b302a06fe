"""Data sets: bundled, generated, from a folder or the hub; `load` is the one way in."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
