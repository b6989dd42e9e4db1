"""Runs one command as several processes on this machine.

    python launch/local.py --processes=2 --devices=4 -- train --config=configs/demo.py --workdir=runs/demo
    python launch/local.py --processes=8 --gpus -- train --config=configs/bert.py:base --workdir=runs/base

With --devices=M each process simulates M devices on the CPU; with --gpus process i takes GPU i. The output of the
processes is passed through, each line prefixed with the rank of its process (except process 0). SIGINT, SIGTERM and
SIGUSR1 are forwarded to all. When one process fails, the others get SIGTERM, and SIGKILL after --grace seconds. The
exit status is that of the first process that failed, or else the largest (75: stopped and saved, run again to resume).
If this launcher itself is killed (SIGKILL), Linux sends SIGTERM to the processes, which save and stop.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import IO

from bert_jax import console
from bert_jax.runtime import end_with_parent
from bert_jax.runtime.stopping import EXIT_RUN_AGAIN, leave

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def main(argv: list[str]) -> int:
    """Starts the processes, forwards their output and signals, and waits for them; returns the exit status."""
    arguments = _parse(argv)
    processes, threads, received = [], [], []

    def forward(signum: int, _: object) -> None:
        received.append(signum)
        for process in processes:
            if process.poll() is None:
                process.send_signal(signum)

    for signum in _FORWARDED:
        signal.signal(signum, forward)
    port = _free_port()
    for rank in range(arguments.processes):
        process = subprocess.Popen(
            end_with_parent.command(['-m', 'bert_jax', *arguments.command]),
            env=_environment(arguments, rank, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors='backslashreplace',
            start_new_session=True,  # Ctrl-C reaches the processes through `forward`, once
        )
        processes.append(process)
        for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
            threads.append(threading.Thread(target=_copy_lines, args=(source, target, rank), daemon=True))
            threads[-1].start()
    status = _wait(processes, arguments.grace)
    for thread in threads:
        thread.join(timeout=5)
    return status


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--processes', type=int, required=True, help='number of processes')
    parser.add_argument('--devices', type=int, default=1, help='simulated CPU devices per process (default: 1)')
    parser.add_argument('--gpus', action='store_true', help='one GPU per process instead')
    parser.add_argument('--grace', type=float, default=30, help='seconds from SIGTERM to SIGKILL (default: 30)')
    parser.add_argument('command', nargs='+', help='after --: a bert_jax command with its flags')
    arguments = parser.parse_args(argv)
    if arguments.processes < 1 or arguments.devices < 1:
        parser.error('--processes and --devices must be at least 1')
    return arguments


def _environment(arguments: argparse.Namespace, rank: int, port: int) -> dict[str, str]:
    environment = os.environ | {
        'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
        'JAX_COORDINATOR_BIND_ADDRESS': f'127.0.0.1:{port}',
        'JAX_NUM_PROCESSES': str(arguments.processes),
        'JAX_PROCESS_ID': str(rank),
    }
    if arguments.gpus:
        return environment | {'JAX_LOCAL_DEVICE_IDS': str(rank)}
    flags = [flag for flag in os.environ.get('XLA_FLAGS', '').split() if 'host_platform_device_count' not in flag]
    flags.append(f'--xla_force_host_platform_device_count={arguments.devices}')
    return environment | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ' '.join(flags)}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


def _copy_lines(source: IO[str], target: IO[str], rank: int) -> None:
    for line in source:  # to the end, or the process would block on a full pipe
        target.write(line if rank == 0 else f'[{rank}] {line}')
        target.flush()


def _wait(processes: list[subprocess.Popen], grace: float) -> int:
    """Waits for all processes and returns the exit status.

    Once one has failed, ends the others. Once one has exited with 75, the others have `grace` seconds to exit too.
    """
    decided, deadline, stop_deadline = 0, None, None
    while any(process.poll() is None for process in processes):
        if deadline is None:
            failed = [p.returncode for p in processes if p.poll() not in (None, 0, EXIT_RUN_AGAIN)]
            if failed:
                decided, deadline = failed[0], time.monotonic() + grace
                _signal_all(processes, signal.SIGTERM)
            elif stop_deadline is None and any(process.poll() == EXIT_RUN_AGAIN for process in processes):
                stop_deadline = time.monotonic() + grace
            elif stop_deadline is not None and time.monotonic() > stop_deadline:  # a frozen process is left
                decided, deadline = EXIT_RUN_AGAIN, time.monotonic()
        elif time.monotonic() > deadline:
            _signal_all(processes, signal.SIGKILL)
        time.sleep(0.05)
    statuses = [process.returncode for process in processes]
    status = decided or next((code for code in statuses if code not in (0, EXIT_RUN_AGAIN)), max(statuses))
    return 128 - status if status < 0 else status


def _signal_all(processes: list[subprocess.Popen], signum: int) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(signum)


if __name__ == '__main__':
    console.open_streams()
    leave(main(sys.argv[1:]))
