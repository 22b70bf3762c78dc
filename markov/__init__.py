"""Theory and simulations of unlearning by preference optimisation.

The names of `__init__.pyi` are loaded when they are first used, so that `import markov` takes no
time.
"""

from lazy_loader import attach_stub

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
