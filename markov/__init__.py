"""Theory and simulations of unlearning by preference optimisation.

The names of `__init__.pyi` are loaded when they are first used, so that `import markov` takes no
time.

Without a word to it MKL, which multiplies matrices for torch, sums a product in an order that
depends, on some processors, on what is multiplied beside it: a run would have other bits alone than
in company. It is told once, by the environment, before the first product.
"""

import os

from lazy_loader import attach_stub

os.environ.setdefault("MKL_CBWR", "AUTO")
__version__ = "0.1.0"
__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
