"""Words are chosen by the text alone and cost the same however they are counted; every tokenizer is asked the same."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bert_jax import config
from bert_jax.evaluation import pseudo_perplexity, words
from bert_jax.evaluation.sample import Window, windows_of
from bert_jax.model.bert import BertForPreTraining
from bert_jax.model.inputs import Inputs
from bert_jax.pretrained.load import Pretrained
from bert_jax.text.documents import Document
from bert_jax.text.tokenizer import train_tokenizer

SENTENCES = [
    'The quick brown fox, naïve as ever, jumps over the lazy dogs.',
    "Don't sing über-long songs (really) in a café!",
    '你好世界 is how 世界 begins; running unbelievably far.',
] * 8
KINDS = ('wordpiece', 'sentencepiece')


def tokenizer_of(kind, size=150):
    return train_tokenizer(config.Tokenizer(kind=kind, vocab_size=size), iter(SENTENCES))


def windows():
    texts = [*SENTENCES[:3], *(f'{a} {b}' for a, b in itertools.permutations(SENTENCES[:2]))]
    found = (window for text in texts for window in windows_of(Document(text)))
    return [window for window in found if window.words]


@functools.cache
def model():
    """(sizes, a model with random weights) for any of the tokenizers here: what is compiled for one serves all."""
    sizes = {'num_layers': 1, 'hidden_size': 16, 'num_heads': 2, 'intermediate_size': 32, 'max_positions': 64}
    graph, shapes = nnx.split(nnx.eval_shape(lambda: BertForPreTraining(config.Bert(**sizes), 256, nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)
    return config.Bert(**sizes), nnx.merge(graph, params)


def pretrained(tokenizer, room=64):
    """A model that takes rows of `room` positions."""
    sizes, built = model()
    return Pretrained(built, tokenizer, dataclasses.replace(sizes, max_positions=room), None)


@functools.partial(jax.jit, static_argnums=0)
def _logits(graph, params, ids, length):
    places = jnp.arange(ids.shape[1])[None]
    present, zeros = (places < length).astype(int), jnp.zeros_like(ids)
    model = nnx.merge(graph, params)
    return model.mlm_logits(model.encode(Inputs(ids, zeros, present, places)), places)[0]


def probabilities(found, ids, masked):
    """log p of all tokens at all positions of one row, by the model's own call, nothing shared with what is tested."""
    row = [found.tokenizer.mask_id if place in masked else token for place, token in enumerate(ids)]
    padded = np.array([row + [found.tokenizer.pad_id] * (64 - len(row))])
    logits = np.asarray(_logits(*nnx.split(found.model), padded, len(row)), np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize('kind', KINDS)
def test_the_figure_is_that_of_a_loop_over_rows_and_pieces(kind):
    found = pretrained(tokenizer_of(kind), room=24)
    tokenizer, nats, characters, unknown = found.tokenizer, 0.0, 0, 0
    sample = windows()
    alphabet = {character for window in sample for character in window.text.lower() if character != ' '}
    for masked in words.mask_words(tokenizer, sample):
        characters += masked.characters
        unknown += masked.unknown
        for start, stop in words._cuts(masked.is_masked, 22):
            ids = [tokenizer.cls_id, *masked.ids[start:stop], tokenizer.sep_id]
            places = [1 + place for place in range(stop - start) if masked.is_masked[start + place]]
            table = probabilities(found, ids, places)
            nats -= sum(table[place, ids[place]] for place in places)
    result = words.measure(found, sample)
    expected = (nats + unknown * math.log(len(alphabet))) / characters
    assert result['masked_word_nats_per_character'] == pytest.approx(expected, rel=1e-5)
    assert result['windows_cut'] > 0 and result['masked_words'] == sum(len(window.words) for window in sample) > 5
    assert 0 < result['unigram_nats_per_character'] < math.log(len(alphabet))


@pytest.mark.parametrize('kind', KINDS)
def test_what_is_masked_is_what_the_words_are_encoded_to_alone(kind):
    tokenizer = tokenizer_of(kind)
    for window, masked in zip(windows(), words.mask_words(tokenizer, windows()), strict=True):
        assert masked.ids == tokenizer.encode_batch([window.text])[0]  # what the model was trained on
        if not window.text.isascii() and '世' in window.text:  # a piece may hold more ideographs than a word
            continue
        alone = [piece for ids in tokenizer.encode_batch([window.text[a:b] for a, b in window.words]) for piece in ids]
        assert np.array(masked.ids)[masked.is_masked].tolist() == alone
        assert masked.characters == sum(stop - start for start, stop in window.words)


def test_tokenizers_are_asked_the_same_words_and_cases_are_not_mixed_up():
    sample = windows()
    found = [words.measure(pretrained(tokenizer_of(kind), room=24), sample) for kind in KINDS]
    for name in ('words_sample', 'masked_words', 'unigram_nats_per_character'):
        assert found[0][name] == found[1][name]
    cased = train_tokenizer(config.Tokenizer(vocab_size=150, lowercase=False), iter(SENTENCES))
    assert words.measure(pretrained(cased, room=24), sample)['words_sample'] != found[0]['words_sample']


def test_what_is_unknown_is_charged_as_spelled_without_knowledge():
    tokenizer = train_tokenizer(config.Tokenizer(vocab_size=64), iter(['ab ba abba baab'] * 50))
    found = pretrained(tokenizer)
    known, hidden = Window('ab ab ab', ((3, 5),)), Window('ab xyzzy ab', ((3, 8),))
    ids = [tokenizer.cls_id, *tokenizer.encode_batch([hidden.text])[0], tokenizer.sep_id]
    assert ids[2] == tokenizer.unk_id
    nats = -probabilities(found, ids, [2])[2, ids[2]] + 5 * math.log(len({*'abxyz'}))
    result = words.measure(found, [hidden])
    assert result['masked_word_nats_per_character'] == pytest.approx(nats / 5, rel=1e-5)
    assert result['unknown_characters'] == 1.0 and words.measure(found, [known])['unknown_characters'] == 0.0


def test_pseudo_perplexity_is_that_of_a_loop_over_tokens():
    found = pretrained(tokenizer_of('wordpiece'), room=24)
    sample, losses = windows()[:1], []
    for window in sample:
        ids = found.tokenizer.encode_batch([window.text])[0][:22]
        ids = [found.tokenizer.cls_id, *ids, found.tokenizer.sep_id]
        losses += [-probabilities(found, ids, [place])[place, ids[place]] for place in range(1, len(ids) - 1)]
    assert pseudo_perplexity.measure(found, sample) == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)
