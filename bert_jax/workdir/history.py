"""WORKDIR/history.jsonl: what happened to a run. Lines are only added, also when the run goes back.

A JSON object a line: `event`, `step`, `time` (UTC), and with

    start    every start: step is that of the checkpoint that it goes on from (0: a new run); `lost_steps`, logged
             before and made again; `devices`, `device_kind`, `platform`, `processes`, `hosts`, `mesh`, `versions`
    back     the numbers went wrong: `from` the step that was reached back to step; `why`
    stop     saved and ended before its last step; `why`
    finish   at its last step
"""

import datetime
import json
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from bert_jax.console import say
from bert_jax.runtime import processes
from bert_jax.workdir import identity


class History:
    """Adds to the history of a workdir's run; process 0 alone writes.

    A disk that cannot be written is told and does not end the run.
    """

    def __init__(self, workdir: str):
        self._path = epath.Path(workdir) / 'history.jsonl'

    def add(self, event: str, step: int, **values: Any) -> None:
        """Adds a line; see the top of this file."""
        if not processes.is_first():
            return
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
        line = json.dumps({'event': event, 'step': step, 'time': now} | values) + '\n'
        try:
            torn = self._path.exists() and not self._path.read_bytes().endswith(b'\n')  # by a kill or a full disk
            with self._path.open('a') as file:
                file.write('\n' * torn + line)
        except OSError as error:
            say(f'{self._path} could not be written ({error.strerror})')


def hardware(mesh: Mesh) -> dict[str, Any]:
    """What a run runs on, for its `start`; to be called by every process. Hosts are counted, not named."""
    devices = jax.devices()
    return {
        'devices': len(devices),
        'device_kind': devices[0].device_kind,
        'platform': devices[0].platform,
        'processes': jax.process_count(),
        'hosts': processes.num_hosts(),
        'mesh': dict(mesh.shape),
        'versions': identity.versions(),
    }
