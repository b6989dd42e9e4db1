"""Windows cover every document once; pairs are distributed as in the original."""

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from bert_jax.config import Data
from bert_jax.data import random
from bert_jax.data.examples import _trimmed_lengths, make_pairs
from bert_jax.data.windows import max_tokens
from tests.support.corpora import MemorySplit, plan_of, random_split


def _keys(seed: int, count: int) -> np.ndarray:
    return random.fold_in(random.fold_in_int(seed, 0), np.arange(count))


@pytest.mark.parametrize('pairing', ['nsp', 'sop', 'none'])
@pytest.mark.parametrize('seed', range(3))
def test_windows_cover_every_document_exactly_once(pairing: str, seed: int) -> None:
    split = random_split(seed, longest=150)  # some sentences are longer than a row
    data = Data(sequence_length=64, pairing=pairing)
    plan = plan_of(split, data)
    uses = np.zeros(split.num_tokens, int)
    for start, length in zip(plan.start, plan.length, strict=True):
        uses[start : start + length] += 1
    bounds = split.sentences[split.documents]
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        assert np.all(uses[first:last] == (1 if last - first >= 2 else 0))
    assert np.all(plan.target <= max_tokens(data)) and np.all(plan.target >= 2)
    document = np.searchsorted(bounds, plan.start, side='right') - 1
    np.testing.assert_array_equal(document, plan.document_of)
    assert np.all(plan.start + plan.length <= bounds[document + 1])


def test_short_sequences_have_the_configured_frequency() -> None:
    rng = np.random.default_rng(0)
    sentences = np.concatenate([[0], np.cumsum(rng.integers(5, 20, 200_000))])
    split = MemorySplit(sentences, np.arange(0, 200_001, 1000))
    plan = plan_of(split, Data(sequence_length=64, short_sequence_probability=0.1))
    short = plan.target < max_tokens(Data(sequence_length=64))
    # A length sampled from 2…61 is short in 59 of 60 cases. The ends of documents add a few short windows.
    assert abs(short.mean() - 0.1 * 59 / 60) < 5 * np.sqrt(0.09 / len(short)) + 0.01


def _brute_force_truncate(a: int, b: int, limit: int) -> tuple[int, int]:
    """`truncate_seq_pair` of the original's create_pretraining_data.py, lengths only."""
    while a + b > limit:
        if a > b:
            a -= 1
        else:
            b -= 1
    return a, b


def test_trimmed_lengths_match_the_original_for_all_small_lengths() -> None:
    cases = [(a, b, limit) for a in range(1, 18) for b in range(1, 18) for limit in range(2, 20)]
    a, b, limit = np.array(cases).T
    found = np.stack(_trimmed_lengths(a, b, limit), axis=1)
    np.testing.assert_array_equal(found, [_brute_force_truncate(*case) for case in cases])


def test_half_of_next_sentences_come_from_another_document() -> None:
    split, data = random_split(1, num_documents=200), Data(sequence_length=64)
    plan = plan_of(split, data)
    document_of_token = np.repeat(np.arange(200), np.diff(split.sentences[split.documents]))
    labels = []
    for seed in range(20):
        pairs = make_pairs(plan, np.arange(plan.num_windows), _keys(seed, plan.num_windows), data)
        is_random = pairs.label == 1
        a, b = document_of_token[pairs.a_start], document_of_token[pairs.b_start]
        assert np.all((a == b) == ~is_random)
        assert np.all(document_of_token[pairs.b_start + pairs.b_length - 1] == b)
        assert np.all(pairs.b_start[~is_random] >= (pairs.a_start + pairs.a_length)[~is_random])
        assert pairs.a_length.min() >= 1 and pairs.b_length.min() >= 1
        total = pairs.a_length + pairs.b_length
        assert np.all(total <= plan.target)
        assert total.sum() > 0.95 * plan.target.sum()
        labels.append(pairs.label)
    labels = np.concatenate(labels)
    assert abs(labels.mean() - 0.5) < 5 * 0.5 / np.sqrt(labels.size)


def _label_accuracy(data: Data, *, only_short: bool = False, from_cuts: bool = False) -> float:
    """Returns the accuracy of boosted trees that predict next-sentence labels from lengths, or from cuts of B.

    It is measured on held-out examples.
    """
    rng = np.random.default_rng(7)
    counts = rng.integers(2, 30, 8000)  # sentences of each document
    split = MemorySplit(np.append(0, np.cumsum(rng.integers(3, 40, counts.sum()))), np.append(0, np.cumsum(counts)))
    plan = plan_of(split, data)
    windows = np.flatnonzero(plan.target < max_tokens(data)) if only_short else np.arange(plan.num_windows)
    epochs = [make_pairs(plan, windows, _keys(seed, len(windows)), data) for seed in range(8)]
    features, labels = [], np.concatenate([pairs.label for pairs in epochs])
    for pairs in epochs:
        ends = (pairs.b_start, pairs.b_start + pairs.b_length)
        cuts = [np.isin(end, plan.segments) for end in ends] if from_cuts else []
        features.append(np.stack([pairs.a_length, pairs.b_length, *cuts], axis=1))
    order = rng.permutation(len(labels))
    inputs, labels, half = np.concatenate(features)[order], labels[order], len(labels) // 2
    assert half > 25_000  # the standard deviation of the accuracy is 0.3%
    trees = HistGradientBoostingClassifier(random_state=0).fit(inputs[:half], labels[:half])
    return trees.score(inputs[half:], labels[half:])


