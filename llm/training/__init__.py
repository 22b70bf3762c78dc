"""The training loop, on any number of processes, and what goes with it."""
