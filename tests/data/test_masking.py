"""Masks are distributed as in the original, and their totals are exact."""

from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from bert_jax import config
from bert_jax.config import Masking
from bert_jax.data import random
from bert_jax.data.masking import MaskVocabulary, _unit_starts, mask_tokens
from bert_jax.text.special_tokens import SPECIAL_TOKENS
from bert_jax.text.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

MASK_ID, VOCAB = 4, 1000
IS_CONTINUATION = np.arange(VOCAB) % 5 < 2
VOCABULARY = MaskVocabulary(MASK_ID, np.ones(VOCAB, bool), np.arange(VOCAB), IS_CONTINUATION.__getitem__)


def _mask(seed: int, num_rows: int = 256, num_positions: int = 64, num_predictions: int = 12, rate: float = 0.15):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, num_positions + 1, num_rows)
    position = np.arange(num_positions)
    present = position < lengths[:, None]
    candidates = present & (position > 0) & (position != lengths[:, None] - 1) & (position != lengths[:, None] // 2)
    ids = np.where(present, rng.integers(5, VOCAB, present.shape), 0).astype(np.int32)
    keys = random.fold_in(seed, np.arange(num_rows))
    masked = mask_tokens(
        ids,
        candidates,
        lengths,
        keys,
        Masking(rate=rate),
        VOCABULARY,
        num_predictions=num_predictions,
    )
    return ids, candidates, lengths, masked


@pytest.mark.parametrize('rate', [0.15, 0.4])
def test_counts_are_exact_and_only_candidates_are_masked(rate: float) -> None:
    ids, candidates, lengths, masked = _mask(0, rate=rate)
    wanted = [max(1, round(rate * n)) for n in lengths]
    expected = np.minimum(np.minimum(wanted, candidates.sum(axis=1)), 12)
    np.testing.assert_array_equal(masked.weights.sum(axis=1), expected)
    for row in range(len(ids)):
        real = masked.weights[row] > 0
        positions = masked.positions[row][real]
        assert len(set(positions)) == len(positions) and list(positions) == sorted(positions)
        assert candidates[row][positions].all()
        np.testing.assert_array_equal(masked.ids[row][real], ids[row][positions])
        untouched = np.setdiff1d(np.arange(ids.shape[1]), positions)
        np.testing.assert_array_equal(masked.input_ids[row][untouched], ids[row][untouched])
        assert not masked.ids[row][~real].any() and not masked.positions[row][~real].any()


def test_replacements_are_80_10_10_and_random_tokens_uniform() -> None:
    same = became_mask = total = 0
    randoms = []
    for seed in range(60):
        ids, _, _, masked = _mask(seed)
        now = np.take_along_axis(masked.input_ids, masked.positions, axis=1)[masked.weights > 0]
        before = masked.ids[masked.weights > 0]
        total += len(now)
        became_mask += (now == MASK_ID).sum()
        same += (now == before).sum()
        randoms.append(now[(now != MASK_ID) & (now != before)])
    share = lambda count: count / total  # noqa: E731
    assert abs(share(became_mask) - (0.8 + 0.1 / VOCAB)) < 5 * np.sqrt(0.16 / total)
    assert abs(share(same) - (0.1 + 0.1 / VOCAB)) < 5 * np.sqrt(0.09 / total)
    counts = np.histogram(np.concatenate(randoms), bins=10, range=(0, VOCAB))[0]
    expected = counts.sum() / 10
    assert ((counts - expected) ** 2 / expected).sum() < 36  # 9 degrees of freedom, p = 4e-5


@pytest.mark.parametrize('kind', ['wordpiece', 'sentencepiece'])
@pytest.mark.parametrize('exclude', [True, False])
def test_special_and_unused_tokens_are_never_predicted_or_sampled(kind: str, exclude: bool, tmp_path) -> None:
    tokenizer = _with_unused_tokens(kind, tmp_path)
    vocabulary = MaskVocabulary.of(tokenizer, Masking(exclude_special=exclude))
    special = {index for index, token in enumerate(tokenizer.tokens) if token.startswith(('[', '<'))}
    assert special >= {tokenizer.pad_id, tokenizer.unk_id, tokenizer.mask_id} and len(special) >= 7
    ids = np.tile([tokenizer.cls_id, tokenizer.unk_id, *tokenizer.encode_batch(['the cat sat'])[0]], (4000, 1))
    candidates = np.broadcast_to(np.arange(ids.shape[1]) > 0, ids.shape)
    lengths, keys = np.full(len(ids), ids.shape[1]), random.fold_in(1, np.arange(len(ids)))
    everything_random = Masking(rate=0.5, mask_fraction=0.0, random_fraction=1.0)
    masked = mask_tokens(ids, candidates, lengths, keys, everything_random, vocabulary, num_predictions=4)
    drawn = np.take_along_axis(masked.input_ids, masked.positions, axis=1)[masked.weights > 0]
    labels = masked.ids[masked.weights > 0]
    if exclude:
        assert special.isdisjoint(drawn.tolist()) and tokenizer.unk_id not in labels
        assert len(np.unique(drawn)) == tokenizer.vocab_size - len(special)
    else:
        assert special <= {*drawn.tolist()} and tokenizer.unk_id in labels


def _with_unused_tokens(kind: str, directory: Path) -> Tokenizer:
    if kind == 'wordpiece':
        words = [*SPECIAL_TOKENS, '[unused0]', '[unused99]', 'the', 'cat', 'sat', '##s', *'abcdefgh']
        (directory / 'vocab.txt').write_text('\n'.join(words) + '\n')
        return load_tokenizer(str(directory / 'vocab.txt'), lowercase=True, strip_accents=False)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(['the cat sat on the mat', 'a bad egg fed a chef'] * 20),
        model_prefix=str(directory / 'small'),
        vocab_size=30,
        hard_vocab_limit=False,
        unk_piece='[UNK]',
        pad_id=3,
        pad_piece='[PAD]',
        control_symbols=['[CLS]', '[SEP]', '[MASK]', '<unused0>', '<unused1>'],
        minloglevel=2,
    )
    return load_tokenizer(str(directory / 'small.model'), lowercase=True, strip_accents=False)


