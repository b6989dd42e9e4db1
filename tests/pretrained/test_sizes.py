"""Sizes that do not fit the stored bytes are rejected at once, without allocating memory for them."""

import dataclasses
import json
import time
import tracemalloc
from pathlib import Path

import jax.numpy as jnp
import pytest

from bert_jax import config
from bert_jax.config import Config
from bert_jax.errors import BadInput
from bert_jax.pretrained.load import load_pretrained
from bert_jax.pretrained.safetensors_files import read_tensors
from bert_jax.text.corpus import load_corpus, read_manifest
from bert_jax.text.prepare import prepare
from bert_jax.train.state import TrainState
from bert_jax.workdir import identity, orbax_files
from bert_jax.workdir.checkpoint import Checkpoints
from tests.support.configs import as_config, tiny_run
from tests.support.models import read_tokenizer, write_model
from tests.support.texts import write_text

HUGE = {
    'num_layers': 1_000_000,
    'hidden_size': 2**30,
    'intermediate_size': 2**31 - 1,
    'max_positions': 2**31 - 1,
}
KEYS = {
    'num_layers': 'num_hidden_layers',
    'hidden_size': 'hidden_size',
    'intermediate_size': 'intermediate_size',
    'max_positions': 'max_position_embeddings',
}


def _assert_rejected(directory: Path, words: str) -> None:
    tracemalloc.start()
    start = time.monotonic()
    try:
        with pytest.raises(BadInput, match=words):
            load_pretrained(str(directory))
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()
    assert time.monotonic() - start < 30


@pytest.mark.parametrize('field', [*HUGE, 'vocab_size'])
def test_sizes_of_a_model_directory_must_fit_its_weights(tmp_path: Path, field: str) -> None:
    directory = write_model(tmp_path / 'model')
    content = json.loads((directory / 'config.json').read_text())
    content |= {KEYS.get(field, field): HUGE.get(field, 2**31 - 1)}
    (directory / 'config.json').write_text(json.dumps(content))
    _assert_rejected(directory, 'model: its config describes an encoder of')


@pytest.mark.parametrize('field', HUGE)
def test_sizes_of_a_workdir_must_fit_its_checkpoint(tmp_path: Path, field: str) -> None:
    tokenizer, workdir = read_tokenizer(tmp_path), tmp_path / 'run'
    huge = dataclasses.replace(config.Bert(num_heads=2), **{field: HUGE[field]})
    identity.write(str(workdir), dataclasses.replace(Config(), model=huge), tokenizer, {})
    with Checkpoints(str(workdir)) as checkpoints:
        checkpoints.save(TrainState(jnp.int32(1), {'kernel': jnp.zeros((8, 4))}, {'mean': jnp.zeros(8)}))
    _assert_rejected(workdir, 'run: its config describes an encoder of')


def test_invalid_head_count_of_huge_model_is_rejected_quickly() -> None:
    start = time.monotonic()
    with pytest.raises(BadInput, match='a divisor of 2147483647, for example 1, 2147483647'):
        config.check_model(dataclasses.replace(config.Bert(), hidden_size=2**31 - 1))
    with pytest.raises(BadInput, match='a divisor of 100, for example 4, 5, 10'):
        config.check_model(dataclasses.replace(config.Bert(), hidden_size=100, num_heads=11))
    assert time.monotonic() - start < 5


def test_checkpoint_that_expands_too_much_is_not_restored(tmp_path: Path, monkeypatch) -> None:
    with Checkpoints(str(tmp_path)) as checkpoints:
        checkpoints.save(TrainState(jnp.int32(1), {'kernel': jnp.zeros((1000, 4000))}, {'mean': jnp.zeros(8)}))
        checkpoints.wait()
        assert checkpoints.damage(1) == ''  # 16 MB are below the limit
        monkeypatch.setattr(orbax_files, '_ALWAYS_ALLOWED_BYTES', 1 << 20)
        assert 'unpack to arrays of 16,000,0' in checkpoints.damage(1)


@pytest.mark.parametrize('count', ['tokens', 'sentences', 'documents'])
def test_counts_of_a_manifest_must_fit_its_files(tmp_path: Path, count: str) -> None:
    write_text(tmp_path / 'text.txt')
    settings = as_config(tiny_run(tmp_path))
    prepare(settings.data, settings.tokenizer, progress=False)
    manifest = read_manifest(tmp_path / 'corpus')
    assert manifest is not None
    del manifest['checksum']  # as written by versions without checksums
    manifest['splits']['train'][count] = 10**18
    manifest['tokens_per_shard'] = min(manifest['tokens_per_shard'], 1000)
    (tmp_path / 'corpus' / 'manifest.json').write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match=r'manifest.json: is damaged|sentences.npy|documents.npy|tokens-00000.npy'):
        load_corpus(tmp_path / 'corpus')


def _tensor(dtype: str, shape: list[int], num_bytes: int) -> dict[str, dict]:
    return {'a': {'dtype': dtype, 'shape': shape, 'data_offsets': [0, num_bytes]}}


@pytest.mark.parametrize(
    'header',
    [
        _tensor('F32', [10**18], 64),
        _tensor('F32', [2**63, 2**63], 64),
        _tensor('F32', [0, 2**62], 0),
        _tensor('F32', [-1], 64),
        _tensor('F32', [16], 10**15),
        _tensor('F32', [1] * 100 + [16], 64),
        _tensor('F8_E4M3', [64], 64),
        _tensor('F4', [128], 64),
        [],
    ],
    ids=str,
)
def test_shapes_of_a_safetensors_header_must_fit_the_file(tmp_path: Path, header: object) -> None:
    content = json.dumps(header).encode()
    data = bytes(0 if '"data_offsets": [0, 0]' in content.decode() else 64)
    (tmp_path / 'model.safetensors').write_bytes(len(content).to_bytes(8, 'little') + content + data)
    with pytest.raises(BadInput, match='model.safetensors: has .* bytes and cannot be read'):
        read_tensors(tmp_path)
