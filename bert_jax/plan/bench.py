"""Measures how fast the real train step runs on this machine, compared with the time of its matmuls alone."""

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
from bert_jax.activity import activity, progress
from bert_jax.config import Config, is_records, max_sequences, row_lengths
from bert_jax.data.batches import Batch, CorpusStream, Stream
from bert_jax.data.device_batches import device_batches
from bert_jax.data.mixture import MixtureStream
from bert_jax.data.random_rows import RandomRows
from bert_jax.data.record_stream import RecordStream
from bert_jax.data.streams import open_streams
from bert_jax.model.family import num_parameters
from bert_jax.model.replaced_tokens import build_of
from bert_jax.plan.matmuls import MatmulTimer, new_timer
from bert_jax.runtime.devices import peak_memory, published_peak_flops
from bert_jax.runtime.dtype import resolve_dtype
from bert_jax.runtime.mesh import mesh_of_run
from bert_jax.train.attention import describe_attention
from bert_jax.train.memory import batch_shapes, resolve_microbatches
from bert_jax.train.objectives import objective_of
from bert_jax.train.program import build_program
from bert_jax.train.speed import flops_per_step

_NUM_WARMUP_STEPS = 3
_MIN_ROUNDS = 5
_ROUND_S = 1.0
_SQUARE_SIZE = 2048  # of the matmul that a CPU's MFU is relative to
_BUSY_RATIO = 1.5  # of the slowest to the fastest of these matmuls; above it the machine counts as busy
_COUNTED_BATCHES = 8  # per row length
_BAR = '{desc}: {percentage:3.0f}%|{bar}| {n:.0f} of {total:.0f} s'
_MAX_STEPS = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Bench:
    """The speed of a step. Times are medians over rounds; tokens are non-padding tokens.

    Attributes:
      dtype: of the computation.
      attention: which implementation runs, and why.
      data: where the rows come from.
      fastest_seconds, slowest_seconds: of a step, the means of the fastest and the slowest round.
      non_padding_fraction: of the positions in the batches.
      mfu: model FLOPs relative to the published bfloat16 peak, on a CPU relative to a large matmul. None if that is
        unknown, or if even the fastest such matmul was slower than the step because the machine was busy.
      ceiling_fraction: time of the step's matmuls alone, at the run's shapes and dtype, as a fraction of the step's.
      matmul_seconds: of these matmuls.
      square_matmul_flops: FLOP/s of the large matmul.
      was_busy: whether the large matmul took much longer in some rounds than in others, so that no figure is reliable.
      peak_memory_bytes: of a device if jax reports it (GPU, TPU), else of this process, including Python and the
        compiler.
      is_resident_size: whether that is of this process.
      input_wait_fraction: of the step's time, how much the devices waited for a batch.
    """

    device: str
    num_devices: int
    mesh: dict[str, int]
    parameters: int
    dtype: str
    attention: str
    data: str
    rounds: int
    step_seconds: float
    fastest_seconds: float
    slowest_seconds: float
    sequences_per_second: float
    tokens_per_second: float
    non_padding_fraction: float
    flops_per_step: float
    mfu: float | None
    ceiling_fraction: float
    matmul_seconds: float
    square_matmul_flops: float
    was_busy: bool
    compile_seconds: float
    peak_memory_bytes: int
    is_resident_size: bool
    input_wait_fraction: float

    def to_json(self) -> dict[str, Any]:
        """Returns the result as JSON. Keys of earlier versions are kept."""
        return {_JSON_KEYS.get(name, name): value for name, value in dataclasses.asdict(self).items()}


_JSON_KEYS = {
    'non_padding_fraction': 'real_slots',
    'matmul_seconds': 'products_seconds',
    'square_matmul_flops': 'square_product_flops',
}


