"""Runs `bert_jax` in processes: one to completion, one in the background, and several as one run.

Starting processes is slow; a test that does so has the mark `processes`. Most tests need none: see `commands`.
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
# Fusion emitters take most of the compile time; newer versions of jax cannot disable them.
QUICK_TO_COMPILE = '--xla_cpu_use_fusion_emitters=false' if version('jaxlib').startswith('0.10.') else ''
WATCHDOG = 8.0  # seconds that a stage may take in a `Group` (default: 120)


def command(*arguments: object) -> list[str]:
    """Returns the command that starts `bert_jax` with these arguments."""
    return [sys.executable, '-m', 'bert_jax', *map(str, arguments)]


def environment(devices: int = 1, **more: object) -> dict[str, str]:
    """Returns the environment of a command that sees `devices` simulated devices."""
    flags = f'{QUICK_TO_COMPILE} --xla_force_host_platform_device_count={devices}'
    own = {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags, 'PYTHONPATH': str(ROOT), 'PYTHONUNBUFFERED': '1'}
    return os.environ | own | {name: str(value) for name, value in more.items()}


def bert_jax(
    *arguments: object, devices: int = 1, check: int | None = 0, cwd: Path | None = None
) -> subprocess.CompletedProcess:
    """Runs a command to completion; asserts its exit status unless `check` is None."""
    done = subprocess.run(
        command(*arguments), env=environment(devices), capture_output=True, text=True, timeout=300, cwd=cwd
    )
    if check is not None:
        assert done.returncode == check, done.stdout + done.stderr
    return done


def free_port() -> int:
    """Returns a free TCP port of this machine."""
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


class Running:
    """A command running in the background, in its own session; collects its lines on standard error."""

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
        """The standard error of the command so far."""
        return '\n'.join(self.lines)

    def wait_for(self, words: str, seconds: float = 120) -> bool:
        """Waits until a line contains these words; returns False if the command ends before."""
        deadline = time.monotonic() + seconds
        while not any(words in line for line in self.lines):
            if self.process.poll() is not None:
                self._reader.join(5)
                return any(words in line for line in self.lines)
            assert time.monotonic() < deadline, f'no {words!r} within {seconds} s:\n{self.text}'
            time.sleep(0.005)
        return True

    def wait_until_logged(self, workdir: Path, num_lines: int = 1, seconds: float = 120) -> None:
        """Waits until the run has written `num_lines` lines of metrics."""
        metrics, deadline = workdir / 'metrics.jsonl', time.monotonic() + seconds
        while not metrics.exists() or metrics.read_text().count('\n') < num_lines:
            assert self.process.poll() is None and time.monotonic() < deadline, self.text
            time.sleep(0.002)

    def wait(self, seconds: float = 120) -> int:
        """Waits for the command to end; returns its exit status (negative: the signal that ended it)."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f'still running after {seconds} s:\n{self.text}') from None
        self._reader.join(5)
        return status

    def send(self, signum: int) -> None:
        """Sends a signal to the command itself."""
        self.process.send_signal(signum)

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
        """Starts the processes.

        Args:
          cache: directory of the compilation cache, which makes a restart quick.
          program: Python module of the processes without a planted fault.
          plant: {rank: fault}, as `tests.support.planted` takes it.
          prefixes: {rank: command to start the process with}.
          long_seconds: limit of slow stages, such as compiling and saving.
        """
        port, self.members = free_port(), []
        for rank in range(num_processes):
            variables = {
                'JAX_COORDINATOR_ADDRESS': f'{address}:{port}',
                'JAX_NUM_PROCESSES': num_processes,
                'JAX_PROCESS_ID': rank,
            }
            own_program = ('tests.support.planted', plant[rank]) if plant and rank in plant else program
            started = [sys.executable, '-m', *own_program, 'train', *flags, f'--workdir={workdir}']
            started += [f'--config.train.watchdog_seconds={WATCHDOG}']
            started += [f'--config.train.watchdog_long_seconds={long_seconds}']
            env = environment(**variables, **caching(cache))
            self.members.append(Running([*(prefixes or {}).get(rank, []), *started], env))

    def __enter__(self) -> 'Group':
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def text(self) -> str:
        """Returns the standard error of all processes."""
        return '\n'.join(f'--- {rank}\n{member.text}' for rank, member in enumerate(self.members))

    def wait_for_saves(self, workdir: Path, num_saves: int = 2, seconds: float = 240) -> None:
        """Waits until the run has `num_saves` checkpoints."""
        deadline = time.monotonic() + seconds
        while len(list(workdir.glob('checkpoints/*/manifest.json'))) < num_saves:
            assert all(member.process.poll() is None for member in self.members), self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.05)

    def wait(self, ranks: list[int], seconds: float) -> tuple[list[int], float]:
        """Waits for these processes; returns their exit statuses, and the seconds until the last one ended."""
        start = time.monotonic()
        try:
            for rank in ranks:
                self.members[rank].wait(max(seconds - (time.monotonic() - start), 0.1))
        except AssertionError as error:
            raise AssertionError(f'process {rank} hangs: {error}\n{self.text()}') from None
        return [self.members[rank].process.returncode for rank in ranks], time.monotonic() - start

    def kill(self) -> None:
        """Ends the remaining processes."""
        for member in self.members:
            member.kill()


def caching(cache: Path | None) -> dict[str, object]:
    """Returns environment variables that cache every compiled program in a directory; {} for None."""
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
    """Starts `prepare` with chunks of about 20,000 bytes; it cannot write files larger than `largest_file` bytes."""
    limited = f'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({largest_file}, {largest_file}))\n'
    flags = [f'--config={ROOT}/configs/demo.py', *map(str, arguments)]
    command = [sys.executable, '-c', limited + _PREPARE, 'prepare', *flags]
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
