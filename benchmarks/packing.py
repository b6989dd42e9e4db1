"""What packing and buckets gain: real tokens per second of the whole train step, next to padded rows, in turns.

    python -m bert_jax prepare --config=configs/demo.py
    python -m benchmarks.packing --corpus=corpora/python-docs

The documents, their windows and the rows of a batch are the same; a token is a real one, padding does not count.
Buckets are an eighth, a quarter and half of the positions, and all.
"""

import statistics

from absl import app, flags

from bert_jax import config
from bert_jax.data.streams import open_streams
from bert_jax.plan import bench
from bert_jax.runtime.mesh import mesh_of_run

_CORPUS = flags.DEFINE_string('corpus', 'corpora/python-docs', 'a directory that `prepare` wrote')
_SIZE = flags.DEFINE_string('size', 'mini', 'of the model')
_PAIRING = flags.DEFINE_enum('pairing', 'nsp', ['nsp', 'sop', 'none'], 'data.pairing')
_LENGTHS = flags.DEFINE_list('lengths', ['128', '512'], 'positions of a row')
_SLOTS = flags.DEFINE_integer('slots', 4096, 'positions of a batch', lower_bound=1)
_TURNS = flags.DEFINE_integer('turns', 7, 'of each', lower_bound=1)
_STEPS = flags.DEFINE_integer('steps', 4, 'of a turn', lower_bound=1)
_WAYS = ('padded', 'buckets', 'packed')


class Way:
    """A run of one of the ways: its steps, and what stands in its batches."""

    def __init__(self, name: str, length: int):
        fields = config.bert(_SIZE.value).to_dict()
        buckets = tuple(part for part in (length // 8, length // 4, length // 2) if part >= 8)
        fields['data'] |= {'corpus': _CORPUS.value, 'sequence_length': length, 'pairing': _PAIRING.value}
        fields['data'] |= {'packing': name == 'packed', 'bucket_lengths': buckets if name == 'buckets' else ()}
        fields['model']['max_positions'] = max(length, fields['model']['max_positions'])
        fields['train']['global_batch_size'] = max(1, _SLOTS.value // length)
        self._config = config.resolve(fields)
        streams = open_streams(self._config, progress=False)
        self._stream, self._vocab_size = streams.train[0], streams.tokenizer.vocab_size
        self._run = bench.Run(self._config, self._vocab_size, self._stream, mesh_of_run(self._config))
        self._run.steps(2)
        self._done, self._tokens, self._slots, self._speeds = 2, 0.0, 0, []

    def take_turn(self) -> None:
        """Some steps, timed; the tokens are those of these very batches."""
        seconds = self._run.steps(_STEPS.value).seconds * _STEPS.value
        batches = [self._stream.batch(self._done + number) for number in range(_STEPS.value)]
        tokens = bench.count(self._config, self._vocab_size, batches).tokens * _STEPS.value
        self._done, self._tokens = self._done + _STEPS.value, self._tokens + tokens
        self._slots += sum(batch.input_ids.size for batch in batches)
        self._speeds.append(tokens / seconds)

    @property
    def real_slots(self) -> float:
        """The share of the slots that are real tokens."""
        return self._tokens / self._slots

    @property
    def speed(self) -> float:
        """Real tokens per second, the median of the turns."""
        return statistics.median(self._speeds)


def main(_: list[str]) -> None:
    columns = [f'{what}: {name}' for what in ('real slots', 'real tokens/s') for name in _WAYS]
    print('| positions |', ' | '.join([*columns, 'buckets gain', 'packing gains']), '|')
    print('|--:' * (3 + len(columns)) + '|')
    for length in map(int, _LENGTHS.value):
        ways = [Way(name, length) for name in _WAYS]
        for _ in range(_TURNS.value):
            for way in ways:
                way.take_turn()
        cells = [*(f'{way.real_slots:.1%}' for way in ways), *(f'{way.speed:,.0f}' for way in ways)]
        gains = [f'{way.speed / ways[0].speed:.2f}' for way in ways[1:]]
        print(f'| {length} |', ' | '.join([*cells, *gains]), '|', flush=True)


if __name__ == '__main__':
    app.run(main)