def bench(config: Config, seconds: float) -> Bench:
    """Times the first phase of a run with initial weights: loader, step and optimizer.

    Args:
      seconds: how long to measure, at least; there are at least five rounds.

    Raises:
      BadInput: as `train` does for a corpus or a mesh that does not work.
    """
    config = resolve_dtype(config.in_phases[0])
    stream, vocab_size, data = _open_stream(config)
    config = dataclasses.replace(config, data=stream.data)
    mesh = mesh_of_run(config)
    config = resolve_microbatches(config, mesh, vocab_size)
    batches = [stream.batch(step) for step in range(_COUNTED_BATCHES * len(row_lengths(config.data)))]
    counts, lengths = mean_counts(config, vocab_size, batches), [batch.input_ids.shape[1] for batch in batches]
    run = TimedRun(config, vocab_size, stream, mesh)
    run.run_steps(_NUM_WARMUP_STEPS)
    peak, is_resident = peak_memory()
    rounds = _measure_rounds(
        run, _matmul_timer(config, vocab_size, mesh, lengths), _square_timer(config, mesh), seconds
    )
    step_seconds = statistics.median(each.step.seconds for each in rounds)
    matmul_seconds = statistics.median(each.matmul_seconds for each in rounds)
    square_seconds = [each.square_seconds_per_flop for each in rounds]
    square_flops = 1 / statistics.median(square_seconds)
    peak_flops = square_flops if jax.default_backend() == 'cpu' else published_peak_flops()
    if peak_flops and counts.flops / step_seconds > peak_flops:
        peak_flops = max(peak_flops, 1 / min(square_seconds))
    mfu = counts.flops / step_seconds / peak_flops if peak_flops else None
    return Bench(
        device=jax.devices()[0].device_kind,
        num_devices=mesh.size,
        mesh=dict(mesh.shape),
        parameters=num_parameters(config.model, vocab_size, build_of(config.objective)),
        dtype=config.model.dtype,
        attention=describe_attention(config, mesh.devices.flat[0].platform, mesh.shape['tensor']),
        data=data,
        rounds=len(rounds),
        step_seconds=step_seconds,
        fastest_seconds=min(each.step.seconds for each in rounds),
        slowest_seconds=max(each.step.seconds for each in rounds),
        sequences_per_second=counts.sequences / step_seconds,
        tokens_per_second=counts.tokens / step_seconds,
        non_padding_fraction=counts.tokens / (stream.batch_size * statistics.mean(lengths)),
        flops_per_step=counts.flops,
        mfu=mfu if mfu is not None and mfu <= 1 else None,
        ceiling_fraction=matmul_seconds / step_seconds,
        matmul_seconds=matmul_seconds,
        square_matmul_flops=square_flops,
        was_busy=max(square_seconds) > _BUSY_RATIO * min(square_seconds),
        compile_seconds=run.compile_seconds,
        peak_memory_bytes=peak,
        is_resident_size=is_resident,
        input_wait_fraction=statistics.median(each.step.waited / each.step.seconds for each in rounds),
    )


class StepSeconds(NamedTuple):
    """Mean seconds per step, and how many of them the devices waited for a batch."""

    seconds: float
    waited: float


class _Round(NamedTuple):
    """The measurements of a round."""

    step: StepSeconds
    matmul_seconds: float
    square_seconds_per_flop: float


def _measure_rounds(
    run: 'TimedRun', time_matmuls: Callable[[], float], time_square: Callable[[], float], seconds: float
) -> list[_Round]:
    """Measures steps and matmuls in turn, so that other work on the machine affects both alike."""
    num_steps = max(1, round(_ROUND_S / max(run.run_steps(1).seconds, 1e-4)))
    rounds, start, elapsed = [], time.perf_counter(), 0.0

    def describe() -> str:
        return f'measuring, {time.perf_counter() - start:.0f} of {seconds:.0f} s'

    with progress(describe, desc='measuring', total=seconds, unit='s', bar_format=_BAR) as bar:
        while len(rounds) < _MIN_ROUNDS or elapsed < seconds:
            rounds.append(_Round(run.run_steps(num_steps), time_matmuls(), time_square()))
            before, elapsed = elapsed, time.perf_counter() - start
            bar.update(min(seconds, elapsed) - min(seconds, before))
    return rounds


def _matmul_timer(config: Config, vocab_size: int, mesh: Mesh, lengths: list[int]) -> Callable[[], float]:
    """Returns a function that times the matmuls of a step alone, in seconds.

    Args:
      lengths: of the rows of several batches; the result is the mean over these batches.
    """
    timers = [
        (lengths.count(length), MatmulTimer(_set_sequence_length(config, length), vocab_size, mesh))
        for length in sorted({*lengths})
    ]
    return lambda: sum(num_batches * timer.seconds() for num_batches, timer in timers) / len(lengths)


def _square_timer(config: Config, mesh: Mesh) -> Callable[[], float]:
    """Returns a function that times a large square matmul on all devices, in seconds per FLOP."""
    time_matmul = new_timer(1, _SQUARE_SIZE, _SQUARE_SIZE, _SQUARE_SIZE, config.model.dtype, mesh)
    return lambda: time_matmul() / (2.0 * _SQUARE_SIZE**3 * mesh.size)


def _open_stream(config: Config) -> tuple[CorpusStream | MixtureStream | RecordStream | RandomRows, int, str]:
    """Returns (rows of the run's source, or random rows without a corpus; the vocabulary size; a description)."""
    data, train = config.data, dataclasses.replace(config.train, first_batch_size=0, batch_warmup_steps=0)
    config = dataclasses.replace(config, train=train)  # full batches
    if is_records(data.source) or (epath.Path(data.corpus) / 'manifest.json').exists():
        streams = open_streams(config, progress=False)
        name = data.source if is_records(data.source) else data.corpus
        return streams.train[0], streams.tokenizer.vocab_size, f'rows of {name}'
    vocab_size = config.tokenizer.vocab_size
    data = dataclasses.replace(data, bucket_lengths=())
    stream = RandomRows(data, vocab_size, batch_size=config.train.global_batch_size, seed=config.train.seed)
    return stream, vocab_size, f'full rows of random ids, because there is no corpus at {data.corpus}'


class StepCounts(NamedTuple):
    """Non-padding tokens, sequences and model FLOPs of a step."""

    tokens: float
    sequences: float
    flops: float


