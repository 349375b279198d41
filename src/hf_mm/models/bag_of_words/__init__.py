"""Bag of words: a text as the mean of its word vectors."""
