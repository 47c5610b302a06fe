from .study.api import run as run

__version__: str
