"""Every rule drops what is past its threshold, and nothing at the threshold."""

import re
from pathlib import Path

import pytest

from bert_jax import config
from bert_jax.config.cleaning import C4_RULES, GOPHER_RULES, QUALITY_RULES, selected_rules
from bert_jax.errors import BadInput
from bert_jax.text.cleaning.repetition import has_a_frequent_ngram, has_duplicate_ngrams
from bert_jax.text.cleaning.rules import RULES, Text


def distinct(count: int, length: int = 5) -> list[str]:
    """Returns different words of letters."""
    letters = [chr(ord('a') + i) for i in range(26)]
    words = []
    for index in range(count):
        word = ''
        for _ in range(length):
            word, index = letters[index % 26] + word, index // 26
        words.append(word)
    return words


# {rule: [(text that it keeps, text that it drops)]}, as close to its threshold as possible.
CASES = {
    'c4_terminal_punctuation': [
        ('It ends.', 'It ends'),
        ('Does it?', 'It does:'),
        ('It does!', 'It does...'),
        ('"It does"', 'It does…'),
        ('“It does”', 'It does;'),
        ('它结束了。', '它结束了'),
    ],
    'c4_short_lines': [('one two three four five', 'one two three four'), (' a  b c\td e ', ' a  b c\td ')],
    'c4_javascript': [('A script in Java.', 'Please enable JavaScript.'), ('java script', 'javascripts')],
    'c4_policy': [
        ('We use a cookie.', 'We use cookies.'),
        ('Cookies are sweet.', 'This site uses cookies.'),
        ('Our policy on privacy', 'Privacy Policy'),
        ('Use of terms', 'Terms of Use'),
    ],
    'c4_lorem_ipsum': [('lorem and ipsum', 'Lorem ipsum dolor')],
    'c4_curly_bracket': [('f(x) [y]', 'function () {')],
    'c4_sentences': [
        ('One. Two. Three.', 'One. Two.'),
        ('One\nTwo\nThree', 'One\nTwo'),
        ('One. Two.\nThree.', 'Mr. Smith met Dr. Jones.\nThey talked.'),
        ('a ' * 4000 + 'end. Two. Three.', 'a ' * 4000 + 'end. Two.'),
    ],
    'gopher_word_count': [
        (' '.join(distinct(50)), ' '.join(distinct(49))),
        (' '.join(distinct(100_000)), ' '.join(distinct(100_001))),
    ],
    'gopher_word_length': [
        ('abc ' * 50, 'abc ' * 49 + 'ab'),
        ('a' * 10 + ' ' + 'b' * 10, 'a' * 10 + ' ' + 'b' * 11),
    ],
    'gopher_symbols': [
        ('# ' + 'word ' * 9, '# # ' + 'word ' * 8),
        ('word... ' + 'word ' * 9, 'word... word… ' + 'word ' * 8),
        ('#one word... ' + 'word ' * 8, '#one #two ' + 'word ' * 8),
    ],
    'gopher_bullets': [
        ('\n'.join(['- a'] * 9 + ['b']), '\n'.join(['- a'] * 10)),
        ('\n'.join(['• a'] * 18 + ['b', 'c']), '\n'.join(['• a'] * 19 + ['b'])),
    ],
    'gopher_ellipses': [('\n'.join(['a...'] * 3 + ['b'] * 7), '\n'.join(['a...', 'a…'] * 2 + ['b'] * 6))],
    'gopher_letters': [('a b c d 5', 'a b c 4 5'), ("don't 1st x2 … ñ", '-- 1st x2 …')],
    'gopher_stop_words': [
        ('to be', 'to see'),
        ('The cat (and dog)', 'the The the cat'),
        ('Be with', 'Der Hund und die Katze'),
    ],
    'gopher_duplicate_lines': [
        ('\n'.join(['xx', 'xx', 'xx', 'xx', *distinct(6, 9)]), '\n'.join(['xx'] * 5 + distinct(5, 9))),
        ('\n'.join(['a' * 20] * 2 + ['b' * 30, 'c' * 30]), '\n'.join(['a' * 21] * 2 + ['b' * 30, 'c' * 30])),
    ],
    'gopher_top_ngrams': [
        # one repeated phrase of 2 words, 20 of 100 characters; then 20 of 99
        (' '.join(['yyyy zzzz', *distinct(16, 4), 'yyyy zzzz']),
         ' '.join(['yyyy zzzz', *distinct(15, 4), 'ccc', 'yyyy zzzz'])),
        (' '.join(distinct(3)), 'yes no yes no yes no'),
    ],
    'gopher_duplicate_ngrams': [
        # one repeated phrase of 5 words, 15 of 100 characters; then 15 of 98
        (' '.join(['aa bb cc dd ee', *distinct(10, 6), 'aa bb cc dd ee']),
         ' '.join(['aa bb cc dd ee', *distinct(9, 6), 'aaaa', 'aa bb cc dd ee'])),
        # 10 words, 20 of 200 characters; then 20 of 199
        (' '.join(['a b c d e f g h i j', *distinct(20, 7), 'a b c d e f g h i j']),
         ' '.join(['a b c d e f g h i j', *distinct(19, 7), 'aaaaaa', 'a b c d e f g h i j'])),
    ],
}  # fmt: skip


