"""Splits text into sentences by rules: no model, no download, the same result on every machine."""

import re

import numpy as np

# Marks that end a sentence without a blank after them (CJK), or anywhere (Devanagari, Urdu, Arabic).
_UNSPACED_ENDS = '。！？｡؟۔।॥'
_CLOSING = '"\'”’»)\\]」』）】》'
_OPENING = r'[\"\'“‘«(\[¿¡*`]'
_SPACED = rf'[.!?…][.!?…]*[{_CLOSING}]*(?P<blanks>\s+)(?P<next>{_OPENING}*\w)?'
_UNSPACED = re.compile(f'[{_UNSPACED_ENDS}]')
_BOUNDARY = re.compile(rf'(?P<unspaced>[{_UNSPACED_ENDS}]+[{_CLOSING}]*)\s*|{_SPACED}')
_SPACED_BOUNDARY = re.compile(_SPACED)  # equivalent for text without the marks of `_UNSPACED`, and much faster
_ABBREVIATIONS = frozenset(
    """mr mrs ms mx dr prof st sr jr messrs mme mlle hon rev gen col maj capt lt sgt gov sen rep pres
    vs cf viz resp approx ca eg ie al incl excl esp fig figs eq eqs sec secs ch chap vol vols no nos
    pp p ed eds art ref refs tab def thm prop lem cor inc ltd corp dept univ assn bros
    jan feb mar apr jun jul aug sep sept oct nov dec mt ft ave blvd
    bzw nr str usw evtl ggf vgl""".split()
)
_BEFORE_A_NUMBER = frozenset('no nos p pp art ch vol sec jan feb mar apr jun jul aug sep sept oct nov dec nr'.split())
_LAST_WORD = re.compile(r'(?:[^\s(\[“"\'‘«]|(?<=\w)\'(?=\w))+$')  # "can't" is one
_INITIALS = re.compile(r'(?:\w\.)*\w')
_CHARACTERS_AT_ONCE = 1 << 20
_MAX_LOOKBACK = 40  # characters, for the word before a mark

# For `split_lines_into_sentences`: classes of ASCII characters, by byte.
_MARK, _CLOSE, _OPEN, _WORD, _DIGIT, _LOWER, _BLANK = (
    np.array([re.match(pattern, chr(byte)) is not None for byte in range(128)] + [False] * 128)
    for pattern in ('[.!?]', f'[{_CLOSING}]', _OPENING, r'\w', r'\d', '[a-z]', r'\s')
)
_MAX_ABBREVIATION = max(map(len, _ABBREVIATIONS))
_CODES = np.array([int.from_bytes(word.encode(), 'big') for word in _ABBREVIATIONS])


def split_into_sentences(text: str) -> list[str]:
    """Splits a paragraph into sentences and strips them; changes nothing else.

    A full stop does not end a sentence after a common abbreviation (`Mr.`, `e.g.`, `Fig.`, `vs.`), after initials
    (`J. R.`, `U.S.`), inside a number, or before a lower-case word.
    """
    text, sentences, start = text.strip(), [], 0
    has_unspaced = not text.isascii() and _UNSPACED.search(text) is not None
    for match in (_BOUNDARY if has_unspaced else _SPACED_BOUNDARY).finditer(text):
        if has_unspaced and match['unspaced'] is not None:
            end, after = match.end('unspaced'), match.end()
        else:
            following, (end, after) = match['next'], match.span('blanks')
            if following and following[-1].islower():
                continue
            mark_at = match.start()
            if text[mark_at:end] == '.':
                word = text[text.rfind(' ', 0, mark_at) + 1 : mark_at]
                is_a_word = len(word) > 1 and word.isalpha() and word.lower() not in _ABBREVIATIONS  # the common case
                if not is_a_word and not _stop_ends(text, start, mark_at, following or ''):
                    continue
        sentences.append(text[start:end])
        start = after
    sentences.append(text[start:])
    return [sentence for sentence in sentences if sentence]


def _stop_ends(text: str, start: int, mark_at: int, following: str) -> bool:
    """Whether the full stop at `mark_at` ends the sentence that begins at `start`."""
    first = max(start, mark_at - _MAX_LOOKBACK)
    word = text[max(first, text.rfind(' ', first, mark_at) + 1) : mark_at]
    if not word.isalpha():
        last = _LAST_WORD.search(text, first, mark_at)
        if last is None:
            return True
        word = last[0]
    if word.lower() in _ABBREVIATIONS:
        # 'No.' and 'p.' are abbreviations only before a number: 'He said no. She left.'
        return word.lower() in _BEFORE_A_NUMBER and not following[-1:].isdigit()
    return not (_INITIALS.fullmatch(word) and not word.isdigit() and word != 'I')


