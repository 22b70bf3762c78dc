"""Results on disk: written whole, by their own keys, and only where nothing of others is lost."""
