"""Mixes the sources of a corpus in shares that a phase chooses, instead of reading each document equally often.

A corpus holds the documents of its sources one source after the other, so each source has its own windows and rows.
Which source a global row comes from, and which of its rows it is, are pure functions of its index. In each block of
`_ROWS_IN_BLOCK` rows every source has its share of rows, in random places; the rows of a source follow each other in
shuffled epochs of their own.

`B` rows of a batch, `K` sources.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from bert_jax.config import BatchSizes, Config, Data, num_rows
from bert_jax.data import random
from bert_jax.data.batches import Batch, CorpusStream, Stream
from bert_jax.data.sampler import EpochShuffle, RowSelection, Sampler
from bert_jax.errors import BadInput
from bert_jax.text.corpus import Corpus
from bert_jax.text.splits import SplitRange

_ROWS_IN_BLOCK = 1 << 16
MANY_EPOCHS = 4  # up to about four are nearly as good as new text (Muennighoff et al. 2023)


@dataclasses.dataclass(frozen=True)
class SourceUse:
    """How much of a source a phase uses.

    Attributes:
      share: of the rows of the phase.
      epochs: passes over the rows of the source.
    """

    source: str
    share: float
    epochs: float


def source_ranges(corpus: Corpus) -> dict[str, SplitRange]:
    """Returns the training documents of each source of a corpus.

    Raises:
      BadInput: if the corpus does not record them.
    """
    recorded = corpus.manifest.get('train_sources')
    if recorded is None:
        raise BadInput(
            f'config.data.corpus={corpus.directory}',
            'was prepared by a version that did not record which documents came from which source',
            'a corpus of this version, for data.source_weights and data.source_temperature',
            'prepare another config.data.corpus',
        )
    ranges, first = {}, 0
    for source in recorded:
        ranges[source['source']] = SplitRange(corpus.train, first, first + source['documents'])
        first += source['documents']
    return ranges


def shares(data: Data, ranges: dict[str, SplitRange]) -> dict[str, float]:
    """Returns the share of the rows that each source gets, without those that get none.

    Raises:
      BadInput: if there are not as many weights as sources.
    """
    if data.source_weights:
        if len(data.source_weights) != len(ranges):
            found = f'has {len(data.source_weights)} weights; the corpus has {len(ranges)} sources: {", ".join(ranges)}'
            raise BadInput('config.data.source_weights', found, 'one weight for each, in this order')
        weights = dict(zip(ranges, data.source_weights, strict=True))
    else:
        temperature = 1.0 if data.source_temperature is None else data.source_temperature
        weights = {name: part.num_tokens**temperature for name, part in ranges.items() if part.num_tokens}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items() if weight}


def describe_sources(run: Config, streams: Sequence[Stream]) -> list[str]:
    """Returns a line for each phase that mixes sources: their shares and epochs, and a warning if one is too small."""
    lines = []
    for index, (phase, stream) in enumerate(zip(run.in_phases, streams, strict=True), start=1):
        if not isinstance(stream, MixtureStream):
            continue
        uses, where = stream.uses(num_rows(phase.train)), f'Sources of phase {index}' if run.phases else 'Sources'
        lines.append(
            f'{where}: ' + ', '.join(f'{use.source} {use.share:.1%} ({use.epochs:,.2f} epochs)' for use in uses)
        )
        if repeated := [use.source for use in uses if use.epochs > MANY_EPOCHS]:
            lines.append(
                f'warning: {", ".join(repeated)}: read more than {MANY_EPOCHS} times; use more text or a smaller share'
            )
    return lines


class MixtureSampler(Sampler):
    """Rows of K sources in given shares; a row is counted over the rows of all sources together."""

    def __init__(
        self, num_rows: Sequence[int], shares: Sequence[float], batch_size: int | BatchSizes, seed: int, phase: int = 0
    ):
        super().__init__(sum(num_rows), batch_size, seed, phase)
        self.row_ends, self._quotas = np.cumsum(num_rows), quotas(shares, _ROWS_IN_BLOCK)  # rows in a block
        key = np.full(_ROWS_IN_BLOCK, random.fold_in_int(self._key, 0), np.uint64)
        order = random.permute(np.arange(_ROWS_IN_BLOCK), _ROWS_IN_BLOCK, key, limit=_ROWS_IN_BLOCK)
        self._source_of = np.repeat(np.arange(len(shares)), self._quotas)[order]  # by the place in a block
        self._rank_of = np.empty(_ROWS_IN_BLOCK, np.int64)  # among the rows of its source in the block
        for source, quota in enumerate(self._quotas):
            self._rank_of[self._source_of == source] = np.arange(quota)
        self._shuffles = [
            EpochShuffle(number, random.fold_in_int(self._key, source)) for source, number in enumerate(num_rows, 1)
        ]

    def rows(self, step: int, part: slice = slice(None)) -> RowSelection:
        """Returns the rows of a step's batch, or of a part of it."""
        indices = self._indices(step)[part]
        blocks, places = np.divmod(indices, _ROWS_IN_BLOCK)
        sources, rows = self._source_of[places], np.empty(len(indices), np.int64)
        ranks = blocks * self._quotas[sources] + self._rank_of[places]
        for source in np.unique(sources):
            chosen, shuffle = sources == source, self._shuffles[source]
            rows[chosen] = self.row_ends[source] - shuffle.num_rows + shuffle(ranks[chosen])
        return RowSelection(rows, np.ones(len(rows), bool), random.fold_in(self._key, indices))


