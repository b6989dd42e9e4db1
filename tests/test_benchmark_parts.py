"""Results of benchmarks are kept with the flags that they were measured with."""

import argparse
from pathlib import Path

import pytest

from benchmarks.parts import Parts


def test_benchmark_is_not_continued_with_other_flags(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    parts.keep_settings(argparse.Namespace(output=tmp_path, minutes=20.0, seeds=1), 'seeds')
    parts.keep_settings(argparse.Namespace(output=tmp_path, minutes=20.0, seeds=3), 'seeds')
    with pytest.raises(SystemExit, match=r'--minutes: 5\.0; the results in .* were measured with 20\.0'):
        parts.keep_settings(argparse.Namespace(output=tmp_path, minutes=5.0, seeds=1), 'seeds')
    assert parts.result('settings') == {'minutes': '20.0'}


def test_flag_added_later_does_not_invalidate_older_results(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    parts.keep_settings(argparse.Namespace(minutes=20.0))
    parts.keep_settings(argparse.Namespace(minutes=20.0, dtype='bfloat16'))
