"""Many methods on one model."""
