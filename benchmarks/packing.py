"""Measures the gain of packing and buckets over padded rows: non-padding tokens per second of the whole train step.

    python -m bert_jax prepare --config=configs/demo.py
    python -m benchmarks.packing --corpus=corpora/python-docs

All three use the same documents and windows, and batches with the same number of positions; they run alternately.
Bucket lengths are an eighth, a quarter and half of the row, and the whole row.
"""

import statistics

from absl import app, flags

from bert_jax import config
from bert_jax.data.streams import open_streams
from bert_jax.plan import bench
from bert_jax.runtime.mesh import mesh_of_run

_CORPUS = flags.DEFINE_string('corpus', 'corpora/python-docs', 'corpus directory written by `prepare`')
_SIZE = flags.DEFINE_string('size', 'mini', 'size of the model')
_PAIRING = flags.DEFINE_enum('pairing', 'nsp', ['nsp', 'sop', 'none'], 'data.pairing')
_LENGTHS = flags.DEFINE_list('lengths', ['128', '512'], 'positions per row')
_POSITIONS = flags.DEFINE_integer('slots', 4096, 'positions per batch', lower_bound=1)
_TURNS = flags.DEFINE_integer('turns', 7, 'number of turns of each layout', lower_bound=1)
_STEPS = flags.DEFINE_integer('steps', 4, 'train steps per turn', lower_bound=1)
_LAYOUTS = ('padded', 'buckets', 'packed')


class Layout:
    """A run with one layout of rows: its timed steps, and how full its batches are."""

    def __init__(self, name: str, length: int):
        fields = config.bert(_SIZE.value).to_dict()
        buckets = tuple(bucket for bucket in (length // 8, length // 4, length // 2) if bucket >= 8)
        fields['data'] |= {'corpus': _CORPUS.value, 'sequence_length': length, 'pairing': _PAIRING.value}
        fields['data'] |= {'packing': name == 'packed', 'bucket_lengths': buckets if name == 'buckets' else ()}
        fields['model']['max_positions'] = max(length, fields['model']['max_positions'])
        fields['train']['global_batch_size'] = max(1, _POSITIONS.value // length)
        self._config = config.resolve(fields)
        streams = open_streams(self._config, progress=False)
        self._stream, self._vocab_size = streams.train[0], streams.tokenizer.vocab_size
        self._run = bench.TimedRun(self._config, self._vocab_size, self._stream, mesh_of_run(self._config))
        self._run.run_steps(2)
        self._done, self._tokens, self._positions, self._speeds = 2, 0.0, 0, []

    def take_turn(self) -> None:
        """Runs and times a few steps, and counts the tokens of exactly these batches."""
        seconds = self._run.run_steps(_STEPS.value).seconds * _STEPS.value
        batches = [self._stream.batch(self._done + step) for step in range(_STEPS.value)]
        tokens = bench.mean_counts(self._config, self._vocab_size, batches).tokens * _STEPS.value
        self._done, self._tokens = self._done + _STEPS.value, self._tokens + tokens
        self._positions += sum(batch.input_ids.size for batch in batches)
        self._speeds.append(tokens / seconds)

    @property
    def fill(self) -> float:
        """Fraction of the positions that hold tokens."""
        return self._tokens / self._positions

    @property
    def speed(self) -> float:
        """Non-padding tokens per second, median over the turns."""
        return statistics.median(self._speeds)


def main(_: list[str]) -> None:
    columns = [f'{quantity}: {name}' for quantity in ('fill', 'tokens/s') for name in _LAYOUTS]
    print('| positions |', ' | '.join([*columns, 'speedup of buckets', 'speedup of packing']), '|')
    print('|--:' * (3 + len(columns)) + '|')
    for length in map(int, _LENGTHS.value):
        layouts = [Layout(name, length) for name in _LAYOUTS]
        for _ in range(_TURNS.value):
            for layout in layouts:
                layout.take_turn()
        cells = [*(f'{layout.fill:.1%}' for layout in layouts), *(f'{layout.speed:,.0f}' for layout in layouts)]
        gains = [f'{layout.speed / layouts[0].speed:.2f}' for layout in layouts[1:]]
        print(f'| {length} |', ' | '.join([*cells, *gains]), '|', flush=True)


if __name__ == '__main__':
    app.run(main)
