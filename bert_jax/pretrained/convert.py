"""Converts a model from elsewhere to a workdir. Runs start from it with `config.init`."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
from etils import epath
from flax import nnx

from bert_jax.config import Config, Data, Train
from bert_jax.config import Mesh as MeshConfig
from bert_jax.console import say
from bert_jax.errors import BadInput
from bert_jax.files import is_local, new_directory
from bert_jax.model.family import num_parameters
from bert_jax.pretrained import google
from bert_jax.pretrained.initialize import hash_weights
from bert_jax.pretrained.load import Pretrained, from_tensors, load_pretrained
from bert_jax.runtime.mesh import make_mesh
from bert_jax.text.tokenizer import load_tokenizer
from bert_jax.train.program import build_program
from bert_jax.workdir import identity
from bert_jax.workdir.checkpoint import Checkpoints


def import_model(source: str, workdir: str, data: Data | None = None) -> dict[str, Any]:
    """Converts a Hugging Face directory or an original checkpoint to a workdir with a checkpoint of step 0.

    Everything is read and checked first; the workdir gets its name when all of it is written.

    Args:
      data: the data settings to record, for `evaluate`; the corpus must have the same tokenizer.

    Returns:
      `family`, `parameters`, `vocab_size` (tokens), `weights` (their hash), `unused_rows` (of the word embeddings,
      beyond the tokens) and `untrained_heads` (absent in the source, initialized at random).

    Raises:
      BadInput: if the source is of an unsupported kind or damaged, or the workdir exists.
    """
    target = epath.Path(os.path.realpath(workdir) if is_local(workdir) else workdir)  # where a link points to
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise _is_taken(workdir)
    model = read_source(source)
    data = data or Data()
    data = dataclasses.replace(data, sequence_length=min(data.sequence_length, model.config.max_positions))
    if not model.config.LEARNS_PAIRS:
        data = dataclasses.replace(data, pairing='none')
    config = Config(model=model.config, data=data)
    for note in model.notes():
        say(f'{source}: {note}')
    weights = hash_weights(model)
    try:
        with new_directory(target, existing='refuse') as temporary:
            _write(temporary, config, model, weights)
    except FileExistsError:
        raise _is_taken(workdir) from None
    vocab_size = model.tokenizer.vocab_size
    return {
        'family': model.config.family,
        'parameters': num_parameters(model.config, vocab_size),
        'vocab_size': vocab_size,
        'weights': weights,
        'unused_rows': model.unused_rows,
        'untrained_heads': list(model.provenance.untrained_heads),
    }


def _is_taken(workdir: str) -> BadInput:
    return BadInput(f'--workdir={workdir}', 'exists', 'a new directory', 'choose another --workdir')


def _write(workdir: epath.Path, config: Config, model: Pretrained, weights: str) -> None:
    """Writes the checkpoint of step 0, then config.json."""
    mesh = make_mesh(MeshConfig(), config.model, Train(), jax.devices()[:1])
    program = build_program(config.model, config.optimizer, config.train, model.tokenizer.vocab_size, mesh)
    checkpoints = Checkpoints(str(workdir))
    checkpoints.save(program.init_state(config.train.seed, nnx.state(model.model, nnx.Param)))
    checkpoints.close()
    fingerprint = {'imported': weights, 'tokenizer': model.tokenizer.hash}
    identity.write(str(workdir), config, model.tokenizer, fingerprint, model.provenance)


def read_source(source: str) -> Pretrained:
    """Loads the model and tokenizer of a Hugging Face directory or an original checkpoint.

    Raises:
      BadInput: names the file, and the tensors that do not fit; or `source` is a workdir.
    """
    path = Path(source)
    if identity.is_workdir(source):
        raise BadInput(f'--from={source}', 'is a workdir already', 'a Hugging Face directory or an original checkpoint')
    if not google.is_checkpoint(path):
        return load_pretrained(source)
    file, tensors, model = google.read_checkpoint(path)
    return from_tensors(path, file, tensors, model, load_tokenizer(path))
