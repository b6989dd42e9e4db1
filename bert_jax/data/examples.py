"""Which windows of sentences there are, and how a window becomes a pair of sequences.

The windows of an epoch are planned once per (corpus, data config). Epochs differ in order, partners, trims and masks.

`N` windows or examples, `R` rows, `S` segments (sentences, the overlong ones cut), `D` documents.
"""

import dataclasses
import os
import pathlib
import shutil
import tempfile

import numpy as np

from bert_jax import config
from bert_jax.data import random
from bert_jax.data.masking import num_masked
from bert_jax.data.packing import pack
from bert_jax.errors import BadInput
from bert_jax.text import checksums
from bert_jax.text.corpus import Split
from bert_jax.text.progress import say

_PLAN_VERSION = 3
_SHORT_KEY = 0x5EED  # planned lengths belong to the corpus and the data config, not to the seed of a run


@dataclasses.dataclass(frozen=True)
class Plan:
    """The windows of one epoch; arrays may be memory-mapped.

    segments: [S+1] int64, token position where each segment starts; the last one closes.
    documents: [D+1] int64, segment where each document starts; documents of one token are left out of windows.
    document_of: [N] int64, the document of each window.
    first_segment: [N] int64; num_segments: [N] int32, the segments of each window.
    start: [N] int64, first token of each window.  length: [N] int32, tokens in it.
    target: [N] int32, tokens that its example holds, special tokens not counted.
    rows: [R+1] int64, the first window of each row; the last one closes. Without packing a row is a window.
    by_length: [D] int64, documents from the longest to the shortest, with `nsp`.
    num_holding: [limit+1] int64, how many documents hold at least so many tokens, with `nsp`.
    """

    segments: np.ndarray
    documents: np.ndarray
    document_of: np.ndarray
    first_segment: np.ndarray
    num_segments: np.ndarray
    start: np.ndarray
    length: np.ndarray
    target: np.ndarray
    rows: np.ndarray
    by_length: np.ndarray
    num_holding: np.ndarray

    @property
    def num_windows(self) -> int:
        return len(self.start)

    @property
    def num_rows(self) -> int:
        return len(self.rows) - 1


def num_special_tokens(data: config.Data) -> int:
    """[CLS] A [SEP] B [SEP], or [CLS] A [SEP]."""
    return 2 if data.pairing == 'none' else 3


def max_tokens(data: config.Data) -> int:
    """Tokens in a sequence that fills a row, without its special tokens."""
    return data.sequence_length - num_special_tokens(data)


def plan_windows(split: Split, data: config.Data) -> Plan:
    """Cuts every document into windows, as the original's `create_instances_from_document` does.

    Sentences are taken until the planned length is reached: the full row, or with probability
    `short_sequence_probability` a length drawn from 2 to the full row. Other than there, a lone last
    sentence joins the window before it, so that a pair can be cut between sentences, and a
    sentence longer than a row is cut into segments instead of being thrown away.
    """
    limit = max_tokens(data)
    segments, documents = _cut_long_sentences(split, limit)
    token_bounds = segments[documents]
    active = np.flatnonzero(np.diff(token_bounds) >= 2)
    position = token_bounds[active] if data.pairing == 'none' else documents[active]
    found, round_number = [], 0
    while len(active):
        target = _planned_lengths(active, round_number, data, limit)
        if data.pairing == 'none':
            begin, last = position, token_bounds[active + 1]
            end = np.minimum(begin + target, last)
            first, count = np.zeros_like(begin), np.zeros_like(begin)
            position = end
        else:
            first, last = position, documents[active + 1]
            position = np.searchsorted(segments, segments[first] + target, side='left')
            position = np.minimum(np.maximum(position, first + 2), last)
            position = np.where(last - position == 1, last, position)
            begin, end, count = segments[first], segments[position], position - first
        found.append((active, first, count, begin, end - begin, np.maximum(np.minimum(target, end - begin), 2)))
        unfinished = position < last
        active, position, round_number = active[unfinished], position[unfinished], round_number + 1
    columns = [np.concatenate(column) for column in zip(*found, strict=True)] if found else [np.zeros(0, np.int64)] * 6
    order = np.argsort(columns[3], kind='stable')
    packed, rows = _plan_rows(columns[5][order], data)
    document_of, first, count, start, length, target = (column[order[packed]] for column in columns)
    narrow = (column.astype(np.int32) for column in (length, target))
    by_length, num_holding = _rank_documents(token_bounds, limit if data.pairing == 'nsp' else 0)
    return Plan(
        segments, documents, document_of, first, count.astype(np.int32), start, *narrow, rows, by_length, num_holding
    )


