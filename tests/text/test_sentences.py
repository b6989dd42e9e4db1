"""Sentences end where a reader expects, and batch splitting matches splitting each line."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bert_jax.text.sentences import split_into_sentences, split_lines_into_sentences

ASCII_PARTS = """. ! ? ... .... ....... ?! ' " ( ) [ ] * ` - _ a b Ab The I K x 5 12 No no fig Fig. Mr. xmr 1mr messrs
    e.g p J. U.S. can't it's .) ." !' .The""".split()
ASCII_PARTS += ['. The', '.  The', '.   The', '. the', '. "The', '. ("The', '.\tThe', '.\x1cThe', ' ', '  ', "'t. It"]
OTHER_PARTS = ['…', 'é', 'É', '\xa0', '。', '।', '»', '“', '’', 'ſ', 'ı', 'K']


@pytest.mark.parametrize(
    'sentences',
    [
        ['Mr. Smith saw Fig. 3, i.e. 3.5 cm vs. J. R. Hill.', 'He left!', '"Really?"', 'Yes.'],
        ['He said no.', 'No. 5 lives in the U.S. Army.', 'It costs $3.50 (approx. 4 EUR).'],
        ['Wait...', 'What?!', 'It is 3 p.m. today.'],
        ['He (the cat) sat.)', '(So did I.)', 'Ok'],
        ["They can't.", "It isn't Bob's.", "'J. R.' was left.", '5 of 12.', 'Or 3.'],
    ],
)
def test_sentences_end_where_a_reader_expects(sentences):
    assert split_into_sentences(' '.join(sentences)) == sentences


def test_sentences_in_scripts_without_blanks_or_full_stops():
    assert split_into_sentences('你好。我很好！「真的？」他说。') == ['你好。', '我很好！', '「真的？」', '他说。']
    assert split_into_sentences('वह गया। कब॥ ठीक') == ['वह गया।', 'कब॥', 'ठीक']
    assert split_into_sentences('هل أنت؟ نعم.') == ['هل أنت؟', 'نعم.']


def test_splitting_keeps_every_character():
    text = 'A b. C d?! "E f." (G h) I. j e.g. k。L m！ N'
    assert ''.join(split_into_sentences(text)).replace(' ', '') == text.replace(' ', '')


def _parts_of(parts: list[str]) -> st.SearchStrategy[str]:
    lines = st.lists(st.sampled_from(parts), min_size=1, max_size=14).map(''.join).map(str.strip)
    return lines.filter(bool)


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.one_of(_parts_of(ASCII_PARTS), _parts_of(ASCII_PARTS + OTHER_PARTS)), max_size=8))
@example([])
@example(['.'])
@example(['. A', "'. B", 'Mr. C', '"T. D'])
def test_batch_splitting_matches_splitting_each_line(lines):
    assert split_lines_into_sentences(lines) == ['\n'.join(split_into_sentences(line)).encode() for line in lines]
