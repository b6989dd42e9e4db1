"""What packing gains: real tokens per second of the whole train step, rows packed next to rows padded, in turns.

    python -m bert_jax prepare --config=configs/demo.py
    python -m benchmarks.packing --corpus=corpora/python-docs

The documents, their pairs and the slots of a batch are the same; a token is a real one, padding does not count.
"""

import statistics

from absl import app, flags

from bert_jax import bench, config
from bert_jax.data.streams import open_streams
from bert_jax.train.sharding import mesh_of_run

_CORPUS = flags.DEFINE_string('corpus', 'corpora/python-docs', 'a directory that `prepare` wrote')
_SIZE = flags.DEFINE_string('size', 'mini', 'of the model')
_LENGTHS = flags.DEFINE_list('lengths', ['128', '512'], 'positions of a row')
_SLOTS = flags.DEFINE_integer('slots', 4096, 'positions of a batch', lower_bound=1)
_TURNS = flags.DEFINE_integer('turns', 7, 'of each', lower_bound=1)
_COUNTED_BATCHES = 16


def measure(length: int) -> dict[bool, tuple[float, float]]:
    """{packing: (share of the slots that are real, real tokens a second)}"""
    runs, counts = {}, {}
    for packing in (False, True):
        fields = config.bert(_SIZE.value).to_dict()
        fields['data'] |= {'corpus': _CORPUS.value, 'sequence_length': length, 'packing': packing}
        fields['train']['global_batch_size'] = max(1, _SLOTS.value // length)
        chosen = config.resolve(fields)
        streams = open_streams(chosen, progress=False)
        stream, vocab_size = streams.train[0], streams.tokenizer.vocab_size
        runs[packing] = bench.Run(chosen, vocab_size, stream, mesh_of_run(chosen))
        runs[packing].steps(2)
        batches = [stream.batch(number) for number in range(_COUNTED_BATCHES)]
        counts[packing] = bench.count(chosen, vocab_size, batches), stream.batch_size * length
    seconds = {packing: [] for packing in runs}
    for _ in range(_TURNS.value):
        for packing, run in runs.items():
            seconds[packing].append(run.steps(2).seconds)
    return {
        packing: (counts[packing][0].tokens / counts[packing][1], counts[packing][0].tokens / statistics.median(times))
        for packing, times in seconds.items()
    }


def main(_: list[str]) -> None:
    print('| positions | real slots: padded | packed | real tokens/s: padded | packed | gain | of the slots |')
    print('|--:|--:|--:|--:|--:|--:|--:|')
    for length in map(int, _LENGTHS.value):
        found = measure(length)
        (padded_share, padded), (packed_share, packed) = found[False], found[True]
        print(
            f'| {length} | {padded_share:.1%} | {packed_share:.1%} | {padded:,.0f} | {packed:,.0f} '
            f'| {packed / padded:.2f} | {packed_share / padded_share:.2f} |',
            flush=True,
        )


if __name__ == '__main__':
    app.run(main)
