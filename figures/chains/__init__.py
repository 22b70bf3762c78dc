"""Figures of the paper's study of Markov chains."""