def test_whole_words_of_byte_level_bpe_are_masked_at_the_given_rate() -> None:
    """Words and their counts are those of the library's pre-tokenizer, for words of one and of many tokens."""
    text = "the cat sat on the mat, don't you know? naïve 猫が座る 12345 \U0001f600 mat"
    tokenizer = train_tokenizer(config.Tokenizer(kind='bpe', vocab_size=320), iter([text[:22]] * 5))
    encoding = tokenizer._backend.encode(text, add_special_tokens=False)
    words = np.array([-1, *encoding.word_ids])
    ids = np.tile([tokenizer.cls_id, *encoding.ids], (3000, 1)).astype(np.int32)
    candidates = np.broadcast_to(np.arange(ids.shape[1]) > 0, ids.shape)
    lengths, keys = np.full(len(ids), ids.shape[1]), random.fold_in(5, np.arange(len(ids)))
    rates, sizes = {}, np.bincount(words[1:])
    assert (sizes > 3).any() and (sizes == 1).any()
    for unit in ('word', 'ngram'):
        masking = Masking(unit=unit, rate=0.3)
        vocabulary = MaskVocabulary.of(tokenizer, masking)
        masked = mask_tokens(ids, candidates, lengths, keys, masking, vocabulary, num_predictions=30)
        drawn = np.zeros(ids.shape, bool)
        rows, slots = np.nonzero(masked.weights)
        drawn[rows, masked.positions[rows, slots]] = True
        share = np.stack([drawn[:, words == word].mean(axis=1) for word in range(len(sizes))], axis=1)
        assert np.isin(share, (0, 1)).all()  # a word is masked as a whole or not at all
        rates[unit] = drawn.mean()
        runs = np.diff(np.pad(share, ((0, 0), (1, 1))), axis=1)
        rates[f'{unit} words per run'] = share.sum() / (runs == 1).sum()
    assert abs(rates['word'] - 0.3) < 0.04 and abs(rates['ngram'] - 0.3) < 0.06
    assert rates['ngram words per run'] > 1.2 * rates['word words per run']


