"""The same law and the same diagnostics on language models; re-exports nothing, so that it stays
light.
"""
