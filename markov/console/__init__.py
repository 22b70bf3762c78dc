"""What the command lines share: the words that settings may be, and how far a long job is."""
