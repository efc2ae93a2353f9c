"""Faster implementations with the same signature and numbers as the definitions in model."""
