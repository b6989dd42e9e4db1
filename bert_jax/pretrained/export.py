"""Exports a checkpoint as a Hugging Face directory, after comparing its logits."""

import functools
import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bert_jax import config
from bert_jax.activity import activity
from bert_jax.errors import BadInput
from bert_jax.files import files_below, new_directory
from bert_jax.json_files import read_json
from bert_jax.model.inputs import Inputs
from bert_jax.pretrained import hugging_face
from bert_jax.pretrained.average import load_average
from bert_jax.pretrained.card import model_card
from bert_jax.pretrained.families import hub_of
from bert_jax.pretrained.hub import POOLER
from bert_jax.pretrained.load import Pretrained, load_pretrained
from bert_jax.pretrained.provenance import AveragedCheckpoint
from bert_jax.pretrained.sentences import SentenceSettings, write_settings
from bert_jax.pretrained.sentences_proof import prove_sentences, without_load_report
from bert_jax.workdir import identity

_TOLERANCE = 1e-4
_PROOF = 'proof.json'
_PROOF_ROWS = 4
_PROOF_LENGTH = 32  # tokens of a row, besides the window of local attention
_OUTPUTS = {  # names of the compared outputs in `transformers`, by the end of the name of the class
    'ForPreTraining': ('prediction_logits', 'seq_relationship_logits'),
    'Model': ('last_hidden_state', 'pooler_output'),
    'ForQuestionAnswering': ('start_logits', 'end_logits'),
}


def export(
    workdir: str,
    output: str,
    step: int | None = None,
    card: config.Card | None = None,
    average: Sequence[AveragedCheckpoint] = (),
) -> dict[str, Any]:
    """Writes a directory that `transformers` opens; returns its proof.

    The files are written to a temporary directory beside `output`, read back (by torch and transformers if they are
    installed, else by this package), and their logits on random ids compared with those of the checkpoint; then the
    directory is renamed. Heads that were not trained, such as the pooler and next-sentence head of a run without pairs,
    are left out; if no head was trained, the vectors of the encoder are compared.

    Args:
      card: texts for the model card, instead of the `config.card` of the run.
      average: checkpoints to export the mean of, instead of one of the workdir (`average.parse`).

    Raises:
      BadInput: if `output` exists and is not an export, or the checkpoint does not exist.
    """
    target = check_output(output)
    resolved = identity.load_config(workdir)
    trained = load_average(average) if average else load_pretrained(workdir, step)
    assert trained.step is not None  # because it is loaded from a workdir
    untrained = trained.provenance.untrained_heads
    architecture = hub_of(trained.config).pretraining_class(untrained)
    settings = SentenceSettings(output, max_length=trained.max_length)
    readme = model_card(workdir, resolved, card or resolved.card, trained, settings)

    def fill(directory: Path) -> dict[str, object]:
        averaged: dict[str, object] = {'ema': resolved.train.ema} if resolved.train.ema else {}
        averaged |= {'average': [part.to_json() for part in trained.average]} if trained.average else {}
        return write_files(directory, trained, settings, readme) | averaged

    return publish(target, fill) | {
        'architecture': architecture,
        'positions_trained': trained.max_length,
        'untrained_heads': list(untrained),
    }


def write_files(directory: Path, trained: Pretrained, settings: SentenceSettings, readme: str) -> dict[str, object]:
    """Writes the files of an export without the head of a task, and compares them; returns their proof.

    Args:
      settings: how a text becomes a vector.
      readme: the model card.
    """
    params, tokenizer, hub = nnx.state(trained.model, nnx.Param), trained.tokenizer, hub_of(trained.config)
    untrained, dtypes = trained.provenance.untrained_heads, dict(trained.provenance.dtypes)
    architecture = hub.pretraining_class(untrained)
    hugging_face.write_model(
        directory, params, trained.config, tokenizer, architecture, without=untrained, dtypes=dtypes
    )
    tokenizer.save(directory, trained.max_length, hub.has_token_types)
    write_settings(directory, settings, trained.config.hidden_size)
    (directory / 'README.md').write_text(readme, 'utf-8')
    outputs = functools.partial(_outputs, architecture=architecture)
    with activity('comparing logits'):
        proof = prove(directory, trained, architecture, outputs, lambda: load_pretrained(str(directory)))
        return proof | prove_sentences(directory, trained, settings)


