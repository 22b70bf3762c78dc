"""Prompts and responses as tokens, their log-probabilities and gradient norms."""
