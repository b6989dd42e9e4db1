"""Replaces e-mail addresses, phone numbers and card numbers with fixed placeholders.

Patterns find what is written in a usual way; they do not replace a review of sensitive text. A number counts as a
card number if it has the prefix and length of an issuer and a valid check digit (Luhn, ISO/IEC 7812-1). Phone numbers
need a country code, the separators of a national format, or a word such as 'Tel.' before them, so that dates,
prices, ISBNs and other numbers stay.
"""

import dataclasses
import functools
import re
from collections.abc import Callable

# --- E-mail addresses. ---

# The start of a word, and bounded lengths (RFC 5321), so that the time is linear in the text.
_EMAIL = re.compile(
    r'(?<![\w.+%-])[\w.+%-]{1,64}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}(?P<top>[^\W\d_]{2,24})(?![\w-])'
)
_FILE_SUFFIXES = frozenset('png jpg jpeg gif svg webp css js'.split())  # icon@2x.png


def _is_email(match: re.Match[str]) -> bool:
    return match['top'].lower() not in _FILE_SUFFIXES


# --- Card numbers. ---

_CARD = re.compile(
    r'(?<![\w.,+-])(?<!\d{3}[ -])'
    r'(?:\d{13,19}|(?:\d{4}[ -]){3}\d{4}(?:[ -]\d{3})?|\d{4}[ -]\d{6}[ -]\d{4,5})'
    r'(?![\w-]|[.,]\d|[ ]\d{3})'
)
# (first digits from, to, lengths) of the issuers' numbers: Visa, Mastercard, American Express, Discover, Diners Club,
# JCB, UnionPay, Maestro.
_ISSUERS = (
    ('4', '4', (13, 16, 19)),
    ('51', '55', (16,)),
    ('2221', '2720', (16,)),
    ('34', '34', (15,)),
    ('37', '37', (15,)),
    ('6011', '6011', (16, 19)),
    ('644', '659', (16, 19)),
    ('300', '305', (14,)),
    ('36', '36', (14,)),
    ('38', '39', (14,)),
    ('3528', '3589', (16,)),
    ('62', '62', (16, 17, 18, 19)),
    ('50', '50', (16, 17, 18, 19)),
    ('56', '58', (16, 17, 18, 19)),
    ('67', '67', (16, 17, 18, 19)),
)


def _is_card(match: re.Match[str]) -> bool:
    number = re.sub('[ -]', '', match[0])
    has_prefix = any(low <= number[: len(low)] <= high and len(number) in lengths for low, high, lengths in _ISSUERS)
    return has_prefix and has_valid_check_digit(number)


def has_valid_check_digit(number: str) -> bool:
    """Whether the last digit of a number is its check digit by Luhn's formula."""
    doubled = [sum(divmod(2 * int(digit), 10)) for digit in number[-2::-2]]
    return (sum(doubled) + sum(int(digit) for digit in number[-1::-2])) % 10 == 0


# --- Phone numbers. ---

