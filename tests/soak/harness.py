"""What the torture programs share: a run that starts in seconds, its end in every byte, and the row of the table.

A torture program is a test marked `soak` that takes its number of tries from `tries` and its random numbers from
`random_numbers`, and prints one `Row`. `make test-soak` runs all of them; `SOAK_TRIES` and `SOAK_SEED` change both.
"""

import dataclasses
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from tests.test_pretrain import ROOT, bert_jax, write_text

TINY = {
    'data.validation_fraction': 0.2,
    'data.sequence_length': 32,
    'tokenizer.vocab_size': 500,
    'model.num_layers': 1,
    'model.hidden_size': 32,
    'model.intermediate_size': 64,
    'model.dropout_rate': 0.1,
    'train.steps': 60,
    'train.global_batch_size': 16,
    'train.log_every': 1,
    'train.checkpoint_every': 5,
    'train.evaluate_every': 20,
    'train.evaluate_rows': 32,
    'optimizer.name': 'adamw',
    'optimizer.warmup_steps': 10,
}


def tries(default: int) -> int:
    """How often a program tries its fault."""
    return int(os.environ.get('SOAK_TRIES', default))


def random_numbers(program: str) -> np.random.Generator:
    """The same for the same `SOAK_SEED` and program."""
    seed = f'{os.environ.get("SOAK_SEED", "0")} {program}'.encode()
    return np.random.default_rng(int.from_bytes(hashlib.sha256(seed).digest()[:8], 'big'))


@dataclasses.dataclass
class Row:
    """A row of the table: a fault, how often it was tried, what came of it, seconds to recover, steps lost."""

    fault: str
    outcomes: list[str] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)
    steps_lost: list[int] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        counts = {outcome: self.outcomes.count(outcome) for outcome in dict.fromkeys(self.outcomes)}
        outcome = '; '.join(f'{count} {name}' for name, count in counts.items())
        columns = [self.fault, str(len(self.outcomes)), outcome, _spread(self.seconds, ' s'), _spread(self.steps_lost)]
        return f'| {" | ".join(columns)} |'


def _spread(values: list, unit: str = '') -> str:
    """Median and largest."""
    return f'{statistics.median(values):.3g} (at most {max(values):.3g}){unit}' if values else '–'


def prepare(directory: Path, **changes: object) -> list[str]:
    """Writes a small text and its corpus below `directory`; returns the flags of a run on it (see `TINY`).

    `changes` are fields of the config with their dots written as `__`.
    """
    write_text(directory / 'text.txt')
    values = {'data.source': f'text:{directory}/text.txt', 'data.corpus': directory / 'corpus'} | TINY
    values |= {name.replace('__', '.'): value for name, value in changes.items()}
    flags = [f'--config={ROOT}/configs/demo.py', *(f'--config.{name}={value}' for name, value in values.items())]
    bert_jax('prepare', *flags)
    return flags


def environment(cache: Path | None = None) -> dict[str, str]:
    """Of a command on one simulated device; `cache` holds what was compiled, so that a restart is quick."""
    own = {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '', 'PYTHONPATH': str(ROOT), 'PYTHONUNBUFFERED': '1'}
    if cache is not None:
        own |= {'JAX_COMPILATION_CACHE_DIR': str(cache), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    return os.environ | own


class Running:
    """A command under way in a session of its own; its lines are kept as they come."""

    def __init__(self, command: list[str], env: dict[str, str], **options: object) -> None:
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            command,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors='replace',
            start_new_session=True,
            **options,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with self.process.stderr as lines:
            for line in lines:
                self.lines.append(line.rstrip('\n'))

    @property
    def text(self) -> str:
        """All that it wrote to standard error so far."""
        return '\n'.join(self.lines)

    def wait_for(self, words: str, seconds: float = 120) -> bool:
        """Waits until a line holds these words; False when the command ended before."""
        deadline = time.monotonic() + seconds
        while not any(words in line for line in self.lines):
            if self.process.poll() is not None:
                self._reader.join(5)
                return any(words in line for line in self.lines)
            assert time.monotonic() < deadline, f'no {words!r} within {seconds} s:\n{self.text}'
            time.sleep(0.005)
        return True

    def wait(self, seconds: float = 120) -> int:
        """Waits for the end; returns the exit status (negative: the signal that ended it)."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f'still running after {seconds} s:\n{self.text}') from None
        self._reader.join(5)
        return status

    def send(self, number: int) -> None:
        """Sends a signal to the command itself."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """Ends the command and all that it started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self._reader.join(5)


def train_command(flags: list[str], workdir: Path, record: Path | None = None) -> list[str]:
    """`train` as a command; with `record`, the batch of every step is noted there (see `tests.soak.recorded`)."""
    program = ['-m', 'bert_jax'] if record is None else ['-m', 'tests.soak.recorded', str(record)]
    return [sys.executable, *program, 'train', *flags, f'--workdir={workdir}']


def batches(record: Path) -> dict[int, set[str]]:
    """Step -> the hashes of the batches that it was trained on, over all the processes that wrote the record."""
    found: dict[int, set[str]] = {}
    for line in record.read_text().splitlines():
        step, _, digest = line.partition(' ')
        if len(digest) == 64:  # a kill may cut a line
            found.setdefault(int(step), set()).add(digest)
    return found


def final_state(workdir: Path) -> dict[str, bytes]:
    """Every array of the newest checkpoint (step, parameters, optimizer state), as its bytes."""
    newest = max(int(path.name) for path in (workdir / 'checkpoints').iterdir() if path.name.isdigit())
    with ocp.StandardCheckpointer() as checkpointer:
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        path = (workdir / 'checkpoints' / str(newest)).resolve()
        shapes = checkpointer.metadata(path).item_metadata.tree
        target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), shapes)
        restored = checkpointer.restore(path, target)
    leaves, _ = jax.tree.flatten_with_path(restored)
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}
    return {'step': str(newest).encode()} | arrays


def metrics(workdir: Path) -> dict[int, dict[str, float]]:
    """metrics.jsonl by step, without what depends on the clock; a step that appears twice is an error."""
    found: dict[int, dict[str, float]] = {}
    path = workdir / 'metrics.jsonl'
    for line in path.read_text().splitlines() if path.exists() else ():
        values = json.loads(line)
        step = values.pop('step')
        values = {name: value for name, value in values.items() if name not in ('tokens_per_second', 'mfu')}
        values.pop('input_wait_fraction', None)
        assert not found.get(step, {}).keys() & values.keys(), f'step {step} appears twice'
        found.setdefault(step, {}).update(values)
    return found
