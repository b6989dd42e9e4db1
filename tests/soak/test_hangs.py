"""If one of two to four processes is killed, frozen, stuck or cut off, all end in time and it is named."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.soak.harness import Row, prepare, random_numbers, tries
from tests.support.processes import WATCHDOG, Group

_LONG = 60.0  # seconds, limit of slow stages (default: 3600)
_SLACK = 60.0  # further seconds, on a busy machine


@pytest.fixture(scope='module')
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    directory = tmp_path_factory.mktemp('hangs')
    changes = {
        'train__global_batch_size': 12,  # 2, 3 and 4 processes share it
        'train__steps': 100_000,
        'train__log_every': 20,
        'train__checkpoint_every': 20,
        'train__evaluate_every': 0,
    }
    return prepare(directory, **changes, train__keep_checkpoints=3)


@pytest.fixture(scope='module')
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('compiled')


def freeze_or_kill(
    flags: list[str], directory: Path, cache: Path, signum: int, rng: np.random.Generator, row: Row
) -> None:
    """Sends a signal to a random process of two to four at a random moment; checks that the others end."""
    num_processes = int(rng.integers(2, 5))
    group, workdir = Group(flags, directory / 'run', num_processes, cache), directory / 'run'
    try:
        group.wait_for_saves(workdir)
        time.sleep(rng.uniform(0, 0.5))
        victim = int(rng.integers(num_processes))
        others = [rank for rank in range(num_processes) if rank != victim]
        group.members[victim].send(signum)
        statuses, seconds = group.wait(others, WATCHDOG + _SLACK)
        if victim == 0 and signum == signal.SIGKILL:
            assert set(statuses) == {-signal.SIGABRT}, group.text()  # by jax
        else:
            assert set(statuses) == {75}, group.text()
            for rank in others:
                assert f'rocess {victim}' in group.members[rank].text, group.text()
                assert 'no sign of life' in group.members[rank].text, group.text()
        row.outcomes.append(
            'all ended, process named' if victim or signum != signal.SIGKILL else 'all ended by jax (process 0 died)'
        )
        row.seconds.append(seconds)
    finally:
        group.kill()


@pytest.mark.soak
def test_killed_process_ends_all(flags, cache, tmp_path, capsys) -> None:
    rng, row = random_numbers('kill one'), Row('one of 2 to 4 processes killed (SIGKILL)')
    for attempt in range(tries(6)):
        freeze_or_kill(flags, tmp_path / str(attempt), cache, signal.SIGKILL, rng, row)
    with capsys.disabled():
        print(row)


@pytest.mark.soak
def test_frozen_process_ends_all_and_is_named(flags, cache, tmp_path, capsys) -> None:
    rng, row = random_numbers('freeze one'), Row('one of 2 to 4 processes frozen (SIGSTOP)')
    for attempt in range(tries(6)):
        freeze_or_kill(flags, tmp_path / str(attempt), cache, signal.SIGSTOP, rng, row)
    with capsys.disabled():
        print(row)


@pytest.mark.soak
def test_straggler_is_named_and_ends_the_run_when_frozen(flags, cache, tmp_path) -> None:
    with Group(flags, tmp_path / 'run', 2, cache, plant={1: 'slow:3'}) as group:
        assert group.members[0].wait_for('Straggler: process 1 on ', 120), group.text()
        group.wait_for_saves(tmp_path / 'run')
        group.members[1].send(signal.SIGSTOP)
        [status], _ = group.wait([0], WATCHDOG + _SLACK)
        assert status == 75 and 'Process 1 of 2' in group.members[0].text, group.text()
        assert 'no sign of life' in group.members[0].text and 'Thread 0x' in group.members[0].text, group.text()


def get_stuck(
    flags: list[str], directory: Path, cache: Path, num_processes: int, victim: int, where: str, row: Row
) -> None:
    """Makes a process sleep forever at a step after the second save; checks that all end and name it and the line."""
    limit = _LONG if where == 'save' else WATCHDOG
    plant = {victim: f'{where}:70'}
    group = Group(flags, directory / 'run', num_processes, cache, plant=plant, long_seconds=_LONG)
    try:
        assert group.members[victim].wait_for('planted', 240), group.text()
        statuses, seconds = group.wait(list(range(num_processes)), limit + _SLACK)
        assert set(statuses) == {75}, group.text()
        for member in group.members:
            if where == 'save':  # all are in this stage; the stacks show which one waits for which
                assert 'have been stuck for' in member.text and 'in saving' in member.text, group.text()
            else:
                assert f'Process {victim} of {num_processes}' in member.text and 'is stuck' in member.text, group.text()
        assert 'sleep_forever' in group.members[victim].text  # its stack
        row.outcomes.append(f'all ended, {"stage" if where == "save" else "process"} named, stacks dumped')
        row.seconds.append(seconds - limit)
    finally:
        group.kill()


@pytest.mark.soak
def test_stuck_process_ends_all_and_is_named(flags, cache, tmp_path, capsys) -> None:
    rng, row = random_numbers('stuck'), Row('one of 2 to 4 processes stuck but alive (seconds past the limit)')
    for attempt in range(tries(6)):
        num_processes = int(rng.integers(2, 5))
        victim, where = int(rng.integers(num_processes)), ('batch', 'step', 'save')[attempt % 3]
        get_stuck(flags, tmp_path / str(attempt), cache, num_processes, victim, where, row)
    with capsys.disabled():
        print(row)


@pytest.mark.soak
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which('ip') is None, reason='network namespaces need root and ip')
def test_network_partition_ends_both_sides(flags, cache, tmp_path, capsys) -> None:
    row = Row('network cut between two processes')
    for attempt in range(tries(3)):
        with _two_namespaces(f'bj{os.getpid() % 100_000}') as (prefixes, cut):
            workdir = tmp_path / str(attempt)
            group = Group(flags, workdir, 2, cache, prefixes=prefixes, address='10.213.7.1')
            try:
                group.wait_for_saves(workdir)
                cut()
                statuses, seconds = group.wait([0, 1], WATCHDOG + _SLACK)
                assert set(statuses) <= {75, -signal.SIGABRT}, group.text()
                assert 'no sign of life' in group.text()
                row.outcomes.append('both sides ended')
                row.seconds.append(seconds)
            finally:
                group.kill()
    with capsys.disabled():
        print(row)


@contextlib.contextmanager
def _two_namespaces(name: str) -> Iterator[tuple[dict[int, list[str]], Callable[[], object]]]:
    """Makes two connected network namespaces; yields command prefixes that run in each, and a function to cut the link.

    In each namespace this machine's name resolves to the namespace's address (gloo listens there), through a hosts file
    that `ip netns exec` mounts.
    """

    def ip(command: str, check: bool = True) -> None:
        subprocess.run(['ip', *command.split()], check=check, capture_output=True)

    ends = (f'{name}a', f'{name}b')
    folders = [Path('/etc/netns') / end for end in ends]
    try:
        for end in ends:
            ip(f'netns add {end}')
        ip(f'link add {ends[0]} netns {ends[0]} type veth peer name {ends[1]} netns {ends[1]}')
        for rank, (end, folder) in enumerate(zip(ends, folders, strict=True)):
            ip(f'-n {end} addr add 10.213.7.{rank + 1}/24 dev {end}')
            ip(f'-n {end} link set {end} up')
            ip(f'-n {end} link set lo up')
            folder.mkdir(parents=True)
            (folder / 'hosts').write_text(f'127.0.0.1 localhost\n10.213.7.{rank + 1} {socket.gethostname()}\n')
        prefixes = {rank: ['ip', 'netns', 'exec', end] for rank, end in enumerate(ends)}
        yield prefixes, lambda: ip(f'-n {ends[0]} link set {ends[0]} down')
    finally:
        for end, folder in zip(ends, folders, strict=True):
            ip(f'netns delete {end}', check=False)
            shutil.rmtree(folder, ignore_errors=True)
