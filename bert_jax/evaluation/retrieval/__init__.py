"""Retrieval with embeddings: exact search, metrics on sets in BEIR format, scored pairs, and hard negatives."""
