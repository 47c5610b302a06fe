"""Papers that work: parts to import, studies to run, verdicts to trust.

Users import methods from their field, `from paperworks.wide import optimal_activation`, and run
studies with `paperworks.run("flexround")` or the `paperworks` command.
"""

import lazy_loader as _lazy

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
