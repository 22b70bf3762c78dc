"""Theory and simulations of unlearning by preference optimisation; re-exports nothing, so that it stays light."""

__version__ = "0.1.0"
