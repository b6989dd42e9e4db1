"""Text is counted by script, whatever the batches, and unknown characters are found."""

import numpy as np
import pytest

from bert_jax import config
from bert_jax.text import encode
from bert_jax.text.prepare import prepare
from bert_jax.text.scripts import TextCounts, script_of
from tests.support.texts import contents, write_documents


@pytest.mark.parametrize(
    ('characters', 'script'),
    [
        ('aZñßﬁＡ', 'Latin'),
        ('яЖ', 'Cyrillic'),
        ('λΩ', 'Greek'),
        ('中𠀀', 'Han'),
        ('ひ', 'Hiragana'),
        ('カｶ', 'Katakana'),
        ('한', 'Hangul'),
        ('ع', 'Arabic'),
        ('क', 'Devanagari'),
        ('1 .!€😀\n\u0301', 'other'),
    ],
)
def test_script_of_a_letter_is_named(characters: str, script: str) -> None:
    assert {character: script_of(character) for character in characters} == dict.fromkeys(characters, script)


def add(sentences: list[str]) -> dict[str, dict[str, int]]:
    """Counts sentences with as many tokens as characters, of which 'x' is unknown."""
    counts = TextCounts()
    sizes = [
        np.array(values) for values in zip(*((len(s.split()), len(s), s.count('x')) for s in sentences), strict=True)
    ]
    text = '\n'.join([*sentences, '']).encode()
    counts.add(text, np.flatnonzero(np.frombuffer(text, np.uint8) == ord('\n')) + 1, *sizes)
    return counts.by_script


def test_sentences_count_for_the_script_of_most_letters() -> None:
    counts = add(['one two x', '123 …', 'три a', 'αβ γδ ab', 'ab γδ'])
    assert counts['Latin'] == {'sentences': 1, 'words': 3, 'tokens': 9, 'unknown': 1, 'letters': 7 + 1 + 2 + 2}
    assert counts['Greek']['sentences'] == 2 and counts['Greek']['letters'] == 6  # of equally many, the first by name
    assert counts['Cyrillic'] == {'sentences': 1, 'words': 2, 'tokens': 5, 'unknown': 0, 'letters': 3}
    assert counts['other'] == {'sentences': 1, 'words': 2, 'tokens': 5, 'unknown': 0, 'letters': 0}


def test_counts_add_up_however_sentences_are_grouped() -> None:
    rng = np.random.default_rng(0)
    alphabets = ['abcde ', 'жзийк ', '中文字', 'αβ1 ', '12 .']
    sentences = [
        ''.join(rng.choice(list(alphabets[rng.integers(5)]), rng.integers(1, 9))).strip() or 'a' for _ in range(300)
    ]
    whole, parts = add(sentences), [add(sentences[start : start + 7]) for start in range(0, 300, 7)]
    for script, counts in whole.items():
        assert counts == {kind: sum(part[script][kind] for part in parts if script in part) for kind in counts}


def test_unknown_characters_are_counted_by_script(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = write_documents(tmp_path / 'a', [[f'the cat sat on mat {i}'] for i in 'abcdefgh'])
    data = config.Data(source=known, corpus=str(tmp_path / 'known'))
    prepare(data, config.Tokenizer(vocab_size=200), progress=False)
    text = write_documents(tmp_path / 'b', [['the cat'], ['мир мир'], ['the 中 cat'], ['a mat …']])
    tokenizer = config.Tokenizer(path=str(tmp_path / 'known' / 'tokenizer'))
    found = []
    for name, size in (('whole', 1 << 22), ('small', 5)):
        monkeypatch.setattr(encode, '_CHARACTERS_AT_ONCE', size)
        corpus = str(tmp_path / name)
        prepare(config.Data(source=text, corpus=corpus), tokenizer, progress=False)
        found.append(contents(corpus))
    assert found[0] == found[1]
    scripts = found[0][1]['scripts']
    assert [*scripts] == ['Latin', 'Cyrillic', 'Han', 'other']
    assert scripts['Cyrillic']['unknown'] == scripts['Cyrillic']['tokens'] == 2
    assert {name: counts['unknown_characters'] for name, counts in scripts.items()} == {
        'Latin': 0, 'Cyrillic': 3, 'Han': 1, 'other': 1,
    }  # fmt: skip
    assert scripts['Cyrillic']['unknown_occurrences'] == 6
    assert scripts['Latin']['sentences'] == 3 and scripts['Latin']['unknown'] == 2
    assert sum(counts['tokens'] for counts in scripts.values()) == sum(
        split['tokens'] for split in found[0][1]['splits'].values()
    )
