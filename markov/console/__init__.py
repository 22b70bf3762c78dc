"""What the command lines share: what settings may be, and how far a long job is."""
