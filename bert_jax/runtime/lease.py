"""A workdir has one owner: a second run refuses to start and names the holder.

    WORKDIR/.lease/N.json   the N-th owner and who it is; its modification time is its last sign of life

The highest N owns the workdir. Taking it over means creating N + 1, which succeeds only once: as a hard link to a
finished file, which fails if the name exists, on NFS too; exclusively where the file system has no hard links. A holder
that ends writes `released` into its file. A copy of a workdir is held by nobody, whoever holds the original.

- Same machine (boot and pid namespace): the holder is alive if its process is. A dead holder is succeeded at once.
- Another machine: the holder touches its file every `HEARTBEAT_SECONDS`. A run that wants the workdir watches the file
  for at least two heartbeats and takes over once it has not changed for `TIMEOUT_SECONDS`. Ages are differences between
  times of the file server, or are waited for: the clocks of two machines are never compared, and a clock that jumps
  does no harm.
- The holder looks for a higher number before every write, and stops when there is one.

Not guaranteed: on an object store creation is not exclusive. There the file is written and read again after two beats:
of two runs that start within seconds one gives way, but a store with delayed listings may let both continue. And a
machine may freeze in the milliseconds between the holder's look and its write; nothing stops that write.
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
HEARTBEAT_SECONDS = 5.0  # seconds between signs of life
TIMEOUT_SECONDS = 60.0  # seconds without one, after which a holder on another machine counts as dead
_BOOT_ID = Path('/proc/sys/kernel/random/boot_id')
_NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL})


@dataclasses.dataclass(frozen=True)
class LeaseHolder:
    """The process that holds a lease, told apart from every other process since its machine was started.

    Attributes:
      machine: boot id and pid namespace, within which process ids are comparable; '' if unknown.
      started: when the process was started, in clock ticks since boot.
      token: random, new for every lease.
      released: whether it has given up the lease.
      workdir: what it holds, on this machine; '' if unknown.
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
        """This process, with a new token."""
        pid, started = os.getpid(), _start_of(os.getpid())[0] or 0
        return cls(socket.gethostname(), _this_machine(), pid, started, secrets.token_hex(8), workdir=workdir)

    def has_exited(self) -> bool | None:
        """Whether its process has ended; None on another machine, where only the file can tell."""
        if self.released:
            return True
        if not self.machine or self.machine != _this_machine():
            return None
        started, state = _start_of(self.pid)
        return started != self.started or state == 'Z'

    def __str__(self) -> str:
        """`process 4711 on node7`."""
        stopped = not self.has_exited() and self.machine == _this_machine() and _start_of(self.pid)[1] == 'T'
        return f'process {self.pid} on {self.host}' + (', which is stopped' if stopped else '')


