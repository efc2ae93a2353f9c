"""Families as data, one file per line of descent."""
