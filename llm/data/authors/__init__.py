"""Fictional authors and questions about them, from a seed."""
