"""Fictional news with questions and a hold-out, from a seed."""
