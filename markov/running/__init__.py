"""Running experiments: their models, how the work is divided, and the table that comes of it."""