def split_lines_into_sentences(lines: list[str]) -> list[bytes]:
    """Splits lines as `split_into_sentences` does; returns each in UTF-8, with line feeds between its sentences.

    ASCII is processed a million characters at a time, ten times as fast. Lines with other characters, or with an
    abbreviation, initials or several marks before a capital, are passed to `split_into_sentences`.

    Args:
      lines: stripped, without NUL and line feeds.
    """
    split, start, size = [], 0, 0
    for stop, line in enumerate(lines, 1):
        size += len(line)
        if size >= _CHARACTERS_AT_ONCE or stop == len(lines):
            split += _split_ascii_lines(lines[start:stop])
            start, size = stop, 0
    return split


def _split_ascii_lines(lines: list[str]) -> list[bytes]:
    text = np.frombuffer(bytearray('\0'.join([*lines, '']).encode()), np.uint8)
    ends_of_lines = np.flatnonzero(text == 0)
    ends, nexts, uncertain = _ascii_ends(text)
    of_other_scripts = [index for index, line in enumerate(lines) if not line.isascii()]
    uncertain = np.union1d(np.searchsorted(ends_of_lines, uncertain), np.array(of_other_scripts, np.int64))
    text[ends] = ord('\n')
    second_blanks = ends[nexts > ends + 1] + 1
    split = np.delete(text, second_blanks).tobytes().split(b'\0')[:-1]
    for index in uncertain.tolist():
        split[index] = '\n'.join(split_into_sentences(lines[index])).encode()
    return split


def _ascii_ends(text: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (ends of sentences, starts of the next ones, uncertain marks) in lines that each end in NUL."""
    marks = np.flatnonzero((text == ord('.')) | (text == ord('!')) | (text == ord('?')))
    marks = marks[~_MARK[text[marks - 1]]]  # the first of several
    ends = _skip(text, _skip(text, marks + 1, _MARK, 6), _CLOSE, 2)
    at_end = text[ends]
    issue = _MARK[at_end] | _CLOSE[at_end] | (_BLANK[at_end] & (at_end != ord(' ')))
    uncertain = [marks[issue]]
    is_spaced = at_end == ord(' ')
    marks, ends = marks[is_spaced], ends[is_spaced]

    nexts = ends + 1
    nexts += text[nexts] == ord(' ')
    words = _skip(text, nexts, _OPEN, 1)
    issue = _BLANK[text[nexts]] | _OPEN[text[words]]
    is_stop = (text[marks] == ord('.')) & (ends == marks + 1)
    before, second, third = text[marks - 1], text[marks - 2], text[marks - 3]
    is_plain = ~_WORD[before] | (_DIGIT[before] & ~_WORD[second] & (second != ord('.')) & (second != ord("'")))
    is_plain |= _WORD[before] & _WORD[second] & ~_ends_an_abbreviation(text, marks)
    is_plain |= _WORD[before] & (second == ord("'")) & _WORD[third]  # "can't"
    may_end = ~_LOWER[text[words]]
    issue |= may_end & is_stop & ~is_plain
    uncertain.append(marks[issue])
    return ends[may_end & ~issue], nexts[may_end & ~issue], np.concatenate(uncertain)


def _skip(text: np.ndarray, positions: np.ndarray, is_skipped: np.ndarray, max_count: int) -> np.ndarray:
    """Advances positions past up to `max_count` characters of the class `is_skipped`."""
    for _ in range(max_count):
        positions = positions + is_skipped[text[positions]]
    return positions


def _ends_an_abbreviation(text: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Whether the ASCII letters before each position are an abbreviation."""
    before = np.maximum(positions[:, None] - np.arange(1, _MAX_ABBREVIATION + 2), -1)  # the last one is NUL
    letters = text[before] | 32  # in lower case
    letters = np.where(np.logical_and.accumulate(_LOWER[letters], axis=1), letters, 0)
    codes = np.zeros(len(positions), np.int64)
    for distance in range(letters.shape[1]):
        codes += letters[:, distance].astype(np.int64) << 8 * distance
    return np.isin(codes, _CODES)
