"""The masked-word metric equals a plain loop over rows, and selects the same words for every tokenizer."""

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
from bert_jax.evaluation import masked_words, pseudo_perplexity
from bert_jax.evaluation.sample import Window, split_into_windows
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
KINDS = ('wordpiece', 'sentencepiece', 'bpe')


def make_tokenizer(kind):
    return train_tokenizer(config.Tokenizer(kind=kind, vocab_size=150), iter(SENTENCES))


def sample_windows():
    texts = [*SENTENCES[:3], *(f'{a} {b}' for a, b in itertools.permutations(SENTENCES[:2]))]
    windows = (window for text in texts for window in split_into_windows(Document(text)))
    return [window for window in windows if window.words]


@functools.cache
def make_model():
    """Returns (config, model with random weights); all tokenizers here share it, so it is compiled only once."""
    model = config.Bert(
        num_layers=1, hidden_size=16, num_heads=2, intermediate_size=32, max_positions=64, dtype='float32'
    )
    graph, shapes = nnx.split(nnx.eval_shape(lambda: BertForPreTraining(model, 256, nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)
    return model, nnx.merge(graph, params)


def make_pretrained(tokenizer, max_positions=64):
    """Returns a model for rows of at most `max_positions` positions."""
    model_config, model = make_model()
    return Pretrained(model, tokenizer, dataclasses.replace(model_config, max_positions=max_positions), None)


@functools.partial(jax.jit, static_argnums=0)
def _logits(graph, params, ids, length):
    positions = jnp.arange(ids.shape[1])[None]
    sequence_ids, token_type_ids = (positions < length).astype(int), jnp.zeros_like(ids)
    model = nnx.merge(graph, params)
    hidden = model.encode(Inputs(ids, token_type_ids, sequence_ids, positions))
    return model.mlm_logits(hidden, positions)[0]


def log_probabilities(pretrained, ids, masked):
    """Returns log p of all tokens at all positions of one row [L, V], without using the code under test."""
    row = [pretrained.tokenizer.mask_id if position in masked else token for position, token in enumerate(ids)]
    padded = np.array([row + [pretrained.tokenizer.pad_id] * (64 - len(row))])
    logits = np.asarray(_logits(*nnx.split(pretrained.model), padded, len(row)), np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize('kind', KINDS)
def test_metric_equals_a_loop_over_rows_and_tokens(kind):
    pretrained = make_pretrained(make_tokenizer(kind), max_positions=24)
    tokenizer, nats, characters, unknown = pretrained.tokenizer, 0.0, 0, 0
    sample = sample_windows()
    alphabet = {character for window in sample for character in window.text.lower() if character != ' '}
    for masked in masked_words.mask_words(tokenizer, sample):
        characters += masked.num_characters
        unknown += masked.num_unknown
        for start, stop in masked_words._split_ranges(masked.is_masked, 22):
            ids = [tokenizer.cls_id, *masked.ids[start:stop], tokenizer.sep_id]
            positions = [1 + i for i in range(stop - start) if masked.is_masked[start + i]]
            log_p = log_probabilities(pretrained, ids, positions)
            nats -= sum(log_p[position, ids[position]] for position in positions)
    result = masked_words.measure(pretrained, sample)
    expected = (nats + unknown * math.log(len(alphabet))) / characters
    assert result['masked_word_nats_per_character'] == pytest.approx(expected, rel=1e-5)
    assert result['windows_cut'] > 0 and result['masked_words'] == sum(len(window.words) for window in sample) > 5
    assert 0 < result['unigram_nats_per_character'] < math.log(len(alphabet))


@pytest.mark.parametrize('kind', KINDS)
def test_masked_tokens_are_those_of_the_words_encoded_alone(kind):
    tokenizer = make_tokenizer(kind)
    for window, masked in zip(sample_windows(), masked_words.mask_words(tokenizer, sample_windows()), strict=True):
        assert masked.ids == tokenizer.encode_batch([window.text])[0]  # encoded as in training
        if not window.text.isascii() and '世' in window.text:  # a token may contain more ideographs than a word
            continue
        words = [(tokenizer.word_prefix if start else '') + window.text[start:stop] for start, stop in window.words]
        alone = [token for ids in tokenizer.encode_batch(words) for token in ids]
        assert np.array(masked.ids)[masked.is_masked].tolist() == alone
        assert masked.num_characters == sum(stop - start for start, stop in window.words)


def test_words_are_the_same_for_all_tokenizers_of_one_casing():
    sample = sample_windows()
    results = [masked_words.measure(make_pretrained(make_tokenizer(kind), max_positions=24), sample) for kind in KINDS]
    for name in ('words_sample', 'masked_words', 'unigram_nats_per_character'):
        assert results[0][name] == results[1][name]
    cased = train_tokenizer(config.Tokenizer(vocab_size=150, lowercase=False), iter(SENTENCES))
    cased_result = masked_words.measure(make_pretrained(cased, max_positions=24), sample)
    assert cased_result['words_sample'] != results[0]['words_sample']


def test_unknown_word_is_charged_as_spelled_uniformly_at_random():
    tokenizer = train_tokenizer(config.Tokenizer(vocab_size=64), iter(['ab ba abba baab'] * 50))
    pretrained = make_pretrained(tokenizer)
    known, unknown = Window('ab ab ab', ((3, 5),)), Window('ab xyzzy ab', ((3, 8),))
    ids = [tokenizer.cls_id, *tokenizer.encode_batch([unknown.text])[0], tokenizer.sep_id]
    assert ids[2] == tokenizer.unk_id
    nats = -log_probabilities(pretrained, ids, [2])[2, ids[2]] + 5 * math.log(len({*'abxyz'}))
    result = masked_words.measure(pretrained, [unknown])
    assert result['masked_word_nats_per_character'] == pytest.approx(nats / 5, rel=1e-5)
    assert (
        result['unknown_characters'] == 1.0 and masked_words.measure(pretrained, [known])['unknown_characters'] == 0.0
    )


def test_pseudo_perplexity_equals_a_loop_over_tokens():
    pretrained = make_pretrained(make_tokenizer('wordpiece'), max_positions=24)
    sample, losses = sample_windows()[:1], []
    for window in sample:
        ids = pretrained.tokenizer.encode_batch([window.text])[0][:22]
        ids = [pretrained.tokenizer.cls_id, *ids, pretrained.tokenizer.sep_id]
        losses += [-log_probabilities(pretrained, ids, [i])[i, ids[i]] for i in range(1, len(ids) - 1)]
    assert pseudo_perplexity.measure(pretrained, sample) == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)
