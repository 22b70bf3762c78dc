"""Evaluation logs, without a model: read, aligned, measured, summarised, written."""
