"""Near copies among the texts of a corpus: MinHash sketches, locality-sensitive hashing, and clusters on disk.

1. `sketches`: a sketch of every text, written with the encoded chunk. Worker processes do this work.
2. `comparison`: texts with equal band keys are compared; those that are similar form links. Each bucket of keys is one
   unit of work. On Apache Beam, `shuffle` does the same.
3. `clusters`: texts that are linked, directly or through others, form a cluster, of which one stays.
"""
