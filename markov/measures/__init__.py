"""What is left of a chain in a model, computed without sampling: measures of rung 4, exact."""
