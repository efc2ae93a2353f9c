"""Heads: what a model that understands text is taught to say about it. Data, batches, scores, runs."""
