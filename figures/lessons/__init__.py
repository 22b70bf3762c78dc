"""Exercises that check themselves, and the book of notebooks."""