_DIGIT = re.compile(r'\d')
_LONG_NUMBER = re.compile(r'[+(0-9][0-9 ./()\-\u00a0\u2011\u2013]{6}')
_GAP = r'(?:[ .\-/\u00a0\u2011\u2013]|[ ][/\u2013-][ ])'  # between groups of digits
_PHONE = re.compile(
    rf"""
    (?<![\w+]) (?<!\d[.,/:-])
    (?:
      (?P<international> (?:\+|00) [1-9]\d{{0,2}} (?:{_GAP}?\(0?\d{{0,5}}\))? (?:{_GAP}?\d{{1,12}}){{1,7}} )
    | (?P<american> (?:1{_GAP})? (?:\(\d{{3}}\)[ ]?|\d{{3}}[.-]) \d{{3}}[ .-]\d{{4}} )
    | (?P<european> (?:\(0\d{{1,5}}\)[ ]?|0\d{{1,5}}{_GAP}) \d{{2,8}}(?:{_GAP}\d{{2,5}}){{0,4}} )
    )
    (?![\w]|{_GAP}?\d|[.,:]\d)
    """,
    re.VERBOSE,
)
# What follows a word for telephone. Without separators it may be any number of a usual length.
_LABELLED_PHONE = re.compile(
    rf'(?P<label>\b(?:tel|telephone|telefon|téléphone|teléfono|phone|fax|mobile|mobil|cell|handy|whatsapp)'
    rf'(?:\.|\b)[ ]?(?:no\.?|number|nr\.?)?[ ]?:?[ ]?)(?P<number>[+(]?\d(?:{_GAP}?[()]?\d){{6,14}})(?![\w]|[.,:]\d)',
    re.IGNORECASE,
)
_DATE = re.compile(r'(?:0?[1-9]|[12]\d|3[01])[./-](?:0?[1-9]|1[0-2])[./-](?:19|20)?\d\d(?!\d)|(?:19|20)\d\d[./-]')
_FRENCH = re.compile(r'0[1-9](?:([ .-])\d\d)(?:\1\d\d){3}')
_BEFORE_OTHER_NUMBERS = re.compile(
    r'(?:\b(?:isbn|issn|ean|doi|order|invoice|ref)\b|[$€£¥])[-. :\w]{0,6}$|\b[A-Z]{2}\d\d(?: ?\w{4}){1,6} ?$', re.I
)  # the last one is the beginning of an IBAN
_NUM_DIGITS = {'international': (8, 15), 'american': (10, 11), 'european': (9, 12)}  # E.164 has at most 15
_LOOKBACK = 36  # characters


def _is_phone(match: re.Match[str]) -> bool:
    kind, number = match.lastgroup or '', match[0]
    num_digits = len(_DIGIT.findall(number.replace('(0)', '')))
    low, high = _NUM_DIGITS[kind]
    if not low <= num_digits <= high:
        return False
    if _BEFORE_OTHER_NUMBERS.search(match.string, max(0, match.start() - _LOOKBACK), match.start()):
        return False
    if kind == 'european' and not _FRENCH.fullmatch(number):
        return not _DATE.match(number) and not _is_isbn(number)
    return kind != 'international' or number[0] == '+' or num_digits >= 11  # with 00


def _is_isbn(number: str) -> bool:
    """Whether a number has the four groups and the check digit of a ten-digit ISBN."""
    digits = [int(digit) for digit in _DIGIT.findall(number)]
    has_groups = len(re.split('[ -]', number)) == 4 and len(number) == 13
    return has_groups and sum((10 - index) * digit for index, digit in enumerate(digits)) % 11 == 0


# --- All of them. ---


@dataclasses.dataclass(frozen=True)
class _Kind:
    """Something to replace.

    Attributes:
      name: in `data.redact`.
      reason: under which it is counted.
      mark: a text without it holds nothing to replace.
      pattern: may have a group `number`, which is replaced alone and ends the match.
    """

    name: str
    reason: str
    placeholder: str
    mark: re.Pattern[str]
    pattern: re.Pattern[str]
    is_meant: Callable[[re.Match[str]], bool]

    def replace(self, match: re.Match[str], count: Callable[[str, str], None]) -> str:
        if not self.is_meant(match):
            return match[0]
        found = match.groupdict().get('number') or match[0]
        count(self.reason, found)
        return match[0].removesuffix(found) + self.placeholder


# E-mail addresses come first, because they may contain numbers, and cards before phones.
_KINDS = (
    _Kind('email', 'email_replaced', '<EMAIL>', re.compile('@'), _EMAIL, _is_email),
    _Kind('card', 'card_number_replaced', '<CARD>', re.compile('[0-9][0-9 -]{12}'), _CARD, _is_card),
    _Kind('phone', 'phone_number_replaced', '<PHONE>', _LONG_NUMBER, _PHONE, _is_phone),
    _Kind('phone', 'phone_number_replaced', '<PHONE>', _LONG_NUMBER, _LABELLED_PHONE, lambda _: True),
)


def redact(text: str, names: tuple[str, ...], count: Callable[[str, str], None]) -> str:
    """Replaces what `names` lists, of `config.cleaning.REDACTED`, with placeholders.

    Args:
      count: called with the reason and the replaced text for each.
    """
    for kind in _KINDS:
        if kind.name in names and kind.mark.search(text):
            text = kind.pattern.sub(functools.partial(kind.replace, count=count), text)
    return text
