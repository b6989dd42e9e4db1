"""A workdir has one holder: a second run does not start, and reports who holds the workdir.

    WORKDIR/.lease/N.json   the N-th holder; the file's modification time is its last heartbeat

The highest N, the newest generation, holds the workdir. Taking it over means creating N + 1, which succeeds only once:
as a hard link to a finished file, which fails if the name exists, also on NFS; with exclusive creation on file systems
without hard links. A holder that ends writes `released` into its file. A copy of a workdir is free, whoever holds the
original.

- Same machine (boot and pid namespace): the holder is alive if its process is. A dead holder is replaced at once.
- Another machine: the holder touches its file every `HEARTBEAT_SECONDS`. A run that wants the workdir watches the file
  for at least two heartbeats and takes over once it has not changed for `TIMEOUT_SECONDS`. Ages are differences between
  times of the file server, or are waited for: the clocks of two machines are never compared, and a clock that jumps
  does no harm.
- The holder looks for a newer generation before every write, and stops when there is one.

Two cases are not covered. On an object store creation is not exclusive: the file is written and read again after two
heartbeats. Of two runs that start within seconds one gives way, but a store with delayed listings may let both
continue. And a machine may freeze in the milliseconds between the holder's check and its write.
"""

import contextlib
import dataclasses
import errno
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from etils import epath

from bert_jax.errors import BadInput
from bert_jax.files import is_local, modified_at, write_whole
from bert_jax.json_files import read_json
from bert_jax.runtime.paths import check_path

DIRECTORY = '.lease'  # in the workdir
HEARTBEAT_SECONDS = 5.0  # between two heartbeats
TIMEOUT_SECONDS = 60.0  # without a heartbeat, after which a holder on another machine counts as dead
_BOOT_ID = Path('/proc/sys/kernel/random/boot_id')
_NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL})


@dataclasses.dataclass(frozen=True)
class LeaseHolder:
    """The process that holds a lease, distinguishable from every other process since its machine booted.

    Attributes:
      machine: boot id and pid namespace, within which process ids are comparable; '' if unknown.
      started: when the process started, in clock ticks since boot.
      token: random, new for every lease.
      released: whether the process has released the lease.
      workdir: its path on the holder's machine; '' if unknown.
    """

    host: str
    machine: str
    pid: int
    started: int
    token: str
    released: bool = False
    workdir: str = ''

    @classmethod
    def this_process(cls, workdir: str = '') -> 'LeaseHolder':
        """Returns this process, with a new token."""
        pid, started = os.getpid(), _process_start(os.getpid())[0] or 0
        return cls(socket.gethostname(), _this_machine(), pid, started, secrets.token_hex(8), workdir=workdir)

    def has_exited(self) -> bool | None:
        """Returns whether the process has exited; None if it ran on another machine, where only its file shows that."""
        if self.released:
            return True
        if not self.machine or self.machine != _this_machine():
            return None
        started, state = _process_start(self.pid)
        return started != self.started or state == 'Z'

    def __str__(self) -> str:
        """Returns for example `process 4711 on node7`."""
        stopped = not self.has_exited() and self.machine == _this_machine() and _process_start(self.pid)[1] == 'T'
        return f'process {self.pid} on {self.host}' + (' (suspended)' if stopped else '')


