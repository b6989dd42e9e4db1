"""A training run, from top to bottom."""

import dataclasses
import signal
import sys
import time
from types import FrameType

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from bert_jax import run
from bert_jax.config import Config, num_predictions
from bert_jax.data.batches import Stream, prefetch
from bert_jax.errors import BadInput
from bert_jax.evaluate import evaluate_params
from bert_jax.model.bert import num_parameters
from bert_jax.text.corpus import load_corpus
from bert_jax.train.checkpoint import Checkpoints
from bert_jax.train.metrics import MetricsWriter, flops_per_step, peak_flops
from bert_jax.train.optimizer import make_optimizer, make_schedule
from bert_jax.train.sharding import local_rows, make_global, make_mesh
from bert_jax.train.state import init_state, model_graph, state_shardings
from bert_jax.train.step import make_evaluation_step, make_train_step


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What `train` reports: the step reached, whether that is the last, the step it went on from, last metrics."""

    step: int
    finished: bool
    resumed_from: int | None
    metrics: dict[str, float]


def train(config: Config, workdir: str) -> Outcome:
    """Trains the run of a workdir to its last step, or goes on with it.

    Raises:
      BadInput: before anything is written, when the run cannot work or the workdir holds another.
    """
    # --- What there is: devices, corpus, streams. Nothing is written before all of it is sound. ---
    mesh = make_mesh(config.mesh, config.model, config.train)
    corpus = load_corpus(config.data.corpus)
    batch_size, num_steps = config.train.global_batch_size, config.train.steps
    stream = Stream(corpus, config.data, 'train', batch_size=batch_size, seed=config.train.seed)
    validation = Stream(corpus, config.data, 'validation', batch_size=batch_size, seed=None)
    if not stream.num_rows:
        raise BadInput(config.data.corpus, 'its training split gives no row', 'documents of at least two tokens')
    run.claim(workdir, config, corpus)

    # --- The state: restored, or new. ---
    vocab_size = corpus.tokenizer.vocab_size
    optimizer = make_optimizer(config.optimizer, num_steps)
    shapes, shardings = state_shardings(config.model, vocab_size, optimizer, mesh)
    checkpoints = Checkpoints(workdir, keep=config.train.keep_checkpoints)
    resumed_from = checkpoints.latest_step()
    if resumed_from is not None:
        state = checkpoints.restore(shapes, shardings)
        if resumed_from >= num_steps:
            checkpoints.close()
            _say(f'{workdir} is finished: all {num_steps} steps are done. Nothing to do.')
            return Outcome(resumed_from, True, resumed_from, {})
        _say(f'Going on with {workdir} from step {resumed_from} of {num_steps}.')
    else:
        state = init_state(config.model, vocab_size, optimizer, mesh, config.train.seed)
    _say(_describe(config, mesh, vocab_size, stream))

    # --- The step, compiled once. ---
    graph, schedule = model_graph(config.model, vocab_size), make_schedule(config.optimizer, num_steps)
    train_step = make_train_step(
        graph, optimizer, schedule, mesh, shardings, seed=config.train.seed, microbatches=config.train.microbatches
    )
    evaluation_step = make_evaluation_step(graph)
    peak = peak_flops()

    # --- The loop. At each step, in this order: 1. update  2. log  3. evaluate  4. save. ---
    start = int(state.step)
    writer = MetricsWriter(workdir, start)
    rows = local_rows(mesh, batch_size)
    metrics: dict[str, float] = {}
    tokens, squares = [], []
    bar = _progress_bar(start, num_steps)
    with StopSignal() as stop:
        compiling = time.perf_counter()
        _say('Compiling the step …')
        clock = None
        for step, batch in enumerate(prefetch(stream, start, num_steps, rows), start=start + 1):
            state, on_device = train_step(state, make_global(batch, rows, mesh, batch_size))
            tokens.append(on_device.pop('tokens'))
            squares.append(on_device.pop('squared_lengths'))
            if clock is None:  # the first step compiles; it is not counted as speed
                jax.block_until_ready(state)
                _say(f'Compiled in {time.perf_counter() - compiling:.1f} s.')
                clock, counted = time.perf_counter(), -1
            if step % config.train.log_every == 0 or step == num_steps or stop.received:
                metrics = {name: float(value) for name, value in jax.device_get(on_device).items()}
                seconds = time.perf_counter() - clock
                timed = len(tokens) + counted
                if timed > 0:
                    real = float(sum(jax.device_get(tokens[-timed:])))
                    flops = flops_per_step(
                        config.model,
                        vocab_size,
                        tokens=real,
                        squared_lengths=float(sum(jax.device_get(squares[-timed:]))),
                        predictions=timed * batch_size * num_predictions(config.data),
                        sequences=timed * batch_size,
                    )
                    metrics['tokens_per_second'] = real / seconds
                    if peak:
                        metrics['mfu'] = flops / seconds / peak
                writer.write(step, metrics)
                _show_progress(bar, step, num_steps, metrics)
                tokens, squares, counted, clock = [], [], 0, time.perf_counter()
            every = config.train.evaluate_every
            if validation.num_rows and ((every and step % every == 0) or step == num_steps):
                pause = time.perf_counter()
                found = evaluate_params(state.params, evaluation_step, validation, mesh, config.train.evaluate_rows)
                writer.write(step, {f'validation/{name}': value for name, value in found.items()})
                _say(
                    f'step {step}: held-out MLM loss {found["mlm_loss"]:.3f}, MLM accuracy {found["mlm_accuracy"]:.1%}, '
                    f'NSP accuracy {found["nsp_accuracy"]:.1%}'
                )
                metrics |= {f'validation/{name}': value for name, value in found.items()}
                clock += time.perf_counter() - pause
            if step % config.train.checkpoint_every == 0 or step == num_steps or stop.received:
                pause = time.perf_counter()
                checkpoints.save(state)
                clock += time.perf_counter() - pause
            if stop.received:
                break
    bar.close()
    writer.close()
    checkpoints.close()
    if stop.received and step < num_steps:
        _say(f'Stopped by {stop.received}: saved step {step} of {num_steps}. The same command goes on from there.')
    return Outcome(step, step == num_steps, resumed_from, metrics)


class StopSignal:
    """Notes SIGINT or SIGTERM so that the loop can save and stop; a second one ends the process at once."""

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received = ''

    def __enter__(self) -> 'StopSignal':
        self._before = {number: signal.signal(number, self._receive) for number in self._SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL)
        _say(f'{self.received}: finishing this step, then saving …')


def _describe(config: Config, mesh: Mesh, vocab_size: int, stream: Stream) -> str:
    devices = jax.devices()
    axes = ', '.join(f'{axis}={size}' for axis, size in mesh.shape.items())
    epochs = config.train.steps * config.train.global_batch_size / stream.num_rows
    return (
        f'Devices: {len(devices)} x {devices[0].device_kind} ({devices[0].platform}); mesh {axes}\n'
        f'Model: {num_parameters(config.model, vocab_size):,} parameters, vocabulary {vocab_size:,}\n'
        f'Data: {stream.num_rows:,} rows an epoch; {config.train.steps:,} steps of {config.train.global_batch_size} rows '
        f'are {epochs:.2f} epochs'
    )


def _say(text: str) -> None:
    if jax.process_index() == 0:
        tqdm.write(text, file=sys.stderr)


def _progress_bar(start: int, num_steps: int) -> tqdm:
    hidden = not sys.stderr.isatty() or jax.process_index() != 0
    return tqdm(total=num_steps, initial=start, unit='step', disable=hidden, dynamic_ncols=True, smoothing=0.05)


def _show_progress(bar: tqdm, step: int, num_steps: int, metrics: dict[str, float]) -> None:
    speed = metrics.get('tokens_per_second', 0.0)
    shown = (
        f'loss {metrics["loss"]:.3f}  MLM {metrics["mlm_accuracy"]:.1%}  NSP {metrics["nsp_accuracy"]:.1%}  '
        f'{speed:,.0f} tokens/s'
    )
    if bar.disable:
        _say(f'step {step}/{num_steps}  {shown}')
    else:
        bar.set_postfix_str(shown, refresh=False)
        bar.update(step - bar.n)