def test_every_candidate_is_masked_equally_often() -> None:
    ids = np.full((20_000, 30), 7, np.int32)
    candidates = np.zeros(ids.shape, bool)
    candidates[:, 1:21] = True
    keys = random.fold_in(9, np.arange(len(ids)))
    masked = mask_tokens(
        ids,
        candidates,
        np.full(len(ids), 22),
        keys,
        Masking(),
        VOCABULARY,
        num_predictions=5,
    )
    counts = np.bincount(masked.positions[masked.weights > 0], minlength=30)
    assert counts[0] == 0 and not counts[21:].any()
    expected = 20_000 * 3 / 20  # round(0.15 x 22) = 3 of 20 candidates
    assert ((counts[1:21] - expected) ** 2 / expected).sum() < 60


def test_row_without_candidates_gets_no_prediction() -> None:
    masked = mask_tokens(
        np.zeros((2, 8), np.int32),
        np.zeros((2, 8), bool),
        np.zeros(2, int),
        random.fold_in(0, np.arange(2)),
        Masking(),
        VOCABULARY,
        num_predictions=10,
    )
    assert masked.weights.shape == (2, 10) and not masked.weights.any()


def _mask_units(unit: str, seed: int, num_rows: int = 128, num_predictions: int = 12):
    """Returns rows with two runs of text each, whose words have 1 to about 5 tokens."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 65, num_rows)
    position = np.arange(64)
    present = position < lengths[:, None]
    candidates = present & (position > 0) & (position != lengths[:, None] - 1) & (position != lengths[:, None] // 2)
    ids = np.where(present, rng.integers(5, VOCAB, present.shape), 0).astype(np.int32)
    masked = mask_tokens(
        ids,
        candidates,
        lengths,
        random.fold_in(seed, np.arange(num_rows)),
        Masking(unit=unit),
        VOCABULARY,
        num_predictions=num_predictions,
    )
    return ids, candidates, lengths, masked


def _words(ids: np.ndarray, candidates: np.ndarray) -> list[list[int]]:
    """Returns the positions of each word of a row, by the original's rule, one token at a time."""
    words: list[list[int]] = []
    for position in range(len(ids)):
        if candidates[position]:
            if candidates[position - 1] and IS_CONTINUATION[ids[position]]:
                words[-1].append(position)
            else:
                words.append([position])
    return words


@pytest.mark.parametrize('unit', ['word', 'ngram'])
@pytest.mark.parametrize('seed', range(8))
def test_words_are_masked_whole_within_the_limit(unit: str, seed: int) -> None:
    ids, candidates, lengths, masked = _mask_units(unit, seed)
    for row in range(len(ids)):
        drawn = set(masked.positions[row][masked.weights[row] > 0].tolist())
        n = min(max(1, round(0.15 * lengths[row])), 12)
        assert len(drawn) <= n
        words = _words(ids[row], candidates[row])
        assert all(drawn.isdisjoint(word) or drawn.issuperset(word) for word in words)
        assert drawn <= {position for word in words for position in word}
        if unit == 'word':  # every word that fits is masked
            assert all(len(word) > n - len(drawn) for word in words if drawn.isdisjoint(word))


def _original_words(words: list[list[int]], n: int, rng: np.random.Generator) -> set[int]:
    """`create_masked_lm_predictions` of the original, with whole-word masking."""
    drawn: set[int] = set()
    for number in rng.permutation(len(words)):
        if len(drawn) + len(words[number]) <= n:
            drawn.update(words[number])
    return drawn


