"""Text in, text out: sampling, stop strings, generation, conversations."""
