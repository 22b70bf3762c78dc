"""What `import llm` offers: each job of this project as one function, of words or of values."""
