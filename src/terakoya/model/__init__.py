"""The readable reference: what a model is (`spec`, no torch) and the blocks that compute it.

Shapes: T tokens (flat), B batch, S memory length, D width, H query heads, G key-value heads, K head width, F FFN width,
V vocabulary, E experts, N sequences.
"""