def check_output(output: str) -> Path:
    """Returns the directory to write to, with symbolic links resolved.

    Raises:
      BadInput: if it exists and is not an export, or files of that export have changed since.
    """
    target = Path(os.path.realpath(output))
    if target.is_mount():
        raise BadInput(str(target), 'is a mount point', 'a directory below it', f'--output={output}/export')
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        _not_of_export(target)
    return target


def publish(target: Path, fill: Callable[[Path], dict[str, object]]) -> dict[str, object]:
    """Publishes the files that `fill` writes to a directory, with the proof that it returns.

    Files of an earlier export are replaced; other files in its directory stay.

    Raises:
      BadInput: see `check_output`; or another file has the name of one to be written.
    """
    try:
        with new_directory(target, existing='replace', kept=_not_of_export) as temporary:
            proof = fill(temporary)
            (temporary / _PROOF).write_text(json.dumps(proof, indent=2) + '\n')
    except FileExistsError as error:
        expected = 'no file with this name, which the new export needs'
        raise BadInput(str(error.filename), 'was not written by export', expected, 'move it away') from error
    return proof


def _not_of_export(directory: Path) -> list[str]:
    """Returns the names in the directory of an export that no export wrote; raises BadInput as `check_output` does."""
    names = sorted(path.name for path in directory.iterdir())
    if not names:
        return []
    if not (directory / _PROOF).is_file():
        raise BadInput(str(directory), 'exists and is not an export', 'a new directory', 'choose another --output')
    try:
        written = dict(read_json(directory / _PROOF)['sha256'])
    except (ValueError, KeyError, TypeError):
        expected = 'the file that export wrote, which lists all others'
        raise BadInput(str(directory / _PROOF), 'is damaged', expected, 'choose another --output') from None
    for name in written:
        if (directory / name).is_file() and _sha256(directory / name) != written[name]:
            expected = 'the file that export wrote; export replaces no other files'
            raise BadInput(str(directory / name), 'was changed since it was exported', expected, 'move it away')
    subdirectories = {name.partition('/')[0] for name in written if '/' in name}
    for name in subdirectories & {*names}:
        if added := [each for each in files_below(directory / name) if f'{name}/{each}' not in written]:
            found, expected = 'was not written by export', f'only the files that export wrote in {name}'
            raise BadInput(str(directory / name / added[0]), found, expected, 'move it away')
    return [name for name in names if name not in written and name not in subdirectories and name != _PROOF]


