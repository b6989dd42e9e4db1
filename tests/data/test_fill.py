"""The corpus alone decides how many sequences share a row, and suggested settings fill rows as predicted."""

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bert_jax import config
from bert_jax.__main__ import main
from bert_jax.cli import plan
from bert_jax.cli.commands import COMMANDS
from bert_jax.cli.flags import parse
from bert_jax.config import Config, Data
from bert_jax.data import windows
from bert_jax.data.batches import CorpusStream
from bert_jax.data.fill import fill_of, num_sequences, resolve_max_sequences
from bert_jax.data.streams import open_streams
from bert_jax.data.windows import num_special_tokens, sample_lengths
from bert_jax.sweep.launch import check_workdirs
from bert_jax.sweep.runs import Run
from bert_jax.text.corpus import load_corpus
from bert_jax.workdir import identity
from tests.support.configs import as_config, as_flags, prepared
from tests.support.corpora import MemorySplit, corpus_of, plan_of, random_split

TITLES = Data(sequence_length=128, pairing='none', packing=True)


def split_of(num_documents: int, shortest: int, longest: int) -> MemorySplit:
    """Returns a split whose documents have one sentence each."""
    lengths = np.random.default_rng(0).integers(shortest, longest + 1, num_documents)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    return MemorySplit(bounds, np.arange(num_documents + 1))


def share_of_plan(split: MemorySplit, data: Data) -> float:
    """Returns the fraction of positions that hold tokens in the planned rows."""
    planned = plan_of(split, data)
    targets = planned.target + num_special_tokens(data)
    lengths = np.array(config.row_lengths(data))
    if len(lengths) > 1:
        return float(targets.sum() / lengths[np.searchsorted(lengths, targets)].sum())
    return float(targets.sum() / (planned.num_rows * data.sequence_length))