class Lease:
    """This process's hold on one workdir, from `acquire` to `close`; process 0 of a run holds it."""

    def __init__(self, workdir: str, *, beat: float = HEARTBEAT_SECONDS, timeout: float = TIMEOUT_SECONDS) -> None:
        self._directory = epath.Path(workdir) / DIRECTORY
        self._workdir, self._beat, self._timeout = workdir, beat, timeout
        self._is_remote = not is_local(workdir)
        self._owner = LeaseHolder.this_process('' if self._is_remote else os.path.realpath(workdir))
        self._number = 0
        self._done = threading.Event()

    def acquire(self, say: Callable[[str], None] = lambda _: None) -> None:
        """Takes the workdir, waiting until a silent holder on another machine counts as dead.

        Args:
          say: reports whose lease is waited for and taken over.

        Raises:
          BadInput: when another run holds the workdir, or it cannot be written to.
        """
        check_path('workdir', self._workdir)
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            while True:
                number, holder = self._newest()
                if holder is not None and self._is_copied(number, holder):
                    say(f'{self._workdir} is a copy of {holder.workdir}; the copy is held by nobody.')
                elif holder is not None and not holder.released:
                    self._wait_until_expired(number, holder, say)
                    say(f'{self._workdir} was held by {holder}, which ended without releasing its lease: taken over.')
                if self._create(number + 1):
                    break
        except OSError as error:
            raise BadInput(
                f'--workdir={self._workdir}',
                f'cannot be written to ({error.strerror or error})',
                'a directory that this user may write to',
                'name another --workdir',
            ) from error
        self._number = number + 1
        self._delete_older()
        threading.Thread(target=self._keep, name='lease', daemon=True).start()

    def check(self) -> None:
        """To be called before everything that is written into the workdir.

        Raises:
          BadInput: when this process no longer holds it, or has released it.
        """
        if not self._number:  # never acquired: every process but the first
            return
        if self._done.is_set():
            raise BadInput(
                f'--workdir={self._workdir}',
                'was released by this run; nothing more is written',
                'one run in a workdir',
            )
        self._check_is_newest()

    def _check_is_newest(self) -> None:
        number, holder = self._newest()
        if number != self._number or holder is None or holder.token != self._owner.token:
            now = 'nobody' if holder is None else str(holder)
            raise BadInput(
                f'--workdir={self._workdir}',
                f'is no longer held by this run ({self._owner}), but by {now}; nothing more is written',
                'one run in a workdir',
                'see why this one was silent for so long: stopped, or its file system was not reachable',
            )

    def close(self) -> None:
        """Releases the workdir, so that the next run may take it at once; does nothing without a lease."""
        if self._done.is_set() or not self._number:
            return
        self._done.set()
        with contextlib.suppress(OSError, BadInput):
            self._check_is_newest()
            write_whole(self._path(self._number), self._text(released=True))

    # --- Files. ---

    def _path(self, number: int) -> epath.Path:
        return self._directory / f'{number}.json'

    def _newest(self) -> tuple[int, LeaseHolder | None]:
        """The highest number and its owner, or (0, None). An unreadable file counts as that of a silent owner."""
        names = [path.name for path in self._directory.iterdir()] if self._directory.exists() else []
        number = max((int(name[:-5]) for name in names if name[:-5].isdecimal() and name.endswith('.json')), default=0)
        if not number:
            return 0, None
        try:
            return number, LeaseHolder(**read_json(self._path(number)))
        except (ValueError, TypeError, OSError):
            return number, LeaseHolder('an unknown host', '', 0, 0, '')

    def _text(self, released: bool = False) -> str:
        return json.dumps(dataclasses.asdict(self._owner) | {'released': released}) + '\n'

    def _create(self, number: int) -> bool:
        """Makes this process the owner with that number; False when another was faster."""
        path = self._path(number)
        if self._is_remote:
            if path.exists():
                return False
            path.write_text(self._text())
            time.sleep(2 * self._beat)
        else:
            temporary = self._directory / f'.{self._owner.token}'
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
        newest, holder = self._newest()  # the number may be free because others came and left in the meantime
        return newest == number and holder is not None and holder.token == self._owner.token

    def _is_copied(self, number: int, holder: LeaseHolder) -> bool:
        """Whether a holder's lease is of another workdir, which this one is a copy of."""
        if self._is_remote or not holder.workdir or holder.machine != _this_machine():
            return False
        original = Lease(holder.workdir)
        try:
            is_here = os.path.samefile(original._directory, self._directory)
        except OSError:  # the original has moved, perhaps to here
            return False
        newest, owner = original._newest()
        return not is_here and owner is not None and (newest > number or owner.token == holder.token)

    def _delete_older(self) -> None:
        for path in self._directory.iterdir():
            if path.name.endswith('.json') and path.name[:-5].isdecimal() and int(path.name[:-5]) < self._number:
                with contextlib.suppress(OSError):
                    path.unlink()

    # --- Signs of life. ---

    def _keep(self) -> None:
        path = self._path(self._number)
        while not self._done.wait(self._beat):
            with contextlib.suppress(OSError):  # unreachable for now: another run waits for more than one beat
                if not self._is_remote:
                    os.utime(path)  # the file server's time
                elif path.exists():
                    path.write_text(self._text())

    def _wait_until_expired(self, number: int, holder: LeaseHolder, say: Callable[[str], None]) -> None:
        """Returns once the holder is dead; raises BadInput when it is alive."""
        gone = holder.has_exited()
        if gone is None:
            say(f'{self._workdir} is held by {holder}: waiting for a sign of life, {self._timeout:.0f} s at most.')
        silent, watched, sign = self._age(number), 0.0, self._sign(number)
        while gone is None:
            if watched >= 2 * self._beat and max(silent, watched) >= self._timeout:
                return
            time.sleep(self._beat / 5)
            watched, silent = watched + self._beat / 5, silent + self._beat / 5
            if self._sign(number) != sign:
                gone = False
        if not gone:
            raise BadInput(
                f'--workdir={self._workdir}',
                f'is in use by {holder}',
                'one run in a workdir',
                'wait for it, stop it (kill saves first), or name another --workdir',
            )

    def _sign(self, number: int) -> tuple:
        """A value that changes whenever the holder gives a sign of life or is succeeded."""
        newest, holder = self._newest()
        with contextlib.suppress(OSError):
            return newest, holder, modified_at(self._path(number))
        return newest, holder

    def _age(self, number: int) -> float:
        """Seconds since the last sign of life by the file server's clock; 0 if unknown."""
        probe = self._directory / f'.{self._owner.token}'
        with contextlib.suppress(OSError):
            probe.write_text('')
            try:
                return max(modified_at(probe) - modified_at(self._path(number)), 0.0)
            finally:
                probe.unlink()
        return 0.0


def holder_of(workdir: str) -> str:
    """Who holds a workdir, as far as its files say at once; '' if nobody seems to."""
    lease = Lease(workdir)
    number, holder = lease._newest()
    if holder is None or holder.has_exited() or lease._is_copied(number, holder):
        return ''
    if holder.has_exited() is None:
        with contextlib.suppress(OSError):
            if abs(time.time() - modified_at(lease._path(number))) > lease._timeout:
                return ''
    return str(holder)


def _create_exclusively(path: epath.Path, text: str) -> bool:
    """Writes a file that does not exist yet; False if it does. Until it is whole it counts as a silent owner's."""
    try:
        with open(path, 'x') as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


def _this_machine() -> str:
    """Boot id and pid namespace; '' if unknown (not Linux)."""
    try:
        return f'{_BOOT_ID.read_text().strip()} {os.readlink("/proc/self/ns/pid")}'
    except OSError:
        return ''


def _start_of(pid: int) -> tuple[int | None, str]:
    """When a process was started (clock ticks since boot) and its state; (None, '') if it does not exist."""
    try:
        fields = Path(f'/proc/{pid}/stat').read_text().rpartition(') ')[2].split()
    except OSError:
        return None, ''
    return int(fields[19]), fields[0]
