"""Every flipped bit, truncation and deletion in a checkpoint or corpus is detected, and the file is named."""

import contextlib
import hashlib
import io
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import config
from bert_jax.data.streams import open_streams
from bert_jax.errors import BadInput
from bert_jax.text.prepare import prepare
from bert_jax.train.state import TrainState
from bert_jax.workdir.checkpoint import Checkpoints
from tests.soak.harness import Row, random_numbers, tries
from tests.support.texts import write_text


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob('*') if path.is_file())


def _damage(path: Path, rng: np.random.Generator) -> str:
    """Damages a file on disk; returns the kind of damage."""
    content = bytearray(path.read_bytes())
    kind = rng.choice(['bit', 'truncation', 'deletion', 'growth'], p=[0.7, 0.15, 0.1, 0.05])
    if kind == 'deletion' or not content:
        path.unlink()
        return 'deletion'
    if kind == 'bit':
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    elif kind == 'truncation':
        del content[rng.integers(len(content)) :]
    else:
        content += rng.bytes(int(rng.integers(1, 100)))
    path.write_bytes(content)
    return kind


def _state(step: int) -> TrainState:
    rng = np.random.default_rng(step)
    params = {'kernel': jnp.asarray(rng.standard_normal((64, 32)), jnp.float32), 'bias': jnp.zeros(32)}
    return TrainState(jnp.int32(step), params, {'mean': jax.tree.map(lambda leaf: leaf + 1, params)})


def _restores(checkpoints: Checkpoints, step: int) -> bool:
    shapes, here = jax.eval_shape(lambda: _state(0)), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    restored = checkpoints.restore(shapes, jax.tree.map(lambda _: here, shapes), step)
    pairs = zip(jax.tree.leaves(restored), jax.tree.leaves(_state(step)), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def _damage_checkpoints(directory: Path, count: int) -> Row:
    """Damages the newest of two checkpoints `count` times."""
    row = Row('damaged file in the newest checkpoint (flipped bit, truncated, deleted, extended)')
    rng = random_numbers('checkpoints')
    pristine = Checkpoints(str(directory / 'pristine'), keep=2)
    for step in (10, 20):
        pristine.save(_state(step))
    pristine.close()
    checkpoints = Checkpoints(str(directory / 'run'))
    for attempt in range(count):
        shutil.rmtree(directory / 'run', ignore_errors=True)
        shutil.copytree(directory / 'pristine', directory / 'run')
        path = rng.choice(_files(directory / 'run' / 'checkpoints' / '20'))
        _damage(path, rng)
        with contextlib.redirect_stderr(io.StringIO()) as output:
            began = time.monotonic()
            used = checkpoints.set_aside_damaged()
            row.seconds.append(time.monotonic() - began)
        if used == 20:  # white space in the manifest
            assert path.name == 'manifest.json' and _restores(checkpoints, 20)
            row.outcomes.append('restored as saved (only white space changed)')
        else:
            assert used == 10 and path.name in output.getvalue()
            assert (directory / 'run' / 'checkpoints' / 'damaged-20').is_dir()
            assert attempt % 10 or _restores(checkpoints, 10)
            row.outcomes.append('file named, checkpoint renamed, earlier checkpoint used')
    checkpoints.close()
    return row


def _rows(run: config.Config) -> str:
    """Returns a digest of everything a run reads: one epoch of each split, and the token counts."""
    streams, digest = open_streams(run, progress=False), hashlib.sha256()
    for stream in (*streams.train, *streams.validation):
        for step in range(len(stream)):
            for array in stream.batch(step):
                digest.update(array.tobytes())
    digest.update(streams.unigram_counts().tobytes())
    digest.update(f'{streams.content_hash} {streams.tokenizer.hash}'.encode())
    return digest.hexdigest()


def _damage_corpus(directory: Path, count: int) -> Row:
    """Damages a corpus `count` times."""
    row = Row('damaged file in a corpus (flipped bit, truncated, deleted, extended)')
    rng = random_numbers('corpus')
    directory.mkdir()
    write_text(directory / 'text.txt', num_documents=24)
    fields = {
        'data': {'source': f'text:{directory}/text.txt', 'corpus': f'{directory}/corpus', 'sequence_length': 32},
        'tokenizer': {'vocab_size': 500},
        'train': {'global_batch_size': 64},
    }
    fields['data'] |= {'validation_fraction': 0.3}
    run = config.resolve(fields)
    prepare(run.data, run.tokenizer, progress=False)
    expected = _rows(run)
    shutil.copytree(directory / 'corpus', directory / 'pristine')
    for _ in range(count):
        shutil.rmtree(directory / 'corpus')
        shutil.copytree(directory / 'pristine', directory / 'corpus')
        files = _files(directory / 'corpus')
        is_of_plan = rng.random() < 0.25
        path = rng.choice([path for path in files if ('plans' in path.parts) == is_of_plan])
        kind = _damage(path, rng)
        with contextlib.redirect_stderr(io.StringIO()) as output:
            try:
                rows = _rows(run)
            except BadInput as error:
                name = path.name if path.parent.name != 'tokenizer' else 'tokenizer'
                assert name in str(error) or 'is not a corpus' in str(error), (path, kind, error)
                row.outcomes.append('rejected, file named')
                continue
        assert rows == expected, (path, kind)
        is_rebuilt = 'rebuilding it' in output.getvalue()
        row.outcomes.append('plan named and rebuilt' if is_rebuilt else 'same rows (the byte is not read)')
    return row


def test_sampled_damage_is_detected(tmp_path: Path) -> None:
    _damage_checkpoints(tmp_path, 25)
    _damage_corpus(tmp_path / 'corpus', 25)


@pytest.mark.soak
def test_all_damage_to_a_checkpoint_is_detected(tmp_path: Path) -> None:
    print(_damage_checkpoints(tmp_path, tries(3000)))


@pytest.mark.soak
def test_all_damage_to_a_corpus_is_detected(tmp_path: Path) -> None:
    print(_damage_corpus(tmp_path / 'corpus', tries(3000)))
