"""Gradient weights of any objective, and whether the effort goes where it is needed."""
