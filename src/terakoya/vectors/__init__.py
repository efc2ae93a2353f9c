"""Word vectors: Word2Vec, fastText and GloVe, from words to neighbours."""
