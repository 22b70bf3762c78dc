"""Questions that this project alone can settle, each asked of chains and of language models."""