def prove(
    directory: Path,
    trained: Any,
    architecture: str,
    outputs: Callable[[Any, np.ndarray, np.ndarray], list[np.ndarray]],
    read_back: Callable[[], Any],
) -> dict[str, object]:
    """Compares outputs on random ids, and the token ids of random text; raises RuntimeError if they differ.

    Args:
      trained: the model of the checkpoint (its `tokenizer`, `config`, `step`).
      outputs: (model, ids, token types [B, L]) -> the arrays that `architecture` returns, or the first of them.
      read_back: loads the model in the directory, if torch and transformers are not installed.
    """
    vocab_size, has_types = trained.tokenizer.vocab_size, hub_of(trained.config).has_token_types
    # Rows are longer than the window of local attention, so that it is compared too.
    length = min(_PROOF_LENGTH + trained.config.attention_window, trained.config.max_positions)
    ids = np.random.default_rng(0).integers(0, vocab_size, (_PROOF_ROWS, length), dtype=np.int32)
    types = np.broadcast_to((np.arange(length) >= length // 2) & has_types, ids.shape).astype(np.int32)
    by_torch = all(importlib.util.find_spec(name) for name in ('torch', 'transformers'))
    texts = [trained.tokenizer.decode(row) for row in ids]
    ours = outputs(trained, ids, types)
    suffix = architecture.removeprefix(hub_of(trained.config).class_prefix)
    names = _OUTPUTS.get(suffix, ('logits',))[: len(ours)]
    if by_torch:
        theirs, their_ids = (
            _torch_outputs(directory, architecture, names, ids, types if has_types else None),
            _hugging_face_ids(directory, texts),
        )
    else:
        written = read_back()
        theirs, their_ids = outputs(written, ids, types), written.tokenizer.encode_batch(texts)
    difference = max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))
    if not difference <= _TOLERANCE:
        raise RuntimeError(f'the export is wrong: its logits differ by {difference:.2e}; nothing was written')
    our_ids = trained.tokenizer.encode_batch(texts)
    if our_ids != their_ids:
        raise RuntimeError('the export is wrong: its tokenizer returns other ids; nothing was written')
    return {
        'compared_with': f'transformers {architecture}' if by_torch else 'the files read back by bert_jax',
        'input_ids': ids.tolist(),
        'token_type_ids': types.tolist(),
        'logits': list(names),
        'logits_compared': int(sum(array.size for array in ours)),
        'largest_difference': difference,
        'tolerance': _TOLERANCE,
        'token_ids_compared': sum(map(len, our_ids)),
        'step': trained.step,
        'sha256': {name: _sha256(file) for name, file in files_below(directory).items()},
    }


def _sha256(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _outputs(trained: Pretrained, ids: np.ndarray, types: np.ndarray, architecture: str) -> list[np.ndarray]:
    """Returns the outputs of a class for a checkpoint or the files read back, without those of an untrained pooler."""
    hidden, pooled, mlm, nsp = _forward(*nnx.split(trained.model), ids, types)
    mlm = mlm[..., : trained.config.num_embeddings(trained.tokenizer.vocab_size)]
    by_suffix = {
        'Model': [hidden] if pooled is None or POOLER in trained.provenance.untrained_heads else [hidden, pooled],
        'ForPreTraining': [mlm, nsp],
        'ForMaskedLM': [mlm],
        'ForNextSentencePrediction': [nsp],
    }
    return [np.asarray(array) for array in by_suffix[architecture.removeprefix(hub_of(trained.config).class_prefix)]]


@functools.partial(jax.jit, static_argnums=0)
def _forward(graph: nnx.GraphDef, params: nnx.State, ids: jax.Array, types: jax.Array) -> tuple[Any, ...]:
    """Returns (vectors [B, L, D], pooled [B, D], masked-LM logits [B, L, V], next-sentence logits [B, 2]).

    A family without pooler and next-sentence head has None for them.
    """
    model = nnx.merge(graph, params)
    everywhere = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    first = jnp.zeros((len(ids), 1), jnp.int32)
    hidden = model.encode(Inputs(ids, types, jnp.ones_like(ids), everywhere))
    nsp = model.nsp_logits(hidden, first)
    pooled = None if nsp is None else model.bert.pool(hidden, first)[:, 0]
    return hidden, pooled, model.mlm_logits(hidden, everywhere), None if nsp is None else nsp[:, 0]


def _torch_outputs(
    directory: Path, architecture: str, names: tuple[str, ...], ids: np.ndarray, types: np.ndarray | None
) -> list[np.ndarray]:
    import torch
    import transformers
    import transformers.utils.logging

    transformers.utils.logging.disable_progress_bar()
    with without_load_report():  # the pooler of BertModel may be missing, whose output is not compared then
        model = getattr(transformers, architecture).from_pretrained(directory, dtype=torch.float32).eval()
    inputs = {'input_ids': ids} | ({} if types is None else {'token_type_ids': types})
    with torch.no_grad():
        out = model(**{name: torch.tensor(value, dtype=torch.long) for name, value in inputs.items()})
    return [out[name].numpy() for name in names]


def _hugging_face_ids(directory: Path, texts: list[str]) -> list[list[int]]:
    import transformers

    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(directory)
    # Without `verbose`, long texts cause no warnings; only their ids are compared.
    return tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)['input_ids']