@pytest.mark.parametrize('name', QUALITY_RULES)
def test_rule_drops_only_what_is_past_its_threshold(name: str) -> None:
    rule = RULES[name]
    for kept, dropped in CASES[name]:
        kept, dropped = (text if rule.unit == 'line' else Text(text) for text in (kept, dropped))
        assert not rule.is_broken_by(kept) and rule.is_broken_by(dropped), (kept, dropped)


def test_repetition_agrees_with_counting_every_character(seed: int = 0) -> None:
    """Compares with a slow count over all n-grams that marks each repeated word."""
    import numpy as np

    rng = np.random.default_rng(seed)
    outcomes = set()
    for _ in range(300):
        vocabulary = distinct(int(rng.integers(5, 60)), int(rng.integers(1, 6)))
        words = [str(word) for word in rng.choice(vocabulary, rng.integers(1, 120))]
        if rng.random() < 0.7:
            start, size = rng.integers(0, len(words)), rng.integers(0, 15)
            words += words[start : start + size]
        total = sum(map(len, words)) + len(words)
        is_repetitive = is_frequent = False
        for n, limit in {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}.items():
            ngrams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
            marked = {i + k for i, ngram in enumerate(ngrams) if ngram in ngrams[:i] for k in range(n)}
            is_repetitive |= sum(len(words[i]) + 1 for i in marked) > limit * total
        for n, limit in {2: 0.20, 3: 0.18, 4: 0.16}.items():
            ngrams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
            most = max((ngrams.count(ngram) for ngram in ngrams), default=0)
            sizes = [most * (sum(map(len, ngram)) + n) for ngram in ngrams if ngrams.count(ngram) == most]
            is_frequent |= most > 1 and max(sizes) > limit * total
        assert has_duplicate_ngrams(words, total) == is_repetitive
        assert has_a_frequent_ngram(words, total) == is_frequent
        outcomes.add((is_repetitive, is_frequent))
    assert len(outcomes) == 4


def test_groups_and_single_rules_are_selected() -> None:
    assert selected_rules(()) == ()
    assert selected_rules(('gopher', 'c4')) == QUALITY_RULES == (*C4_RULES, *GOPHER_RULES)
    assert selected_rules(('gopher', '-gopher_stop_words')) == tuple(
        rule for rule in GOPHER_RULES if rule != 'gopher_stop_words'
    )
    assert selected_rules(('gopher_letters', 'c4_policy')) == ('c4_policy', 'gopher_letters')
    assert selected_rules(('c4', '-c4', 'c4_policy')) == ('c4_policy',)


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('quality_rules', ('gofer',)),
        ('quality_rules', ('gopher', '-gopher')),
        ('quality_rules', (1,)),
        ('languages', ('EN',)),
        ('languages', ('english',)),
        ('languages', ('en', 'en')),
        ('languages', ('*', 'en')),
        ('boilerplate_documents', 1),
        ('redact', ('name',)),
        ('redact', ('email', 'email')),
    ],
)
def test_unknown_names_are_rejected(field: str, value: object) -> None:
    with pytest.raises(BadInput, match=f'config.data.{field}'):
        config.resolve({'data': {field: value}})


def test_guide_lists_every_rule_with_its_thresholds() -> None:
    guide = (Path(__file__).parents[3] / 'docs' / 'guides' / 'clean.md').read_text()
    rows = dict(re.findall(r'^\| `(\w+)` \| (?:documents|lines) (.*) \|$', guide, flags=re.M))
    assert {name: rows.get(name) for name in RULES} == {name: rule.meaning for name, rule in RULES.items()}
