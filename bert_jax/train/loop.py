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
from bert_jax.text.corpus import Corpus, load_corpus
from bert_jax.train.checkpoint import Checkpoints
from bert_jax.train.metrics import MetricsWriter, Speedometer
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
    with StopSignal() as stop:
        return _train(config, workdir, stop)


def _train(config: Config, workdir: str, stop: 'StopSignal') -> Outcome:
    # --- What there is: devices, corpus, streams. Nothing is written before all of it is sound. ---
    mesh = make_mesh(config.mesh, config.model, config.train)
    corpus = load_corpus(config.data.corpus)
    batch_size, num_steps = config.train.global_batch_size, config.train.steps
    stream = Stream(corpus, config.data, 'train', batch_size=batch_size, seed=config.train.seed)
    if not stream.num_rows:
        raise BadInput(config.data.corpus, 'its training split gives no row', 'documents of at least two tokens')
    validation = _validation_stream(corpus, config)
    run.claim(workdir, config, corpus)

    # --- The state: restored, or new. ---
    vocab_size = corpus.tokenizer.vocab_size
    optimizer = make_optimizer(config.optimizer, num_steps)
    shapes, shardings = state_shardings(config.model, vocab_size, optimizer, mesh)
    checkpoints = Checkpoints(workdir, keep=config.train.keep_checkpoints)
    resumed_from = checkpoints.latest_step()
    if resumed_from == num_steps:
        checkpoints.close()
        _say(f'{workdir} is finished: all {num_steps} steps are done. Nothing to do.')
        return Outcome(resumed_from, True, resumed_from, {})
    if resumed_from is not None:
        _say(f'Going on with {workdir} from step {resumed_from} of {num_steps}.')
        state = checkpoints.restore(shapes, shardings)
    else:
        state = init_state(config.model, vocab_size, optimizer, mesh, config.train.seed)
    _say(_describe(config, mesh, vocab_size, stream))

    # --- The step, compiled at its first use. ---
    graph, schedule = model_graph(config.model, vocab_size), make_schedule(config.optimizer, num_steps)
    train_step = make_train_step(
        graph, optimizer, schedule, mesh, shardings, seed=config.train.seed, microbatches=config.train.microbatches
    )
    evaluation_step = make_evaluation_step(graph)

    # --- The loop. At each step, in this order: 1. update  2. log  3. evaluate  4. save. ---
    start, rows = int(state.step), local_rows(mesh, batch_size)
    predictions = batch_size * num_predictions(config.data)
    speed = Speedometer(config.model, vocab_size, predictions=predictions, sequences=batch_size)
    writer = MetricsWriter(workdir, start)
    progress = Progress(start, num_steps)
    metrics: dict[str, float] = {}
    _say('Compiling the step …')
    for step, batch in enumerate(prefetch(stream, start, num_steps, rows), start=start + 1):
        state, on_device = train_step(state, make_global(batch, rows, mesh, batch_size))
        speed.add(on_device.pop('tokens'), on_device.pop('squared_lengths'))
        is_last = step == num_steps or bool(stop.received)
        if step % config.train.log_every == 0 or is_last:
            metrics = {name: float(value) for name, value in jax.device_get(on_device).items()} | speed.read()
            writer.write(step, metrics)
            progress.show(step, metrics)
        every = config.train.evaluate_every
        if validation and ((every and step % every == 0) or step == num_steps):
            with speed.paused():
                found = evaluate_params(state.params, evaluation_step, validation, mesh, config.train.evaluate_rows)
            found = {f'validation/{name}': value for name, value in found.items()}
            writer.write(step, found)
            metrics |= found
            _say(_describe_validation(step, found))
        if step % config.train.checkpoint_every == 0 or is_last:
            with speed.paused():
                checkpoints.save(state)
        if stop.received:
            break
    progress.close()
    writer.close()
    checkpoints.close()
    if step < num_steps:
        _say(f'Stopped by {stop.received}: saved step {step} of {num_steps}. The same command goes on from there.')
    return Outcome(step, step == num_steps, resumed_from, metrics)


def _validation_stream(corpus: Corpus, config: Config) -> Stream | None:
    """The held-out documents, or None when there are too few for the objective."""
    needed = 2 if config.data.pairing == 'nsp' else 1
    if len(corpus.validation.documents) - 1 < needed:
        _say(f'Held-out documents: fewer than {needed}, so nothing is evaluated (data.validation_fraction)')
        return None
    return Stream(corpus, config.data, 'validation', batch_size=config.train.global_batch_size, seed=None)


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
        f'Data: {stream.num_rows:,} rows an epoch; {config.train.steps:,} steps of '
        f'{config.train.global_batch_size} rows are {epochs:.2f} epochs'
    )


def _say(text: str) -> None:
    if jax.process_index() == 0:
        tqdm.write(text, file=sys.stderr)


def _describe_validation(step: int, found: dict[str, float]) -> str:
    return (
        f'step {step}: held-out MLM loss {found["validation/mlm_loss"]:.3f}, '
        f'MLM accuracy {found["validation/mlm_accuracy"]:.1%}, NSP accuracy {found["validation/nsp_accuracy"]:.1%}'
    )


class Progress:
    """A bar on a terminal, plain lines elsewhere: loss, accuracies, real tokens per second, time left."""

    def __init__(self, start: int, num_steps: int):
        hidden = not sys.stderr.isatty() or jax.process_index() != 0
        self._bar = tqdm(
            total=num_steps, initial=start, unit='step', disable=hidden, dynamic_ncols=True, smoothing=0.05
        )
        self._start, self._num_steps, self._since = start, num_steps, time.perf_counter()

    def show(self, step: int, metrics: dict[str, float]) -> None:
        """Shows the metrics of a step."""
        shown = f'loss {metrics["loss"]:.3f}  MLM {metrics["mlm_accuracy"]:.1%}  NSP {metrics["nsp_accuracy"]:.1%}'
        if 'tokens_per_second' in metrics:
            shown += f'  {metrics["tokens_per_second"]:,.0f} tokens/s'
        if self._bar.disable:
            seconds = (time.perf_counter() - self._since) / (step - self._start) * (self._num_steps - step)
            left = tqdm.format_interval(seconds)
            _say(f'step {step}/{self._num_steps}  {shown}  {left} left')
        else:
            self._bar.set_postfix_str(shown, refresh=False)
            self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._bar.close()
