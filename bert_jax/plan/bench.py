"""How fast the real train step runs on this machine, compared with the time that its matmuls alone take."""

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from bert_jax import console
from bert_jax.config import Config, is_records, max_sequences, row_lengths
from bert_jax.data.batches import Batch, CorpusStream, Stream
from bert_jax.data.device_batches import device_batches
from bert_jax.data.random_rows import RandomRows
from bert_jax.data.record_stream import RecordStream
from bert_jax.data.streams import open_streams
from bert_jax.model.family import num_parameters
from bert_jax.plan.matmuls import MatmulTimer, timer
from bert_jax.runtime.devices import peak_memory, published_peak_flops
from bert_jax.runtime.mesh import mesh_of_run
from bert_jax.train.memory import batch_shapes, resolve_microbatches
from bert_jax.train.program import build_program
from bert_jax.train.speed import flops_per_step

_WARM_UP, _FEWEST_ROUNDS, _ROUND_S = 3, 5, 1.0
_SQUARE = 2048  # of the matmul that a CPU's MFU is relative to
_BUSY = 1.5  # the slowest over the fastest time of that matmul, beyond which the machine counts as busy
_COUNTED_BATCHES = 8  # for each length of rows
_FOR_EVER = 2**31 - 1  # steps


@dataclasses.dataclass(frozen=True)
class Bench:
    """Medians over rounds; tokens and sequences are real ones. peak_memory_bytes: of a device where jax tells (GPU,
    TPU), else the highest resident size of this process, compiler and Python included.

    mfu: model FLOPs relative to the published bfloat16 peak, on a CPU to a large matmul of its own; None if unknown, or
      where even the fastest such matmul was slower than the step, because the machine was busy.
    was_busy: the same large matmul took much longer in some rounds than in others, so no figure is reliable.
    ceiling_fraction: what a step's matmuls take by themselves, at the run's shapes and type, as a share of its time.
    """

    device: str
    num_devices: int
    mesh: dict[str, int]
    parameters: int
    data: str
    rounds: int
    step_seconds: float
    fastest_seconds: float
    slowest_seconds: float
    sequences_per_second: float
    tokens_per_second: float
    real_slots: float
    flops_per_step: float
    mfu: float | None
    ceiling_fraction: float
    products_seconds: float
    square_product_flops: float
    was_busy: bool
    compile_seconds: float
    peak_memory_bytes: int
    is_resident_size: bool
    input_wait_fraction: float


def bench(config: Config, seconds: float) -> Bench:
    """Times the first phase of a run: loader, step and optimiser, on new weights, for about so many seconds.

    Raises:
      BadInput: as `train` does for a corpus or a mesh that cannot work.
    """
    config = config.in_phases[0]
    stream, vocab_size, data = _stream(config)
    config = dataclasses.replace(config, data=stream.data)
    mesh = mesh_of_run(config)
    config = resolve_microbatches(config, mesh, vocab_size)
    batches = [stream.batch(step) for step in range(_COUNTED_BATCHES * len(row_lengths(config.data)))]
    counts, lengths = count(config, vocab_size, batches), [batch.input_ids.shape[1] for batch in batches]
    run = Run(config, vocab_size, stream, mesh)
    run.steps(_WARM_UP)
    peak, is_resident = peak_memory()
    num_steps = max(1, round(_ROUND_S / max(run.steps(1).seconds, 1e-4)))
    alone = [(lengths.count(n), MatmulTimer(_of_length(config, n), vocab_size, mesh)) for n in sorted({*lengths})]
    square = _square_matmul(mesh, config.model.dtype)
    samples, alone_samples, square_samples, started = [], [], [], time.perf_counter()
    while len(samples) < _FEWEST_ROUNDS or time.perf_counter() - started < seconds:
        samples.append(run.steps(num_steps))
        alone_samples.append(sum(share * matmuls.seconds() for share, matmuls in alone) / len(lengths))
        square_samples.append(square())
    step_seconds = statistics.median(sample.seconds for sample in samples)
    matmul_seconds, square_flops = statistics.median(alone_samples), 1 / statistics.median(square_samples)
    peak_flops = square_flops if jax.default_backend() == 'cpu' else published_peak_flops()
    if peak_flops and counts.flops / step_seconds > peak_flops:
        peak_flops = max(peak_flops, 1 / min(square_samples))
    mfu = counts.flops / step_seconds / peak_flops if peak_flops else None
    return Bench(
        device=jax.devices()[0].device_kind,
        num_devices=mesh.size,
        mesh=dict(mesh.shape),
        parameters=num_parameters(config.model, vocab_size),
        data=data,
        rounds=len(samples),
        step_seconds=step_seconds,
        fastest_seconds=min(sample.seconds for sample in samples),
        slowest_seconds=max(sample.seconds for sample in samples),
        sequences_per_second=counts.sequences / step_seconds,
        tokens_per_second=counts.tokens / step_seconds,
        real_slots=counts.tokens / (stream.batch_size * statistics.mean(lengths)),
        flops_per_step=counts.flops,
        mfu=mfu if mfu is not None and mfu <= 1 else None,
        ceiling_fraction=matmul_seconds / step_seconds,
        products_seconds=matmul_seconds,
        square_product_flops=square_flops,
        was_busy=max(square_samples) > _BUSY * min(square_samples),
        compile_seconds=run.compile_seconds,
        peak_memory_bytes=peak,
        is_resident_size=is_resident,
        input_wait_fraction=statistics.median(sample.waited / sample.seconds for sample in samples),
    )


