"""Count what follows what: the n-gram language model, the baseline of every era."""