class Lease:
    """This process's hold on one workdir, from `acquire` to `close`; in a run only process 0 has one."""

    def __init__(
        self, workdir: str, *, heartbeat_seconds: float = HEARTBEAT_SECONDS, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        self._directory = epath.Path(workdir) / DIRECTORY
        self._workdir = workdir
        self._heartbeat_seconds, self._timeout_seconds = heartbeat_seconds, timeout_seconds
        self._is_object_store = not is_local(workdir)
        self._me = LeaseHolder.this_process('' if self._is_object_store else os.path.realpath(workdir))
        self._generation = 0
        self._done = threading.Event()

    def acquire(self, say: Callable[[str], None] = lambda _: None) -> None:
        """Takes the workdir, after waiting until a silent holder on another machine counts as dead.

        Args:
          say: reports whose lease this waits for and takes over.

        Raises:
          BadInput: if another run holds the workdir, or the workdir is not writable.
        """
        check_path('workdir', self._workdir)
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            while True:
                generation, holder = self._newest()
                if holder is not None and self._is_copy_of_held(generation, holder):
                    say(f'{self._workdir} is a copy of {holder.workdir}; no run holds the copy.')
                elif holder is not None and not holder.released:
                    self._wait_until_expired(generation, holder, say)
                    say(f'{self._workdir} was held by {holder}, which exited without releasing its lease; taking over.')
                if self._create(generation + 1):
                    break
        except OSError as error:
            raise BadInput(
                f'--workdir={self._workdir}',
                f'is not writable ({error.strerror or error})',
                'a directory that this user can write to',
                'use another --workdir',
            ) from error
        self._generation = generation + 1
        self._delete_older()
        threading.Thread(target=self._send_heartbeats, name='lease', daemon=True).start()

    def check(self) -> None:
        """Checks that this process may write to the workdir; called before every write.

        Raises:
          BadInput: if this process no longer holds the workdir, or has released it.
        """
        if not self._generation:  # never acquired: every process but process 0
            return
        if self._done.is_set():
            raise BadInput(
                f'--workdir={self._workdir}',
                'was released by this run; nothing more is written',
                'one run per workdir',
            )
        self._check_is_newest()

    def _check_is_newest(self) -> None:
        generation, holder = self._newest()
        if generation != self._generation or holder is None or holder.token != self._me.token:
            now = 'its lease was deleted' if holder is None else f'{holder} took it over'
            raise BadInput(
                f'--workdir={self._workdir}',
                f'is no longer held by this run ({self._me}): {now}; nothing more is written',
                'one run per workdir',
                'find out why this run sent no heartbeat: it was suspended, or could not reach the file system',
            )

    def close(self) -> None:
        """Releases the workdir, so that the next run can take it at once; does nothing without a lease."""
        if self._done.is_set() or not self._generation:
            return
        self._done.set()
        with contextlib.suppress(OSError, BadInput):
            self._check_is_newest()
            write_whole(self._path(self._generation), self._text(released=True))

    # --- Files. ---

    def _path(self, generation: int) -> epath.Path:
        return self._directory / f'{generation}.json'

    def _newest(self) -> tuple[int, LeaseHolder | None]:
        """Returns the newest generation and its holder, or (0, None). An unreadable file counts as a silent holder."""
        names = [path.name for path in self._directory.iterdir()] if self._directory.exists() else []
        generation = max(
            (int(name[:-5]) for name in names if name[:-5].isdecimal() and name.endswith('.json')), default=0
        )
        if not generation:
            return 0, None
        try:
            return generation, LeaseHolder(**read_json(self._path(generation)))
        except (ValueError, TypeError, OSError):
            return generation, LeaseHolder('an unknown host', '', 0, 0, '')

    def _text(self, released: bool = False) -> str:
        return json.dumps(dataclasses.asdict(self._me) | {'released': released}) + '\n'

    def _create(self, generation: int) -> bool:
        """Makes this process the holder of a generation; returns False if another process was faster."""
        path = self._path(generation)
        if self._is_object_store:
            if path.exists():
                return False
            path.write_text(self._text())
            time.sleep(2 * self._heartbeat_seconds)
        else:
            temporary = self._directory / f'.{self._me.token}'
            temporary.write_text(self._text())
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_HARD_LINKS:
                    raise
                if not _create_exclusively(path, self._text()):
                    return False
            finally:
                temporary.unlink()
        newest, holder = self._newest()  # the generation may be free because newer ones have deleted it
        return newest == generation and holder is not None and holder.token == self._me.token

    def _is_copy_of_held(self, generation: int, holder: LeaseHolder) -> bool:
        """Returns whether this workdir, lease file included, is a copy of the workdir that `holder` holds."""
        if self._is_object_store or not holder.workdir or holder.machine != _this_machine():
            return False
        original = Lease(holder.workdir)
        try:
            is_here = os.path.samefile(original._directory, self._directory)
        except OSError:  # the original has moved, perhaps to here
            return False
        newest, newest_holder = original._newest()
        if is_here or newest_holder is None:
            return False
        return newest > generation or newest_holder.token == holder.token

    def _delete_older(self) -> None:
        for path in self._directory.iterdir():
            if path.name.endswith('.json') and path.name[:-5].isdecimal() and int(path.name[:-5]) < self._generation:
                with contextlib.suppress(OSError):
                    path.unlink()

    # --- Heartbeats. ---

    def _send_heartbeats(self) -> None:
        path = self._path(self._generation)
        while not self._done.wait(self._heartbeat_seconds):
            with contextlib.suppress(OSError):  # not reachable now; another run waits for more than one heartbeat
                if not self._is_object_store:
                    os.utime(path)  # the file server's time
                elif path.exists():
                    path.write_text(self._text())

    def _wait_until_expired(self, generation: int, holder: LeaseHolder, say: Callable[[str], None]) -> None:
        """Returns once the holder is dead; raises BadInput if it is alive."""
        has_exited = holder.has_exited()
        if has_exited is None:
            seconds = f'{self._timeout_seconds:.0f} s'
            say(f'{self._workdir} is held by {holder}: waiting up to {seconds} for a sign of life.')
        silent, watched, activity = self._age(generation), 0.0, self._activity(generation)
        while has_exited is None:
            if watched >= 2 * self._heartbeat_seconds and max(silent, watched) >= self._timeout_seconds:
                return
            time.sleep(self._heartbeat_seconds / 5)
            watched, silent = watched + self._heartbeat_seconds / 5, silent + self._heartbeat_seconds / 5
            if self._activity(generation) != activity:
                has_exited = False
        if not has_exited:
            raise BadInput(
                f'--workdir={self._workdir}',
                f'is in use by {holder}',
                'one run per workdir',
                'wait for that process, stop it with kill (it saves first), or use another --workdir',
            )

    def _activity(self, generation: int) -> tuple:
        """Returns a value that changes whenever the holder sends a heartbeat or is replaced."""
        newest, holder = self._newest()
        with contextlib.suppress(OSError):
            return newest, holder, modified_at(self._path(generation))
        return newest, holder

    def _age(self, generation: int) -> float:
        """Returns the seconds since the last heartbeat by the file server's clock; 0 if unknown."""
        probe = self._directory / f'.{self._me.token}'
        with contextlib.suppress(OSError):
            probe.write_text('')
            try:
                return max(modified_at(probe) - modified_at(self._path(generation)), 0.0)
            finally:
                probe.unlink()
        return 0.0


def holder_of(workdir: str) -> str:
    """Returns who holds a workdir, judging by its files without waiting; '' if no process seems to."""
    lease = Lease(workdir)
    generation, holder = lease._newest()
    if holder is None or holder.has_exited() or lease._is_copy_of_held(generation, holder):
        return ''
    if holder.has_exited() is None:
        with contextlib.suppress(OSError):
            if abs(time.time() - modified_at(lease._path(generation))) > lease._timeout_seconds:
                return ''
    return str(holder)


def _create_exclusively(path: epath.Path, text: str) -> bool:
    """Writes a new file; returns False if it exists. While incomplete, the file counts as a silent holder's."""
    try:
        with open(path, 'x') as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


def _this_machine() -> str:
    """Returns boot id and pid namespace; '' if unknown (not Linux)."""
    try:
        return f'{_BOOT_ID.read_text().strip()} {os.readlink("/proc/self/ns/pid")}'
    except OSError:
        return ''


def _process_start(pid: int) -> tuple[int | None, str]:
    """Returns when a process started (clock ticks since boot) and its state; (None, '') if it does not exist."""
    try:
        fields = Path(f'/proc/{pid}/stat').read_text().rpartition(') ')[2].split()
    except OSError:
        return None, ''
    return int(fields[19]), fields[0]
