"""The law and its diagnostics on language models: score, weigh, unlearn, evaluate, attack.

The names of `__init__.pyi` are loaded when they are first used, so that `import llm` takes no time.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
