"""The index of windows is the same whatever the block size, with concurrent builders, and in any directory."""

import concurrent.futures
import dataclasses
import errno
import os
import shutil
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from bert_jax.config import Data
from bert_jax.data import windows
from bert_jax.errors import BadInput
from tests.support.corpora import MemorySplit, plan_of, random_split


def _assert_equal(first: windows.WindowIndex, second: windows.WindowIndex) -> None:
    for field in dataclasses.fields(windows.WindowIndex):
        a, b = getattr(first, field.name), getattr(second, field.name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b, err_msg=field.name)


@pytest.mark.parametrize('pairing, packing', [('nsp', False), ('sop', True), ('none', True), ('none', False)])
def test_index_does_not_depend_on_the_block_size(monkeypatch, pairing: str, packing: bool) -> None:
    split, data = random_split(3, longest=90), Data(sequence_length=48, pairing=pairing, packing=packing)
    whole = plan_of(split, data)
    for size in (1, 40, 333):
        monkeypatch.setattr(windows, '_SENTENCES_AT_ONCE', size)
        _assert_equal(plan_of(split, data), whole)


def test_documents_are_ordered_by_length(monkeypatch) -> None:
    split = random_split(1, num_documents=300, longest=6)
    monkeypatch.setattr(windows, '_SENTENCES_AT_ONCE', 50)
    plan = plan_of(split, Data(sequence_length=48))
    lengths = np.diff(split.sentences[split.documents])
    np.testing.assert_array_equal(plan.by_length, sorted(range(300), key=lambda i: (-min(lengths[i], 45), i)))
    assert plan.num_holding.tolist() == [int((lengths >= n).sum()) for n in range(46)]


def test_memory_does_not_grow_with_the_corpus(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(windows, '_SENTENCES_AT_ONCE', 1000)
    monkeypatch.setattr(windows, 'WINDOWS_IN_BLOCK', 1000)
    peaks = []
    for count in (20_000, 400_000):
        split = MemorySplit(np.arange(0, 20 * count + 1, 20), np.arange(0, count + 1, 10))
        with tempfile.TemporaryDirectory(dir=tmp_path) as name:
            tracemalloc.start()
            windows.build_windows(split, Data(sequence_length=64), Path(name))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + 100_000, peaks


def test_concurrent_processes_end_with_one_index(tmp_path) -> None:
    split, data = random_split(0), Data(sequence_length=48)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        plans = list(pool.map(lambda _: windows.load_windows(str(tmp_path), 'train', split, data), range(4)))
    for plan in plans:
        _assert_equal(plan, plans[0])
    assert len(list((tmp_path / 'plans').iterdir())) == 1


def test_leftovers_of_killed_builders_are_removed_after_a_day(tmp_path) -> None:
    windows.load_windows(str(tmp_path), 'train', random_split(0), Data(sequence_length=48))
    [plan] = (tmp_path / 'plans').iterdir()
    old, new = (plan.with_name(f'.{plan.name}.{number:012x}.partial') for number in range(2))
    for path, age in ((old, 90_000), (new, 0)):
        path.mkdir()
        (path / 'rows.npy').touch()
        for each in (path / 'rows.npy', path):
            os.utime(each, (time.time() - age,) * 2)
    shutil.rmtree(plan)
    windows.load_windows(str(tmp_path), 'train', random_split(0), Data(sequence_length=48))
    assert {*(tmp_path / 'plans').iterdir()} == {plan, new}


@pytest.mark.parametrize('number', [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_unwritable_corpus_is_indexed_elsewhere_but_full_disk_reported(tmp_path, monkeypatch, number: int) -> None:
    split, data = random_split(0), Data(sequence_length=48)
    expected = plan_of(split, data)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, 'no')

    if number == errno.ENOSPC:
        monkeypatch.setattr(windows, 'build_windows', refuse)
        with pytest.raises(BadInput, match='cannot store the index of windows: no'):
            windows.load_windows(str(tmp_path), 'train', split, data)
        assert not list((tmp_path / 'plans').iterdir())
    else:
        monkeypatch.setattr(windows, 'new_directory', refuse)
        _assert_equal(windows.load_windows(str(tmp_path), 'train', split, data), expected)
        assert not list(tmp_path.iterdir())
