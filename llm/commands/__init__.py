"""The commands of `python -m llm`."""