@pytest.mark.parametrize(
    'split, data',
    [
        (split_of(3000, 2, 5), TITLES),
        (split_of(3000, 10, 25), TITLES),
        (split_of(1000, 60, 100), dataclasses.replace(TITLES, sequence_length=512)),
        (random_split(3, 300), Data(sequence_length=64, pairing='sop', packing=True)),
    ],
)
def test_chosen_number_of_sequences_fills_rows_best(split: MemorySplit, data: Data) -> None:
    chosen = num_sequences(sample_lengths(split, data), data)
    shares = {
        e: share_of_plan(split, dataclasses.replace(data, max_sequences=e)) for e in (chosen // 2, chosen, 65_536)
    }
    assert shares[chosen] > shares[65_536] - 0.01
    assert chosen == 4 or shares[chosen // 2] < shares[65_536] - 0.01
    assert num_sequences(sample_lengths(split, data), data) == chosen


def test_more_than_four_short_titles_share_a_row() -> None:
    split = split_of(3000, 2, 8)
    old, new = (fill_of(split, dataclasses.replace(TITLES, max_sequences=e)) for e in (-1, 0))
    assert old is not None and new is not None
    assert old.max_sequences == 4 and old.share < 0.3 and '--config.data.max_sequences=0' in old.better
    assert new.max_sequences >= 16 and new.share > 0.8
    assert f'up to {new.max_sequences} sequences in each' in str(new)


@pytest.mark.parametrize(
    'data',
    [
        Data(sequence_length=128, pairing='none'),
        Data(sequence_length=128, pairing='none', bucket_lengths=(96,)),
        dataclasses.replace(TITLES, max_sequences=4),
    ],
)
def test_suggested_settings_are_valid_and_fill_rows_as_predicted(data: Data) -> None:
    split = split_of(3000, 2, 8)
    found = fill_of(split, data)
    assert found is not None and len(found.better) >= 2
    assert found.share == pytest.approx(share_of_plan(split, data))
    for flags, share in found.better.items():
        own = {'sequence_length': data.sequence_length, 'pairing': data.pairing, 'packing': data.packing}
        own |= {'max_sequences': data.max_sequences, 'bucket_lengths': data.bucket_lengths}
        given = as_flags({f'data.{name}': value for name, value in own.items() if f'.{name}=' not in flags})
        values, _ = parse(COMMANDS['prepare'], [*given, *shlex.split(flags)])
        changed = config.resolve(values.config).data
        settled = resolve_max_sequences(Config(data=changed), split).data
        assert share_of_plan(split, settled) == pytest.approx(share, abs=1e-9), flags


def test_large_split_is_sampled_evenly_and_deterministically(monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = split_of(2000, 2, 5), split_of(2000, 40, 60)
    sentences = np.concatenate([short.sentences, short.num_tokens + long.sentences[1:]])
    split = MemorySplit(sentences, np.arange(4001))
    whole = sample_lengths(split, TITLES)
    monkeypatch.setattr(windows, '_SENTENCES_AT_ONCE', 20)
    sampled = [sample_lengths(split, TITLES) for _ in range(2)]
    assert (sampled[0] == sampled[1]).all() and 16 * 20 <= sampled[0].sum() < 400 < whole.sum()
    assert sampled[0][:10].sum() / sampled[0].sum() == pytest.approx(0.5, abs=0.05)


def test_stream_chooses_the_same_number_as_a_run(tmp_path: Path) -> None:
    corpus = corpus_of(split_of(3000, 2, 8), str(tmp_path))
    stream = CorpusStream(corpus, TITLES, 'train', batch_size=4, seed=0)
    assert stream.data == resolve_max_sequences(Config(data=TITLES), corpus.train).data
    assert stream.batch(0).cls_positions.shape == (4, stream.data.max_sequences)


def test_phases_share_the_largest_number_of_sequences() -> None:
    phases = tuple(config.Phase(sequence_length=length) for length in (32, 128))
    run, split = Config(data=TITLES, phases=phases), split_of(3000, 2, 8)
    each = [num_sequences(sample_lengths(split, phase.data), phase.data) for phase in run.in_phases]
    assert resolve_max_sequences(run, split).data.max_sequences == max(each) > min(each)


# --- Workdirs. ---


def _recorded(directory: Path, values: dict[str, Any]) -> Config:
    """Writes the workdir of a run as `train` does; returns the config of the run."""
    streams = open_streams(as_config(values))
    identity.write(
        str(directory / 'run'), streams.config, streams.tokenizer, identity.fingerprint(streams.config, streams)
    )
    return streams.config


def test_number_recorded_in_a_workdir_is_used_on_resume(tmp_path: Path) -> None:
    values = prepared(tmp_path, data__packing=True)
    run = _recorded(tmp_path, values)
    assert run.data.max_sequences >= 4
    for name in ('data.max_sequences', 'data.packing'):  # without a recorded number, it is chosen again
        begun = identity.with_recorded_defaults(as_config(values), str(tmp_path / 'run'), [name])
        assert (begun.data.max_sequences == 0) == (name == 'data.max_sequences')
    loaded = identity.load_config(str(tmp_path / 'run'))
    assert loaded.data.max_sequences == run.data.max_sequences
    resumed = identity.with_recorded_defaults(as_config(values), str(tmp_path / 'run'), quiet=True)
    assert identity.fingerprint(open_streams(resumed).config, open_streams(resumed)) == identity.load_fingerprint(
        str(tmp_path / 'run')
    )


@pytest.mark.parametrize('packing', [True, False])
def test_workdir_of_an_earlier_version_keeps_its_rule(
    tmp_path: Path, capsys: pytest.CaptureFixture, packing: bool
) -> None:
    values = prepared(tmp_path, data__packing=packing)
    _recorded(tmp_path, values | {'data.max_sequences': -1})  # what earlier versions recorded
    resumed = identity.with_recorded_defaults(as_config(values), str(tmp_path / 'run'))
    assert not capsys.readouterr().err  # the user need not know
    streams = open_streams(resumed)
    assert streams.config.data.max_sequences == -1
    assert identity.fingerprint(streams.config, streams) == identity.load_fingerprint(str(tmp_path / 'run'))
    assert streams.train[0].batch(0).cls_positions.shape[1] == (4 if packing else 1)


def test_repeated_sweep_accepts_its_own_workdirs(tmp_path: Path) -> None:
    for packing in (True, False):
        directory = tmp_path / str(packing)
        directory.mkdir()
        values = prepared(directory, data__packing=packing)
        _recorded(directory, values)
        check_workdirs((Run('run', '', 'base', {}, {}, {}, as_config(values), str(directory / 'run')),))


# --- Commands. ---


def test_prepare_and_plan_use_the_number_for_the_corpus(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    values = prepared(tmp_path, data__packing=True)
    run = as_config(values)
    assert main(['bert_jax', 'prepare', *as_flags(values), '--json']) == 0
    [found] = json.loads(capsys.readouterr().out)['fill']
    expected = resolve_max_sequences(run, load_corpus(run.data.corpus).train)
    assert found['max_sequences'] == expected.data.max_sequences and found['share'] > 0.8
    assert plan.with_sequences(run) == expected and not capsys.readouterr().err
    elsewhere = dataclasses.replace(run, data=dataclasses.replace(run.data, corpus=str(tmp_path / 'none')))
    assert plan.with_sequences(elsewhere) == elsewhere
    assert 'assuming up to 4 sequences in rows of 32 positions' in capsys.readouterr().err
