"""Where the processes of a run post their heartbeats and verdicts: the key-value store that process 0 serves.

bert_jax/beats/RANK      the newest heartbeat of a process
bert_jax/verdicts/RANK   why a process ends: its own verdict, or that of another process, which it has read
"""

from typing import Any

import jax

from bert_jax.runtime import processes
from bert_jax.runtime.stall_detector import Heartbeat, ShutdownReason

_BEATS = 'bert_jax/beats'
_VERDICTS = 'bert_jax/verdicts'


class HeartbeatStore:
    """What all processes post and read. Methods raise `JaxRuntimeError` when process 0 does not answer.

    Attributes:
      rank, num_processes: of this process, and of the run.
    """

    def __init__(self, store: Any, rank: int, num_processes: int) -> None:
        """Args: store, the client of a key-value store (`processes.key_value_store`)."""
        self._store = store
        self.rank, self.num_processes = rank, num_processes

    @classmethod
    def of_run(cls) -> 'HeartbeatStore | None':
        """The board of this run; None when this process is alone."""
        store = processes.key_value_store()
        return None if store is None else cls(store, jax.process_index(), jax.process_count())

    def post_beat(self, beat: Heartbeat) -> None:
        """Replaces this process's heartbeat."""
        self._store.key_value_set(f'{_BEATS}/{self.rank}', beat.to_json(), allow_overwrite=True)

    def beats(self) -> dict[int, Heartbeat]:
        """{rank: its newest heartbeat}."""
        return {_rank_of(key): Heartbeat.from_json(text) for key, text in self._store.key_value_dir_get(_BEATS)}

    def beat_of_first(self) -> Heartbeat:
        """The newest heartbeat of process 0."""
        return Heartbeat.from_json(self._store.key_value_try_get(f'{_BEATS}/0'))

    def post_verdict(self, verdict: ShutdownReason) -> None:
        """Replaces this process's verdict."""
        self._store.key_value_set(f'{_VERDICTS}/{self.rank}', verdict.to_json(), allow_overwrite=True)

    def verdicts(self) -> dict[int, ShutdownReason]:
        """{rank: its verdict}, of those that have posted one."""
        return {_rank_of(key): ShutdownReason.from_json(text) for key, text in self._store.key_value_dir_get(_VERDICTS)}


def _rank_of(key: str) -> int:
    return int(key.rpartition('/')[2])
