"""Repetition within a document: table A1 of Gopher (Rae et al. 2021, arXiv 2112.11446).

Characters are those of words, with one blank after each word. The paper's thresholds for paragraphs are not applied:
documents have no blank lines here, so a paragraph is a line.
"""

from collections import Counter
from collections.abc import Iterator

MAX_DUPLICATE_LINES = 0.30
MAX_DUPLICATE_LINE_CHARACTERS = 0.20
MAX_TOP_NGRAM = {2: 0.20, 3: 0.18, 4: 0.16}  # {words: share of the characters}
MAX_DUPLICATE_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


def has_duplicate_lines(lines: list[str]) -> bool:
    """Whether too many lines repeat an earlier one, or too much of the text is in such lines."""
    num_duplicates = len(lines) - len(distinct := set(lines))
    if not num_duplicates:
        return False
    total = sum(map(len, lines))
    characters = total - sum(map(len, distinct))
    return num_duplicates > MAX_DUPLICATE_LINES * len(lines) or characters > MAX_DUPLICATE_LINE_CHARACTERS * total


def has_a_frequent_ngram(words: list[str], total: int) -> bool:
    """Whether the most frequent n-gram, for n from 2 to 4, makes up too much of the text.

    An n-gram that occurs once repeats nothing, however short the text.

    Args:
      total: `num_characters(words)`.
    """
    longest = max(map(len, words), default=0) + 1
    most = len(words)  # longer n-grams are no more frequent than shorter ones
    for n, limit in MAX_TOP_NGRAM.items():
        if most * n * longest <= limit * total:
            continue
        counts = Counter(_ngrams(words, n))
        most = max(counts.values(), default=0)
        if most == 1 or most * n * longest <= limit * total:
            continue
        characters = most * max(num_characters(ngram) for ngram, count in counts.items() if count == most)
        if characters > limit * total:
            return True
    return False


def has_duplicate_ngrams(words: list[str], total: int) -> bool:
    """Whether too much of the text is in n-grams, for n from 5 to 10, that occurred before; overlaps count once.

    Args:
      total: `num_characters(words)`.
    """
    smallest = min(MAX_DUPLICATE_NGRAMS.values())
    for n, limit in MAX_DUPLICATE_NGRAMS.items():
        share = _duplicate_characters(words, n) / max(1, total)
        if share > limit:
            return True
        if share <= smallest:  # what longer n-grams repeat is part of this
            return False
    return False


def _duplicate_characters(words: list[str], n: int) -> int:
    if len(set(_ngrams(words, n))) == max(0, len(words) - n + 1):
        return 0
    seen, characters, covered_to = set(), 0, 0
    for start, ngram in enumerate(_ngrams(words, n)):
        if ngram in seen:
            characters += num_characters(words[max(start, covered_to) : start + n])
            covered_to = start + n
        else:
            seen.add(ngram)
    return characters


def _ngrams(words: list[str], n: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[offset:] for offset in range(n)), strict=False)


def num_characters(words: list[str] | tuple[str, ...]) -> int:
    """Returns the characters of words, with one blank after each."""
    return sum(map(len, words)) + len(words)