def mean_counts(config: Config, vocab_size: int, batches: Sequence[Batch]) -> StepCounts:
    """Returns the mean over several global batches."""
    ids = np.arange(1, max_sequences(config.data) + 1)
    lengths = np.stack([(np.asarray(batch.sequence_ids)[..., None] == ids).sum(axis=1) for batch in batches])
    tokens, sequences, squared = (x.sum() / len(batches) for x in (lengths, lengths > 0, lengths.astype(float) ** 2))
    flops = flops_per_step(
        config.model,
        vocab_size,
        tokens=tokens,
        squared_lengths=squared,
        predictions=statistics.mean(batch.num_predictions for batch in batches),
        sequences=batches[0].cls_positions.size,
        matmuls=objective_of(config.objective).matmuls,
    )
    return StepCounts(float(tokens), float(sequences), float(flops))


def _set_sequence_length(config: Config, length: int) -> Config:
    """Returns the config with another number of positions per row."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, sequence_length=length))


class TimedRun:
    """A run with initial weights. Its step is compiled, never taken from a cache, and its loader reads ahead.

    Attributes:
      compile_seconds: for all row lengths.
    """

    def __init__(self, config: Config, vocab_size: int, stream: Stream, mesh: Mesh):
        build, objective = build_of(config.objective), objective_of(config.objective)
        program = build_program(
            config.model, config.optimizer, config.train, vocab_size, mesh, build=build, objective=objective
        )
        self._batches = device_batches(stream, mesh, 0, _MAX_STEPS)
        self._state = program.init_state(config.train.seed)
        self._compiled: dict[int, Callable] = {}
        with _no_compilation_cache(), activity('compiling the step'):
            start = time.perf_counter()
            for length in row_lengths(config.data):
                batch = batch_shapes(_set_sequence_length(config, length), mesh)
                self._compiled[length] = program.lower(batch).compile()
            self.compile_seconds = time.perf_counter() - start

    def run_steps(self, count: int) -> StepSeconds:
        """Runs and times `count` steps, with the devices idle before and after."""
        waited, metrics = 0.0, None
        start = time.perf_counter()
        for _ in range(count):
            requested = time.perf_counter()
            _, batch = next(self._batches)
            if metrics is None or metrics['loss'].is_ready():
                waited += time.perf_counter() - requested
            self._state, metrics = self._compiled[batch.input_ids.shape[1]](self._state, batch)
        jax.block_until_ready((self._state, metrics))
        return StepSeconds((time.perf_counter() - start) / count, waited / count)


@contextlib.contextmanager
def _no_compilation_cache() -> Iterator[None]:
    """Inside, programs are compiled even if the cache holds them."""
    settings: Any = jax.config  # jax adds its fields when it is imported
    before = settings.jax_enable_compilation_cache
    jax.config.update('jax_enable_compilation_cache', False)
    try:
        yield
    finally:
        jax.config.update('jax_enable_compilation_cache', before)


# --- For a terminal. ---


def describe(result: Bench) -> str:
    """Describes a result in a few lines."""
    axes = ', '.join(f'{axis}={size}' for axis, size in result.mesh.items())
    is_cpu = result.device == 'cpu'
    if result.mfu is None:
        mfu = 'unknown: the step was faster than that matmul' if is_cpu else 'unknown'
    else:
        reference = f'a matmul of {_SQUARE_SIZE} x {_SQUARE_SIZE} here' if is_cpu else 'the published bfloat16 peak'
        mfu = f'{result.mfu:.1%} of {reference}'
    memory = 'peak of this process, including Python and the compiler' if result.is_resident_size else 'per device'
    lines = [
        f'Devices: {result.num_devices} x {result.device}; mesh {axes}',
        f'Model: {result.parameters:,} parameters; {result.flops_per_step:.4g} FLOPs per step; {result.dtype}',
        f'Attention: {result.attention}',
        f'Data: {result.data}; {result.non_padding_fraction:.1%} of the positions hold tokens',
        f'Compilation: {result.compile_seconds:.1f} s',
        f'Step: {result.step_seconds * 1e3:,.1f} ms, the median of {result.rounds} rounds '
        f'({result.fastest_seconds * 1e3:,.1f} to {result.slowest_seconds * 1e3:,.1f})',
        f'Speed: {result.tokens_per_second:,.0f} tokens/s, {result.sequences_per_second:,.1f} sequences/s',
        f'MFU: {mfu} ({result.square_matmul_flops / 1e9:,.0f} GFLOP/s measured)',
        f'Ceiling: the matmuls alone take {result.matmul_seconds * 1e3:,.1f} ms, '
        f'{result.ceiling_fraction:.1%} of the step',
        f'Memory: {console.size(result.peak_memory_bytes)} {memory}',
        f'Waiting for input: {result.input_wait_fraction:.1%}',
    ]
    if result.was_busy:
        lines.append('The machine was busy during the measurement: the same matmul took much longer in some rounds.')
    return '\n'.join(lines)
