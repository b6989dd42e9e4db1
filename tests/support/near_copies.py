"""Documents with planted near copies."""

import numpy as np

from tests.support.texts import SYLLABLES

VOCABULARY = np.array([a + b + c for a in SYLLABLES for b in SYLLABLES[:20] for c in SYLLABLES[:4]])


def random_words(rng, count):
    """Draws words with the frequencies of a language (Zipf's law)."""
    return VOCABULARY[np.minimum(rng.zipf(1.3, count), len(VOCABULARY)) - 1]


def changed(rng, words, share):
    """Replaces a share of the words, here and there, by random ones."""
    words = words.copy()
    positions = rng.choice(len(words), round(share * len(words)), replace=False)
    words[positions] = VOCABULARY[rng.integers(0, len(VOCABULARY), len(positions))]
    return words


def as_document(words):
    return [' '.join(line) for line in np.split(words, range(50, len(words), 50))]


def plant(num_documents, num_copies, share=0.05, seed=0):
    """Returns documents of 60 to 400 words; the last are near copies of others, whose indices follow."""
    rng = np.random.default_rng(seed)
    originals = [random_words(rng, rng.integers(60, 400)) for _ in range(num_documents - num_copies)]
    copied = rng.choice(len(originals), num_copies, replace=False)
    return [as_document(words) for words in originals + [changed(rng, originals[i], share) for i in copied]], copied
