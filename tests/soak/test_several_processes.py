"""Several processes roll back together and skip the same batches: they end like one process, bit for bit."""

import json
from pathlib import Path

import pytest

from tests.soak.harness import Row, prepare, random_numbers, tries
from tests.support.processes import Group
from tests.support.runs import final_state


@pytest.mark.soak
def test_all_processes_roll_back_together(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    flags = prepare(
        tmp_path,
        train__global_batch_size=16,
        train__steps=40,
        train__reduction='exact',
        train__max_bad_steps=2,
        train__max_rollbacks=10,
    )
    row, rng = Row('non-finite batches, in pairs, with 1, 2 and 4 processes'), random_numbers('several')
    for attempt in range(tries(5)):
        ends, program = [], ('tests.soak.faulty', f'batches:{rng.integers(1 << 30)}:0.1')
        for num_processes in (1, 2, 4):
            workdir = tmp_path / f'{attempt}-{num_processes}'
            group = Group(flags, workdir, num_processes, tmp_path / 'cache', program=program)
            try:
                statuses, _ = group.wait(list(range(num_processes)), 300)
                assert statuses == [0] * num_processes, group.text()
            finally:
                group.kill()
            record = json.loads((workdir / 'checkpoints' / '40' / 'record.json').read_text())
            ends.append((record['rollbacks'], record['passed_over'], record['skipped_updates'], final_state(workdir)))
        assert ends[0] == ends[1] == ends[2]
        rollbacks = f'{ends[0][0]} rollback{"s" if ends[0][0] != 1 else ""}'
        row.outcomes.append(f'{rollbacks}, same final state, bit for bit')
    with capsys.disabled():
        print(row)
