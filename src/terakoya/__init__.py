"""Terakoya: a small school for language models, from a page of text to a model you can talk to."""

__version__ = "0.1.0"
