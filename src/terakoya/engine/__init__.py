"""Text in, text out: contexts, sampling, generation."""