def _plan_rows(targets: np.ndarray, data: config.Data) -> tuple[np.ndarray, np.ndarray]:
    """([N] windows, row after row; [R+1] where each row starts)."""
    if not data.packing:
        return np.arange(len(targets)), np.arange(len(targets) + 1)
    capacity, most = data.sequence_length, config.num_predictions(data)
    return pack(
        targets + num_special_tokens(data),
        np.minimum(num_masked(np.arange(capacity + 1), data.masking.rate), most),
        capacity=capacity,
        max_predictions=most,
        max_sequences=config.max_sequences(data),
    )


def _rank_documents(token_bounds: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """(documents from long to short, how many hold at least 0, 1, … `limit` tokens); two empty arrays for 0."""
    if not limit:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    lengths = np.minimum(np.diff(token_bounds), limit)
    counts = np.bincount(lengths, minlength=limit + 1)
    return np.argsort(-lengths, kind='stable'), np.cumsum(counts[::-1])[::-1].copy()


def _cut_long_sentences(split: Split, limit: int) -> tuple[np.ndarray, np.ndarray]:
    sentences, documents = np.asarray(split.sentences), np.asarray(split.documents)
    lengths = np.diff(sentences)
    pieces = np.where(lengths > limit, -(-lengths // max(limit // 2, 1)), 1)
    if not (pieces > 1).any():
        return sentences, documents
    first_piece = np.concatenate([[0], np.cumsum(pieces)])
    sentence_of = np.repeat(np.arange(len(lengths)), pieces)
    number = np.arange(first_piece[-1]) - first_piece[sentence_of]
    starts = sentences[sentence_of] + number * lengths[sentence_of] // pieces[sentence_of]
    return np.append(starts, sentences[-1]), first_piece[documents]


def _planned_lengths(documents: np.ndarray, round_number: int, data: config.Data, limit: int) -> np.ndarray:
    draws = random.bits(random.fold(random.fold(_SHORT_KEY, documents), round_number), 2)
    short = random.uniform(draws[:, 0]) < data.short_sequence_probability
    return np.where(short, 2 + random.below(draws[:, 1], limit - 1), limit)


def load_plan(corpus_directory: str, split_name: str, split: Split, data: config.Data) -> Plan:
    """The plan of a split, memory-mapped from beside its corpus; made there at the first use.

    Raises:
      BadInput: when the split has too few documents for what `data.pairing` asks.
    """
    if data.pairing == 'nsp' and len(split.documents) - 1 < 2:
        raise BadInput(
            f'{corpus_directory} ({split_name})',
            f'holds {len(split.documents) - 1} document(s): a random next sentence needs another document',
            'at least 2 documents; a blank line separates documents in a text file',
            '--config.data.pairing=sop or --config.data.pairing=none',
        )
    settings = [_PLAN_VERSION, split_name, data.sequence_length, data.short_sequence_probability, data.pairing]
    if data.packing:
        packing = [data.masking.rate, config.num_predictions(data), config.max_sequences(data)]
        settings.append(packing)
    settings.append([split.num_tokens, len(split.sentences), len(split.documents)])
    directory = pathlib.Path(corpus_directory) / 'plans' / config.digest(settings)
    names = [field.name for field in dataclasses.fields(Plan)]
    if directory.is_dir() and (damage := checksums.damage(directory)):
        say(f'The plan in {directory} is not as it was written ({damage}): made anew', True)
        shutil.rmtree(directory, ignore_errors=True)
        if directory.is_dir():  # a shared, read-only corpus
            return plan_windows(split, data)
    if not directory.is_dir():
        plan = plan_windows(split, data)
        try:
            _write_plan(plan, directory)
        except PermissionError:  # a shared, read-only corpus: every process plans for itself
            return plan
    # Plain arrays over the mapped files: `np.memmap` costs microseconds at every look.
    files = {name: np.load(directory / f'{name}.npy', mmap_mode='r', allow_pickle=False) for name in names}
    return Plan(**{name: np.asarray(file) for name, file in files.items()})


def _write_plan(plan: Plan, directory: pathlib.Path) -> None:
    directory.parent.mkdir(exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix='.plan-', dir=directory.parent))
    for field in dataclasses.fields(Plan):
        with open(temporary / f'{field.name}.npy', 'wb') as file:
            np.save(file, getattr(plan, field.name))
            file.flush()
            os.fsync(file.fileno())
    checksums.seal(temporary)
    try:
        os.rename(temporary, directory)
    except OSError:
        shutil.rmtree(temporary)
        if not directory.is_dir():  # not just another process that was faster
            raise


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Examples as spans of the corpus's tokens, each array [N] int64; a span of length 0 is absent."""

    a_start: np.ndarray
    a_length: np.ndarray
    b_start: np.ndarray
    b_length: np.ndarray
    label: np.ndarray  # the next-sentence (or swapped-order) label


_CUT, _RANDOM, _DOCUMENT, _START, _A_TRIM, _B_TRIM = range(6)
_NUM_DRAWS = 6


def make_pairs(plan: Plan, windows: np.ndarray, keys: np.ndarray, pairing: str) -> Pairs:
    """Cuts windows into sentence pairs, as the original's `create_instances_from_document`.

    The window is cut between two of its sentences; in half of the cases what follows the cut is replaced by text
    from another document (`nsp`, label 1) or the halves change places (`sop`, label 1). Then tokens leave the longer
    half, each from its front or its back with probability 1/2, until the planned length is met.

    Args:
      windows: [N] int64, indices into the plan.
      keys: [N] uint64, the random key of each example.
    """
    start, length = plan.start[windows], plan.length[windows].astype(np.int64)
    target, zero = plan.target[windows].astype(np.int64), np.zeros(len(windows), np.int64)
    if pairing == 'none':
        return Pairs(start, np.minimum(target, length), zero, zero, zero)
    draws = random.bits(random.fold(keys, 1), _NUM_DRAWS)
    first, count = plan.first_segment[windows], plan.num_segments[windows].astype(np.int64)
    between = plan.segments[first + 1 + random.below(draws[:, _CUT], np.maximum(count - 1, 1))]
    inside = start + 1 + random.below(draws[:, _CUT], np.maximum(length - 1, 1))
    cut = np.where(count > 1, between, inside)
    a_start, a_length, b_start, b_length = start, cut - start, cut, start + length - cut
    label = (random.uniform(draws[:, _RANDOM]) < 0.5).astype(np.int64)
    if pairing == 'nsp':
        chosen = np.flatnonzero(label)
        wanted, own = np.maximum(target - a_length, 1)[chosen], plan.document_of[windows[chosen]]
        b_start[chosen], b_length[chosen] = _find_partners(plan, own, wanted, draws[chosen])
    a_kept, b_kept = _trimmed_lengths(a_length, b_length, target)
    words = -(-int(max((a_length - a_kept).max(initial=0), (b_length - b_kept).max(initial=0), 1)) // 64)
    a_start = a_start + random.coin_flips(random.bits(draws[:, _A_TRIM], words), a_length - a_kept)
    b_start = b_start + random.coin_flips(random.bits(draws[:, _B_TRIM], words), b_length - b_kept)
    if pairing == 'sop':
        swap = label == 1
        a_start, b_start = np.where(swap, b_start, a_start), np.where(swap, a_start, b_start)
        a_kept, b_kept = np.where(swap, b_kept, a_kept), np.where(swap, a_kept, b_kept)
    return Pairs(a_start, a_kept, b_start, b_kept, label)


def _find_partners(plan: Plan, own: np.ndarray, wanted: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A span of at least `wanted` tokens from any other document that holds so many; where none does, of fewer.

    So a sequence keeps its planned length, and its length does not tell that its second half is random.
    """
    own_length = plan.segments[plan.documents[own + 1]] - plan.segments[plan.documents[own]]
    num_holding = plan.num_holding[wanted]
    num_others = num_holding - (own_length >= wanted)
    holding = plan.by_length[random.below(draws[:, _DOCUMENT], np.maximum(num_others, 1))]
    holding = np.where(holding == own, plan.by_length[num_holding - 1], holding)  # the last one stands in for its own
    any_other = random.below(draws[:, _DOCUMENT], len(plan.documents) - 2)
    any_other = any_other + (any_other >= own)
    other = np.where(num_others > 0, holding, any_other)
    first_segment, last_segment = plan.documents[other], plan.documents[other + 1]
    end = plan.segments[last_segment]
    last_start = np.searchsorted(plan.segments, end - wanted, side='right') - 1
    last_start = np.clip(last_start, first_segment, last_segment - 1)
    segment = first_segment + random.below(draws[:, _START], last_start - first_segment + 1)
    begin = plan.segments[segment]
    stop_segment = np.searchsorted(plan.segments, begin + wanted, side='left')
    return begin, plan.segments[np.minimum(stop_segment, last_segment)] - begin


def _trimmed_lengths(a: np.ndarray, b: np.ndarray, total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the original's `truncate_seq_pair` leaves: one token off the longer (off B when equal) until they fit."""
    a_kept = np.where(a + b > total, np.minimum(a, np.maximum(total - b, (total + 1) // 2)), a)
    return a_kept, np.minimum(b, total - a_kept)