def quotas(shares: Sequence[float], total: int) -> np.ndarray:
    """Divides a total among K sources, int64 [K]: each has its share by largest remainder, and at least one."""
    exact = np.array(shares) * total
    found = np.maximum(np.floor(exact).astype(np.int64), 1)
    missing = total - found.sum()
    if missing < 0:  # many tiny shares were rounded up
        found[found.argmax()] += missing
    else:
        found[np.argsort(found - exact, kind='stable')[:missing]] += 1
    return found


class MixtureStream(Stream[Batch]):
    """The batches of a corpus whose sources are mixed in the shares of `data.source_weights` or `source_temperature`.

    Attributes:
      split: the training split of the corpus.
    """

    def __init__(self, corpus: Corpus, data: Data, *, batch_size: int | BatchSizes, seed: int, phase: int = 0):
        """Raises:
        BadInput: if the corpus does not record its sources, or one of them has fewer rows than a batch.
        """
        self.data, self.split = data, corpus.train
        ranges = source_ranges(corpus)
        self.shares = shares(data, ranges)
        self._streams = [
            CorpusStream(corpus, data, 'train', batch_size=batch_size, seed=seed, phase=phase, part=ranges[name])
            for name in self.shares
        ]
        available = [stream.num_rows for stream in self._streams]
        super().__init__(MixtureSampler(available, [*self.shares.values()], batch_size, seed, phase))
        for name, number in zip(self.shares, available, strict=True):
            if number < self.batch_size:
                raise BadInput(
                    f'config.data.source={name}',
                    f'has {number:,} rows of {data.sequence_length} positions',
                    f'at least a batch of them, {self.batch_size:,}, to be mixed with other sources',
                    'more text, or a weight of 0 in data.source_weights',
                )

    def uses(self, num_rows: int) -> list[SourceUse]:
        """Returns how much of each source the first `num_rows` rows use."""
        return [
            SourceUse(name, share, share * num_rows / stream.num_rows)
            for (name, share), stream in zip(self.shares.items(), self._streams, strict=True)
        ]

    def _assemble(self, selection: RowSelection) -> Batch:
        sampler = self._sampler
        assert isinstance(sampler, MixtureSampler)
        sources = np.searchsorted(sampler.row_ends, selection.rows, side='right')
        parts = []
        for source in np.unique(sources):
            chosen, stream = np.flatnonzero(sources == source), self._streams[source]
            first = sampler.row_ends[source] - stream.num_rows
            own = RowSelection(selection.rows[chosen] - first, selection.present[chosen], selection.keys[chosen])
            parts.append((chosen, stream._assemble(own)))  # noqa: SLF001
        back = np.argsort(np.concatenate([chosen for chosen, _ in parts]))
        return Batch(*(np.concatenate(arrays)[back] for arrays in zip(*(batch for _, batch in parts), strict=True)))
