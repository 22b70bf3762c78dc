"""Figures of what length, memorisation and the optimiser do, on every rung."""
