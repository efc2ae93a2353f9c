"""Post-training: examples, adapters, objectives and the run that joins them."""
