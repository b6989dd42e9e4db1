"""The batches that train embeddings: a pure function of (examples, seed, step).

Each batch comes from one source, so that a model has to distinguish its texts by meaning and not by source.
The sources take turns in proportion to their weights. A batch holds no example twice: an epoch of a source leaves out
the examples beyond its last full batch, which are others in each epoch.

`B` rows, `L` positions, `E` texts of a row, `Q` examples of a batch, `n` texts, `R` roles.
"""

from collections.abc import Sequence

import numpy as np

from bert_jax.data import random
from bert_jax.data.batches import Stream
from bert_jax.data.mixture import quotas
from bert_jax.data.pair_batches import PairBatch
from bert_jax.data.sampler import EpochShuffle, RowSelection, Sampler
from bert_jax.finetune.packing import Packing, SampledBatches, num_samples
from bert_jax.finetune.pairs import PairSource, Texts

_STEPS_IN_BLOCK = 1024  # in which each source has its share of the steps


class Turns:
    """The source of each step. In every block of steps each source has its share of them, evenly spaced."""

    def __init__(self, weights: Sequence[float]):
        self._quotas = quotas(np.array(weights) / sum(weights), _STEPS_IN_BLOCK)
        sources = np.repeat(np.arange(len(weights)), self._quotas)
        ranks = np.concatenate([np.arange(quota) for quota in self._quotas])
        order = np.argsort((ranks + 0.5) / self._quotas[sources], kind='stable')
        self._sources, self._ranks = sources[order], ranks[order]

    def at(self, step: int) -> tuple[int, int]:
        """Returns (source, how many earlier steps have it)."""
        block, place = divmod(step, _STEPS_IN_BLOCK)
        source = int(self._sources[place])
        return source, block * int(self._quotas[source]) + int(self._ranks[place])


class PairStream(Stream[PairBatch]):
    """Endless batches of Q examples, packed in rows; all batches have B rows, of lengths that vary in steps."""

    def __init__(
        self,
        sources: Sequence[PairSource],
        weights: Sequence[float],
        *,
        batch_size: int,
        num_roles: int,
        seed: int,
        pad_id: int,
        packing: Packing,
        min_length: int = 0,
    ):
        """Args:
        weights: of the sources; their sum is arbitrary.
        batch_size: Q; every source has at least as many examples.
        num_roles: R.
        min_length: fewest positions of a row.
        """
        sampler = Sampler(sum(map(len, sources)), batch_size, seed)
        super().__init__(sampler)
        self._sources, self._num_examples, self._turns = sources, batch_size, Turns(weights)
        self._pad_id, self._packing, self._num_texts = pad_id, packing, batch_size * num_roles
        keys = [random.fold_in_int(random.fold_in_int(seed, 1), source) for source in range(len(sources))]
        self._shuffles = [EpochShuffle(len(source), key) for source, key in zip(sources, keys, strict=True)]
        self._draw_keys = [random.fold_in_int(key, -1) for key in keys]  # epochs have the keys 0, 1, …
        # A batch with fewer tokens than average gets the length of an average batch, to limit compilation.
        tokens = [sampled_pairs(source, batch_size, num_roles).mean_tokens for source in sources]
        averages = [packing.length_of_average(each, self._num_texts) for each in tokens]
        self._min_lengths = [max(min_length, average) for average in averages]

    @property
    def batch_size(self) -> int:
        """B, over all processes."""
        return self._packing.num_rows(self._num_texts)

    def source_at(self, step: int) -> int:
        """Returns the index of the source of a step."""
        return self._turns.at(step)[0]

    def batch(self, step: int, rows: slice = slice(None)) -> PairBatch:
        """Returns the batch of a step, or some of its rows; independent of the order of calls."""
        source, rank = self._turns.at(step)
        examples, size = len(self._sources[source]), self._num_examples
        epoch, place = divmod(rank, examples // size)
        indices = epoch * examples + place * size + np.arange(size)
        selection = RowSelection(
            self._shuffles[source](indices),
            np.ones(size, bool),
            random.fold_in(self._draw_keys[source], indices),
            source,
        )
        return PairBatch(*(array[rows] for array in self._assemble(selection)))

    def _assemble(self, selection: RowSelection) -> PairBatch:
        source = selection.bucket
        texts = self._sources[source].draw(selection.rows, selection.keys)
        return pack_texts(texts, self._packing, self._num_texts, self._min_lengths[source], self._pad_id)


def sampled_pairs(source: PairSource, batch_size: int, num_roles: int, weight: float = 1.0) -> SampledBatches:
    """Returns the lengths of the texts of random batches of `batch_size` examples, the same at every call."""
    lengths = []
    for index in range(num_samples(batch_size * num_roles)):
        key = random.fold_in(0, index)
        examples = random.below(random.bits(key, batch_size)[0], len(source))
        lengths.append(source.draw(examples, random.fold_in(key, examples)).lengths)
    return SampledBatches(weight, lengths)


def pack_texts(texts: Texts, packing: Packing, most_texts: int, min_length: int, pad_id: int) -> PairBatch:
    """Packs texts into the rows of a batch of at most `most_texts`, which have at least `min_length` positions."""
    num_texts = len(texts.lengths)
    layout = packing.lay_out(np.arange(num_texts), np.ones(num_texts, bool), texts.lengths, most_texts, min_length)
    text, position = layout.tokens()
    text_ids = np.unique(texts.hashes, return_inverse=True)[1].astype(np.int32)
    is_query = texts.roles == 0
    return PairBatch(
        input_ids=layout.scatter_tokens(texts.ids, pad_id),
        token_type_ids=layout.scatter_tokens(np.zeros(len(texts.ids), np.int32)),
        sequence_ids=layout.scatter_tokens(layout.slots[text] + 1),
        position_ids=layout.scatter_tokens(position),
        cls_positions=layout.scatter_examples(layout.starts.astype(np.int32)),
        groups=layout.scatter_examples(texts.groups, -1),
        roles=layout.scatter_examples(texts.roles),
        text_ids=layout.scatter_examples(text_ids, -1),
        scores=layout.scatter_examples(np.where(is_query, texts.scores, 0).astype(np.float32)),
    )