def test_words_are_masked_as_often_as_by_the_original() -> None:
    rng = np.random.default_rng(0)
    sizes = [1, 3, 1, 2, 5, 1, 2, 1, 4, 1, 1, 2]
    ids = np.zeros((1, 64), np.int32)
    words, position = [], 1
    for size in sizes:
        words.append(list(range(position, position + size)))
        ids[0, words[-1]] = [7] + [5] * (size - 1)  # 5 continues a word, 7 begins one
        position += size
    candidates = ((np.arange(64) > 0) & (np.arange(64) < position))[None]
    rows = 20_000
    masked = mask_tokens(
        np.repeat(ids, rows, axis=0),
        np.repeat(candidates, rows, axis=0),
        np.full(rows, 40),  # n = 6
        random.fold_in(5, np.arange(rows)),
        Masking(unit='word'),
        VOCABULARY,
        num_predictions=10,
    )
    ours = np.bincount(masked.positions[masked.weights > 0], minlength=64) / rows
    theirs = np.zeros(64)
    for _ in range(rows):
        theirs[list(_original_words(words, 6, rng))] += 1 / rows
    assert np.abs(ours - theirs).max() < 5 * np.sqrt(0.5 / rows)
    assert abs(masked.weights.sum() / rows - theirs.sum()) < 0.03


def test_ngram_lengths_have_frequencies_proportional_to_one_over_n() -> None:
    """The probability that word i of a run begins an n-gram obeys u(i) = sum over n of p(n) u(i - n)."""
    rows, num_words = 40_000, 10
    ids = np.full((rows, 32), 7, np.int32)
    ids[:, 2:22:2] = 5  # words of two tokens
    candidates = np.zeros(ids.shape, bool)
    candidates[:, 1:21] = candidates[:, 22:24] = True  # and a second run, of one word
    starts = _unit_starts(ids, candidates, random.fold_in(3, np.arange(rows)), 'ngram', IS_CONTINUATION.__getitem__)
    begins = np.array([1.0] + [0.0] * (num_words - 1))
    for word in range(1, num_words):
        begins[word] = sum(p * begins[word - n] for n, p in ((1, 6 / 11), (2, 3 / 11), (3, 2 / 11)) if word >= n)
    found = starts.mean(axis=0)
    assert np.abs(found[1:21:2] - begins).max() < 5 * np.sqrt(0.25 / rows)
    assert not found[2:22:2].any() and found[22] == 1
    spans = np.diff(np.flatnonzero(starts[:, 1:21:2].ravel()))
    assert set(spans) == {1, 2, 3}


@pytest.mark.parametrize('unit', ['token', 'word', 'ngram'])
def test_sequences_of_one_row_are_masked_independently(unit: str) -> None:
    rows, bounds = 500, [0, 30, 41, 64]
    rng = np.random.default_rng(1)
    ids = rng.integers(5, VOCAB, (rows, 64)).astype(np.int32)
    candidates = np.ones(ids.shape, bool)
    candidates[:, [0, 29, 30, 40, 41, 63]] = False
    lengths = np.tile(np.append(np.diff(bounds), 0), (rows, 1))  # the fourth sequence is absent
    masked = mask_tokens(
        ids,
        candidates,
        lengths,
        random.fold_in(8, np.arange(rows)),
        Masking(unit=unit),
        VOCABULARY,
        num_predictions=12,
        sequence_ids=np.tile(np.repeat([1, 2, 3], np.diff(bounds)), (rows, 1)),
    )
    places = np.where(masked.weights > 0, masked.positions, -1)
    for low, high, n in zip(bounds[:-1], bounds[1:], [4, 2, 3], strict=True):
        counts = ((places >= low) & (places < high)).sum(axis=1)
        assert counts.max() == n and (unit != 'token' or counts.min() == n)
