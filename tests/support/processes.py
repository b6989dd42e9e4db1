"""Commands of `bert_jax` in processes: one that is waited for, one under way, and several that are one run.

What starts a process is slow; a test that needs one has the mark `processes`. Most need none: see `commands`.
"""

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The emitters of fusions take most of the time to compile; the newest jax has no other way.
QUICK_TO_COMPILE = '--xla_cpu_use_fusion_emitters=false' if version('jaxlib').startswith('0.10.') else ''
WATCHDOG = 8.0  # seconds that a stage may take in a `Group`; production's are 120


def command(*arguments: object) -> list[str]:
    """What starts `bert_jax` with these arguments."""
    return [sys.executable, '-m', 'bert_jax', *map(str, arguments)]


def environment(devices: int = 1, **more: object) -> dict[str, str]:
    """The environment of a command that sees so many simulated devices."""
    flags = f'{QUICK_TO_COMPILE} --xla_force_host_platform_device_count={devices}'
    own = {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags, 'PYTHONPATH': str(ROOT), 'PYTHONUNBUFFERED': '1'}
    return os.environ | own | {name: str(value) for name, value in more.items()}


def bert_jax(
    *arguments: object, devices: int = 1, check: int | None = 0, cwd: Path | None = None
) -> subprocess.CompletedProcess:
    """Runs a command to its end; with `check`, asserts its exit status."""
    done = subprocess.run(
        command(*arguments), env=environment(devices), capture_output=True, text=True, timeout=300, cwd=cwd
    )
    if check is not None:
        assert done.returncode == check, done.stdout + done.stderr
    return done


def free_port() -> int:
    """A TCP port of this machine that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


class Running:
    """A command under way, in a session of its own; its lines on standard error are kept as they come."""

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

    def __enter__(self) -> 'Running':
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _read(self) -> None:
        with self.process.stderr as lines:
            for line in lines:
                self.lines.append(line.rstrip('\n'))

    @property
    def text(self) -> str:
        """Everything it has written to standard error so far."""
        return '\n'.join(self.lines)

    def wait_for(self, words: str, seconds: float = 120) -> bool:
        """Waits until a line contains these words; returns False when the command ended before."""
        deadline = time.monotonic() + seconds
        while not any(words in line for line in self.lines):
            if self.process.poll() is not None:
                self._reader.join(5)
                return any(words in line for line in self.lines)
            assert time.monotonic() < deadline, f'no {words!r} within {seconds} s:\n{self.text}'
            time.sleep(0.005)
        return True

    def wait_until_logged(self, workdir: Path, num_lines: int = 1, seconds: float = 120) -> None:
        """Waits until the run has written so many lines of metrics."""
        metrics, deadline = workdir / 'metrics.jsonl', time.monotonic() + seconds
        while not metrics.exists() or metrics.read_text().count('\n') < num_lines:
            assert self.process.poll() is None and time.monotonic() < deadline, self.text
            time.sleep(0.002)

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
        """Ends the command and everything it started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self._reader.join(5)


class Group:
    """The processes of one run, each started separately: no launcher ends them."""

    def __init__(
        self,
        flags: list[str],
        workdir: Path,
        num_processes: int,
        cache: Path | None,
        *,
        program: tuple[str, ...] = ('bert_jax',),
        plant: dict[int, str] | None = None,
        prefixes: dict[int, list[str]] | None = None,
        address: str = '127.0.0.1',
        long_seconds: float = 600,
    ) -> None:
        """Starts them.

        Args:
          cache: where compiled programs are kept, so that a restart is quick.
          program: of all but those with a plant.
          plant: what `tests.support.planted` does in a process.
          prefixes: commands that a process is started by.
          long_seconds: for what may take long: compiling, saving.
        """
        port, self.members = free_port(), []
        for rank in range(num_processes):
            place = {
                'JAX_COORDINATOR_ADDRESS': f'{address}:{port}',
                'JAX_NUM_PROCESSES': num_processes,
                'JAX_PROCESS_ID': rank,
            }
            own_program = ('tests.support.planted', plant[rank]) if plant and rank in plant else program
            started = [sys.executable, '-m', *own_program, 'train', *flags, f'--workdir={workdir}']
            started += [f'--config.train.watchdog_seconds={WATCHDOG}']
            started += [f'--config.train.watchdog_long_seconds={long_seconds}']
            env = environment(**place, **caching(cache))
            self.members.append(Running([*(prefixes or {}).get(rank, []), *started], env))

    def __enter__(self) -> 'Group':
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def text(self) -> str:
        """Everything they wrote, by process."""
        return '\n'.join(f'--- {rank}\n{member.text}' for rank, member in enumerate(self.members))

    def wait_for_saves(self, workdir: Path, num_saves: int = 2, seconds: float = 240) -> None:
        """Waits until the run has that many checkpoints."""
        deadline = time.monotonic() + seconds
        while len(list(workdir.glob('checkpoints/*/manifest.json'))) < num_saves:
            assert all(member.process.poll() is None for member in self.members), self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.05)

    def wait(self, ranks: list[int], seconds: float) -> tuple[list[int], float]:
        """Returns the exit statuses of these processes, and the seconds until the last one had ended."""
        start = time.monotonic()
        try:
            for rank in ranks:
                self.members[rank].wait(max(seconds - (time.monotonic() - start), 0.1))
        except AssertionError as error:
            raise AssertionError(f'process {rank} hangs: {error}\n{self.text()}') from None
        return [self.members[rank].process.returncode for rank in ranks], time.monotonic() - start

    def kill(self) -> None:
        """Ends those that are left."""
        for member in self.members:
            member.kill()


def caching(cache: Path | None) -> dict[str, object]:
    """Environment variables that keep every compiled program in a directory, or none."""
    if cache is None:
        return {}
    return {'JAX_COMPILATION_CACHE_DIR': cache, 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': 0}


_PREPARE = """if True:
    import sys
    from bert_jax import __main__
    from bert_jax.text import chunks

    if __name__ == '__main__':
        chunks._MIN_CHUNK = 20_000
        sys.exit(__main__.main(['bert_jax', *sys.argv[1:]]))
"""


def start_prepare(*arguments: object, largest_file: int = resource.RLIM_INFINITY) -> subprocess.Popen[str]:
    """Starts `prepare` with chunks of about 20,000 bytes; it can write no file of more than `largest_file` bytes."""
    limited = f'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({largest_file}, {largest_file}))\n'
    flags = [f'--config={ROOT}/configs/demo.py', *map(str, arguments)]
    command = [sys.executable, '-c', limited + _PREPARE, 'prepare', *flags]
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
