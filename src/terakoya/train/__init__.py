"""Training: from a recipe and shards to a model."""
