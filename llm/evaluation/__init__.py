"""What a model has forgotten and kept: TOFU's and MUSE's measures, relearning attacks."""
