"""WORKDIR/history.jsonl: the events of a run. Lines are only appended, even when the run rolls back.

Each line is a JSON object with `event`, `step` and `time` (UTC). The events, with their other keys:

    start    every start; `step` is the step it resumes from, 0 for a new run; `lost_steps`, steps that were logged
             before and are repeated; `devices`, `device_kind`, `platform`, `processes`, `hosts`, `mesh`, `versions`
    back     a rollback to `step`; `from`, the step that had been reached; `why`
    stop     the run saved and ended before its last step; `why`
    finish   the run reached its last step
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
    """The history of a workdir; only process 0 writes to it.

    A write that fails is reported and does not end the run.
    """

    def __init__(self, workdir: str):
        self._path = epath.Path(workdir) / 'history.jsonl'

    def add(self, event: str, step: int, **values: Any) -> None:
        """Appends a line; the module docstring lists events and values."""
        if not processes.is_process_zero():
            return
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
        line = json.dumps({'event': event, 'step': step, 'time': now} | values) + '\n'
        try:
            # A kill or a full disk may have cut the last line short.
            is_cut = self._path.exists() and not self._path.read_bytes().endswith(b'\n')
            with self._path.open('a') as file:
                file.write('\n' * is_cut + line)
        except OSError as error:
            say(f'{self._path} could not be written ({error.strerror})')


def hardware(mesh: Mesh) -> dict[str, Any]:
    """Returns the hardware and versions for a `start` event. Every process must call this. Hosts are not named."""
    devices = jax.devices()
    return {
        'devices': len(devices),
        'device_kind': devices[0].device_kind,
        'platform': devices[0].platform,
        'processes': jax.process_count(),
        'hosts': processes.num_hosts(),
        'mesh': dict(mesh.shape),
        'versions': identity.package_versions(),
    }
