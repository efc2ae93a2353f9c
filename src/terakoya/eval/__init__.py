"""Scores: perplexity, bits per byte."""
