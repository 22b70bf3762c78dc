"""Texts that a model writes: many at a time, each as if it were alone."""
