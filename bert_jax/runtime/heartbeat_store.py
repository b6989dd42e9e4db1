"""The key-value store, served by process 0, in which the processes of a run post heartbeats and reasons to shut down.

bert_jax/heartbeats/RANK   the newest heartbeat of a process
bert_jax/shutdowns/RANK    why a process ends: a reason it found itself, or one it read from another process
"""

from typing import Any

import jax

from bert_jax.runtime import processes
from bert_jax.runtime.stall_detector import Heartbeat, ShutdownReason

_HEARTBEATS = 'bert_jax/heartbeats'
_SHUTDOWNS = 'bert_jax/shutdowns'


class HeartbeatStore:
    """One process's access to the store. Methods raise `JaxRuntimeError` when process 0 does not answer.

    Attributes:
      rank: index of this process.
      num_processes: number of processes in the run.
    """

    def __init__(self, client: Any, rank: int, num_processes: int) -> None:
        """Args: client, of a key-value store (`processes.key_value_store`)."""
        self._client = client
        self.rank, self.num_processes = rank, num_processes

    @classmethod
    def for_run(cls) -> 'HeartbeatStore | None':
        """Returns the store of this run, or None if the run has a single process."""
        client = processes.key_value_store()
        return None if client is None else cls(client, jax.process_index(), jax.process_count())

    def post_heartbeat(self, heartbeat: Heartbeat) -> None:
        """Replaces this process's heartbeat."""
        self._client.key_value_set(f'{_HEARTBEATS}/{self.rank}', heartbeat.to_json(), allow_overwrite=True)

    def heartbeats(self) -> dict[int, Heartbeat]:
        """Returns {rank: newest heartbeat}."""
        return {_rank_of(key): Heartbeat.from_json(text) for key, text in self._client.key_value_dir_get(_HEARTBEATS)}

    def heartbeat_of_process_zero(self) -> Heartbeat:
        """Returns the newest heartbeat of process 0."""
        return Heartbeat.from_json(self._client.key_value_try_get(f'{_HEARTBEATS}/0'))

    def post_shutdown(self, reason: ShutdownReason) -> None:
        """Posts why this process ends, replacing an earlier reason."""
        self._client.key_value_set(f'{_SHUTDOWNS}/{self.rank}', reason.to_json(), allow_overwrite=True)

    def shutdowns(self) -> dict[int, ShutdownReason]:
        """Returns {rank: reason} for the processes that have posted one."""
        entries = self._client.key_value_dir_get(_SHUTDOWNS)
        return {_rank_of(key): ShutdownReason.from_json(text) for key, text in entries}


def _rank_of(key: str) -> int:
    return int(key.rpartition('/')[2])
