"""Figures of language models that forget news, measured as MUSE does it."""
