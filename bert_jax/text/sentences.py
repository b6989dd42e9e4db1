"""Running text -> sentences, by rules: no model, no download, the same on every machine."""

import re

# A sentence ends at these with no blank after them (CJK), or wherever they stand (Devanagari, Urdu, Arabic).
_UNSPACED_ENDS = '。！？｡؟۔।॥'
_CLOSING = '"\'”’»)\\]」』）】》'
_SPACED = rf'[.!?…][.!?…]*[{_CLOSING}]*(?P<blanks>\s+)(?P<next>[\"\'“‘«(\[¿¡*`]*\w)?'
_UNSPACED = re.compile(f'[{_UNSPACED_ENDS}]')
_BOUNDARY = re.compile(rf'(?P<unspaced>[{_UNSPACED_ENDS}]+[{_CLOSING}]*)\s*|{_SPACED}')
_SPACED_BOUNDARY = re.compile(_SPACED)  # finds the same in text without the marks of `_UNSPACED`, much faster
_ABBREVIATIONS = frozenset(
    """mr mrs ms mx dr prof st sr jr messrs mme mlle hon rev gen col maj capt lt sgt gov sen rep pres
    vs cf viz resp approx ca eg ie al incl excl esp fig figs eq eqs sec secs ch chap vol vols no nos
    pp p ed eds art ref refs tab def thm prop lem cor inc ltd corp dept univ assn bros
    jan feb mar apr jun jul aug sep sept oct nov dec mt ft ave blvd
    bzw nr str usw evtl ggf vgl""".split()
)
_BEFORE_A_NUMBER = frozenset('no nos p pp art ch vol sec jan feb mar apr jun jul aug sep sept oct nov dec nr'.split())
_LAST_WORD = re.compile(r'[^\s(\[“"\'‘«]+$')
_INITIALS = re.compile(r'(?:\w\.)*\w')
_LOOKS_BACK = 40  # characters, for the word before a mark


def split_into_sentences(text: str) -> list[str]:
    """Splits a paragraph into its sentences; blanks around them are taken off, nothing else is changed.

    A full stop does not end a sentence after a common abbreviation (`Mr.`, `e.g.`, `Fig.`, `vs.`), after
    initials (`J. R.`, `U.S.`), inside a number, or before a word that starts in lower case.
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
                is_a_word = len(word) > 1 and word.isalpha() and word.lower() not in _ABBREVIATIONS  # as most are
                if not is_a_word and not _stop_ends(text, start, mark_at, following or ''):
                    continue
        sentences.append(text[start:end])
        start = after
    sentences.append(text[start:])
    return [sentence for sentence in sentences if sentence]


def _stop_ends(text: str, start: int, mark_at: int, following: str) -> bool:
    """Whether the full stop at `mark_at` ends the sentence that begins at `start`."""
    first = max(start, mark_at - _LOOKS_BACK)
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
