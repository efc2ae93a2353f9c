"""The history of language models as data, and their files."""