def _stream(config: Config) -> tuple[CorpusStream | RecordStream | RandomRows, int, str]:
    """(the stream that the run trains on, or random rows; the size of its vocabulary; which of the two it is)."""
    data = config.data
    if is_records(data.source) or (epath.Path(data.corpus) / 'manifest.json').exists():
        streams = open_streams(config, progress=False)
        name = data.source if is_records(data.source) else data.corpus
        return streams.train[0], streams.tokenizer.vocab_size, f'rows of {name}'
    vocab_size = config.tokenizer.vocab_size
    data = dataclasses.replace(data, bucket_lengths=())
    stream = RandomRows(data, vocab_size, batch_size=config.train.global_batch_size, seed=config.train.seed)
    return stream, vocab_size, f'full rows of random ids, as there is no corpus at {data.corpus}'


class Counts(NamedTuple):
    """Real tokens, sequences and model FLOPs of a step."""

    tokens: float
    sequences: float
    flops: float


def count(config: Config, vocab_size: int, batches: Sequence[Batch]) -> Counts:
    """The mean over some global batches."""
    numbers = np.arange(1, max_sequences(config.data) + 1)
    lengths = np.stack([(np.asarray(batch.sequence_ids)[..., None] == numbers).sum(axis=1) for batch in batches])
    tokens, sequences, squared = (x.sum() / len(batches) for x in (lengths, lengths > 0, lengths.astype(float) ** 2))
    flops = flops_per_step(
        config.model,
        vocab_size,
        tokens=tokens,
        squared_lengths=squared,
        predictions=statistics.mean(batch.num_predictions for batch in batches),
        sequences=batches[0].cls_positions.size,
    )
    return Counts(float(tokens), float(sequences), float(flops))


def _of_length(config: Config, length: int) -> Config:
    """The same with rows of so many positions."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, sequence_length=length))


class Sample(NamedTuple):
    """Seconds of a step, and how many of them the devices waited for a batch."""

    seconds: float
    waited: float


class Run:
    """A run with new weights: its step compiled (never from a cache), its loader running ahead."""

    def __init__(self, config: Config, vocab_size: int, stream: Stream, mesh: Mesh):
        program = build_program(config.model, config.optimizer, config.train, vocab_size, mesh)
        self._batches = device_batches(stream, mesh, 0, _FOR_EVER)
        self._state = program.init_state(config.train.seed)
        self._compiled: dict[int, Callable] = {}
        with _no_compilation_cache():
            start = time.perf_counter()
            for length in row_lengths(config.data):
                batch = batch_shapes(_of_length(config, length), mesh)
                self._compiled[length] = program.lower(batch).compile()
            self.compile_seconds = time.perf_counter() - start

    def steps(self, count: int) -> Sample:
        """Means over so many steps, from standing devices to standing devices."""
        waited, metrics = 0.0, None
        start = time.perf_counter()
        for _ in range(count):
            asked = time.perf_counter()
            _, batch = next(self._batches)
            if metrics is None or metrics['loss'].is_ready():
                waited += time.perf_counter() - asked
            self._state, metrics = self._compiled[batch.input_ids.shape[1]](self._state, batch)
        jax.block_until_ready((self._state, metrics))
        return Sample((time.perf_counter() - start) / count, waited / count)


@contextlib.contextmanager
def _no_compilation_cache() -> Iterator[None]:
    """Programs are compiled inside, even those that the cache holds."""
    settings: Any = jax.config  # whose fields are added when jax is imported
    before = settings.jax_enable_compilation_cache
    jax.config.update('jax_enable_compilation_cache', False)
    try:
        yield
    finally:
        jax.config.update('jax_enable_compilation_cache', before)


def _square_matmul(mesh: Mesh, dtype: str) -> Callable[[], float]:
    """A function that returns the seconds per FLOP of a large square matmul on all devices."""
    seconds = timer(1, _SQUARE, _SQUARE, _SQUARE, dtype, mesh)
    return lambda: seconds() / (2.0 * _SQUARE**3 * mesh.size)


# --- For a terminal. ---


def describe(result: Bench) -> str:
    """What was measured, in a few lines."""
    axes = ', '.join(f'{axis}={size}' for axis, size in result.mesh.items())
    against = 'its own matmul of 2048 x 2048' if result.device == 'cpu' else 'the published bfloat16 peak'
    unknown = 'unknown: the step was faster than that matmul' if result.device == 'cpu' else 'unknown'
    mfu = unknown if result.mfu is None else f'{result.mfu:.1%} of {against}'
    busy = 'The machine was busy while this was measured: the same matmul took much longer in some rounds.'
    held = 'this process held at most, compiler and Python included' if result.is_resident_size else 'of a device'
    return '\n'.join(
        [
            f'Devices: {result.num_devices} x {result.device}; mesh {axes}',
            f'Model: {result.parameters:,} parameters; {result.flops_per_step:.4g} FLOPs a step',
            f'Data: {result.data}; {result.real_slots:.1%} of the slots are real tokens',
            f'Compiling: {result.compile_seconds:.1f} s',
            f'Step: {result.step_seconds * 1e3:,.1f} ms, the median of {result.rounds} rounds '
            f'({result.fastest_seconds * 1e3:,.1f} to {result.slowest_seconds * 1e3:,.1f})',
            f'Speed: {result.tokens_per_second:,.0f} tokens/s, {result.sequences_per_second:,.1f} sequences/s',
            f'MFU: {mfu} ({result.square_product_flops / 1e9:,.0f} GFLOP/s measured)',
            f'Ceiling: the matmuls alone take {result.products_seconds * 1e3:,.1f} ms, '
            f'{result.ceiling_fraction:.1%} of the step',
            f'Memory: {console.size(result.peak_memory_bytes)} {held}',
            f'Waiting for input: {result.input_wait_fraction:.1%}',
            *([busy] if result.was_busy else []),
        ]
    )