@pytest.mark.parametrize('only_short', [False, True])
def test_lengths_do_not_reveal_the_next_sentence_label(only_short: bool) -> None:
    assert abs(_label_accuracy(Data(sequence_length=128), only_short=only_short) - 0.5) < 0.01


def test_lengths_reveal_labels_without_matching_lengths() -> None:
    assert _label_accuracy(Data(sequence_length=128, match_lengths=False), only_short=True) > 0.55


@pytest.mark.parametrize('length', [128, 512])
def test_cuts_reveal_little_about_the_next_sentence_label(length: int) -> None:
    """If random text were cut at the length of the true text, trees would predict 74 to 84% of the labels."""
    assert _label_accuracy(Data(sequence_length=length), from_cuts=True) < 0.62


def _partner_counts(split: MemorySplit, data: Data, window_of: int, seeds: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Returns how often each document is the partner of `window_of`, and which sequences have their planned length."""
    plan = plan_of(split, data)
    bounds = split.sentences[split.documents]
    windows = np.flatnonzero(plan.document_of == window_of)
    counts, is_full = np.zeros(len(bounds) - 1), []
    for seed in range(seeds):
        pairs = make_pairs(plan, windows, _keys(seed, len(windows)), data)
        random_ones = pairs.label == 1
        chosen = np.searchsorted(bounds, pairs.b_start[random_ones], side='right') - 1
        counts += np.bincount(chosen, minlength=len(counts))
        is_full.append((pairs.a_length + pairs.b_length == plan.target[windows])[random_ones])
    return counts, np.concatenate(is_full)


@pytest.mark.parametrize('own', [0, 5, 11])
def test_every_other_document_is_an_equally_likely_partner(own: int) -> None:
    split = MemorySplit(np.arange(0, 12 * 40 * 10 + 1, 10), np.arange(0, 12 * 40 + 1, 40))
    counts, is_full = _partner_counts(split, Data(sequence_length=32), own)
    assert counts[own] == 0 and is_full.all()
    others = np.delete(counts, own)
    expected = others.sum() / 11
    assert ((others - expected) ** 2 / expected).sum() < 37.4  # 10 degrees of freedom, p = 5e-5


def test_partner_is_long_enough_for_the_planned_length() -> None:
    """Documents 0 to 5 are long, the others have 6 tokens. Only a long one can fill a row, unless A is long itself."""
    lengths = np.array([300] * 6 + [6] * 6)
    split = MemorySplit(np.arange(0, lengths.sum() + 1, 6), np.concatenate([[0], np.cumsum(lengths // 6)]))
    data = Data(sequence_length=64, short_sequence_probability=0.0, match_lengths=False)
    counts, is_full = _partner_counts(split, data, 2)
    assert is_full.all() and counts[2] == 0
    assert counts[6:].sum() < 0.2 * counts.sum()
    others = np.delete(counts[:6], 2)
    assert np.ptp(others) < 6 * np.sqrt(others.mean())


def test_any_document_is_a_partner_if_all_are_short() -> None:
    # Twelve documents of 6 tokens and one of 100.
    split = MemorySplit(np.arange(0, 12 * 6 + 100 + 1, 2), np.array([*range(0, 37, 3), 86]))
    counts, is_full = _partner_counts(split, Data(sequence_length=64, short_sequence_probability=0.0), 12)
    assert counts[12] == 0 and np.all(counts[:12] > 0)
    assert not is_full.all()


def test_swapped_segments_are_the_same_text_in_reverse_order() -> None:
    split, data = random_split(3), Data(sequence_length=64, pairing='sop')
    plan = plan_of(split, data)
    pairs = make_pairs(plan, np.arange(plan.num_windows), _keys(0, plan.num_windows), data)
    in_order = pairs.a_start < pairs.b_start
    np.testing.assert_array_equal(in_order, pairs.label == 0)


def test_trimming_removes_from_front_and_back_equally_often() -> None:
    split = MemorySplit(np.array([0, 40, 80, 120, 160]), np.array([0, 2, 4]))
    data = Data(sequence_length=43, pairing='sop', short_sequence_probability=0.0)
    plan = plan_of(split, data)
    fronts = []
    for seed in range(2000):
        pairs = make_pairs(plan, np.array([0]), _keys(seed, 1), data)
        start = min(pairs.a_start[0], pairs.b_start[0])
        fronts.append(start)
    fronts = np.array(fronts)  # 20 of 40 tokens are trimmed: Binomial(20, 1/2)
    assert abs(fronts.mean() - 10) < 5 * np.sqrt(5 / 2000)
    assert abs(fronts.var() - 5) < 1.0


def test_coin_flips_are_binomial() -> None:
    for count in (1, 5, 64, 65, 200):
        bits = random.bits(random.fold_in(count, np.arange(4000)), 4)
        heads = random.coin_flips(bits, np.full(4000, count))
        assert heads.min() >= 0 and heads.max() <= count
        assert abs(heads.mean() - count / 2) < 5 * np.sqrt(count / 4 / 4000)
        assert abs(heads.var() / (count / 4) - 1) < 0.15
