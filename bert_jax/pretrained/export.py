"""A checkpoint as a Hugging Face directory, written only after its logits were compared."""

import functools
import hashlib
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.files import new_directory
from bert_jax.json_files import read_json
from bert_jax.model.inputs import Inputs
from bert_jax.pretrained import hugging_face
from bert_jax.pretrained.card import model_card
from bert_jax.pretrained.load import Pretrained, load_pretrained
from bert_jax.pretrained.tensor_names import MLM_HEAD, NSP_HEAD, POOLER
from bert_jax.workdir import identity

_TOLERANCE = 1e-4
_PROOF = 'proof.json'
_PROOF_ROWS = 4
_PROOF_LENGTH = 32  # tokens of a row
OUTPUTS = {  # what each class of `transformers` calls what is compared
    'BertForPreTraining': ('prediction_logits', 'seq_relationship_logits'),
    'BertForMaskedLM': ('logits',),
    'BertForNextSentencePrediction': ('logits',),
    'BertModel': ('last_hidden_state', 'pooler_output'),
    'BertForSequenceClassification': ('logits',),
    'BertForTokenClassification': ('logits',),
    'BertForQuestionAnswering': ('start_logits', 'end_logits'),
}


def export(workdir: str, output: str, step: int | None = None, card: config.Card | None = None) -> dict[str, Any]:
    """Writes OUTPUT as a directory that `transformers` opens; returns its proof.

    Everything is written to a temporary directory beside OUTPUT, read back, and its logits on synthetic ids compared
    with the checkpoint's (by torch and transformers where they are installed, else by this package); then renamed.
    Heads that were not trained (a run without pairs has an untrained pooler and next-sentence head) are left out, and
    what is compared is the outputs of the others, or the vectors of the encoder.

    Args:
      card: what the model card says beyond the facts of the run; the run's own `config.card` without it.

    Raises:
      BadInput: when OUTPUT exists and is not an export, or there is no such checkpoint.
    """
    target = check_output(output)
    resolved, trained = identity.load_config(workdir), load_pretrained(workdir, step)
    tokenizer = trained.tokenizer
    assert trained.step is not None  # it is a workdir's
    untrained = trained.provenance.untrained_heads
    architecture = _architecture(untrained)
    readme = model_card(workdir, resolved, card or resolved.card, trained)

    def fill(directory: Path) -> dict[str, object]:
        params = nnx.state(trained.model, nnx.Param)
        sizes = trained.config, tokenizer.vocab_size, tokenizer.pad_id
        hugging_face.write_model(directory, params, *sizes, architecture, None, untrained)
        tokenizer.save(directory, trained.max_length)
        (directory / 'README.md').write_text(readme, 'utf-8')
        outputs = functools.partial(_outputs, architecture=architecture)
        return prove(directory, trained, architecture, outputs, lambda: load_pretrained(str(directory)))

    return publish(target, fill) | {
        'architecture': architecture,
        'positions_trained': trained.max_length,
        'untrained_heads': list(untrained),
    }


def _architecture(untrained: tuple[str, ...]) -> str:
    """The class of `transformers` that has the heads which were trained, and no other."""
    if MLM_HEAD in untrained:
        return 'BertModel' if NSP_HEAD in untrained or POOLER in untrained else 'BertForNextSentencePrediction'
    return 'BertForMaskedLM' if NSP_HEAD in untrained or POOLER in untrained else 'BertForPreTraining'


def check_output(output: str) -> Path:
    """The directory to write to; where OUTPUT is a symbolic link, what it points to.

    Raises:
      BadInput: when it is there and is not an export, or files of that export have been changed since.
    """
    target = Path(os.path.realpath(output))
    if target.is_mount():
        raise BadInput(str(target), 'is a mount point', 'a directory below it', f'--output={output}/export')
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        _not_of_export(target)
    return target


def publish(target: Path, fill: Callable[[Path], dict[str, object]]) -> dict[str, object]:
    """Publishes what `fill` writes to a directory, with the proof that it returns.

    The files of an earlier export are replaced; all others in its directory stay.

    Raises:
      BadInput: as `check_output`, and when another file has the name of one to be written.
    """
    try:
        with new_directory(target, existing='replace', kept=_not_of_export) as temporary:
            proof = fill(temporary)
            (temporary / _PROOF).write_text(json.dumps(proof, indent=2) + '\n')
    except FileExistsError as error:
        expected = 'no file of this name, which the new export has, too'
        raise BadInput(str(error.filename), 'was not written by export', expected, 'move it away') from error
    return proof


def _not_of_export(directory: Path) -> list[str]:
    """The names in an export's directory that no export wrote; raises BadInput as `check_output`."""
    names = sorted(path.name for path in directory.iterdir())
    if not names:
        return []
    if not (directory / _PROOF).is_file():
        raise BadInput(str(directory), 'exists and is not an export', 'a new directory', 'name another --output')
    try:
        written = dict(read_json(directory / _PROOF)['sha256'])
    except (ValueError, KeyError, TypeError):
        expected = 'the file that export wrote, which lists all others'
        raise BadInput(str(directory / _PROOF), 'is damaged', expected, 'name another --output') from None
    for name in names:
        if name in written and _sha256(directory / name) != written[name]:
            expected = 'the file that export wrote: another one is not replaced'
            raise BadInput(str(directory / name), 'was changed since it was exported', expected, 'move it away')
    return [name for name in names if name not in written and name != _PROOF]


def prove(
    directory: Path,
    trained: Any,
    architecture: str,
    outputs: Callable[[Any, np.ndarray, np.ndarray], list[np.ndarray]],
    read_back: Callable[[], Any],
) -> dict[str, object]:
    """Compares outputs on synthetic ids, and the ids of synthetic text; raises RuntimeError when they differ.

    Args:
      trained: the model of the checkpoint (its `tokenizer`, `config`, `step`).
      outputs: (model, ids, token types [B, L]) -> the arrays that `architecture` calls by the names in `OUTPUTS`, or
        the first of them.
      read_back: the model in the directory, where torch and transformers are not installed.
    """
    vocab_size = trained.tokenizer.vocab_size
    length = min(_PROOF_LENGTH, trained.config.max_positions)
    ids = np.random.default_rng(0).integers(0, vocab_size, (_PROOF_ROWS, length), dtype=np.int32)
    types = np.broadcast_to(np.arange(length) >= length // 2, ids.shape).astype(np.int32)
    by_torch = all(importlib.util.find_spec(name) for name in ('torch', 'transformers'))
    texts = [trained.tokenizer.decode(row) for row in ids]
    ours = outputs(trained, ids, types)
    names = OUTPUTS[architecture][: len(ours)]
    if by_torch:
        theirs, their_ids = (
            _torch_outputs(directory, architecture, names, ids, types),
            _hugging_face_ids(directory, texts),
        )
    else:
        again = read_back()
        theirs, their_ids = outputs(again, ids, types), again.tokenizer.encode_batch(texts)
    difference = max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))
    if not difference <= _TOLERANCE:
        raise RuntimeError(f'the export is wrong: its logits differ by {difference:.2e}; nothing was written')
    our_ids = trained.tokenizer.encode_batch(texts)
    if our_ids != their_ids:
        raise RuntimeError('the export is wrong: its tokenizer gives other ids; nothing was written')
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
        'sha256': {file.name: _sha256(file) for file in sorted(directory.iterdir())},
    }


def _sha256(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _outputs(trained: Pretrained, ids: np.ndarray, types: np.ndarray, architecture: str) -> list[np.ndarray]:
    """What `OUTPUTS` names, of a checkpoint or of the files read back; without the pooler's where it is not trained."""
    hidden, pooled, mlm, nsp = map(np.asarray, _forward(*nnx.split(trained.model), ids, types))
    mlm = mlm[..., : trained.tokenizer.vocab_size]
    if architecture == 'BertModel':
        return [hidden] if POOLER in trained.provenance.untrained_heads else [hidden, pooled]
    return {'BertForPreTraining': [mlm, nsp], 'BertForMaskedLM': [mlm], 'BertForNextSentencePrediction': [nsp]}[
        architecture
    ]


@functools.partial(jax.jit, static_argnums=0)
def _forward(graph: nnx.GraphDef, params: nnx.State, ids: jax.Array, types: jax.Array) -> tuple[jax.Array, ...]:
    """(vectors [B, L, D], pooled [B, D], masked-LM logits [B, L, V], next-sentence logits [B, 2])."""
    model = nnx.merge(graph, params)
    everywhere = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    first = jnp.zeros((len(ids), 1), jnp.int32)
    hidden = model.bert(Inputs(ids, types, jnp.ones_like(ids), everywhere))
    heads = model.mlm_logits(hidden, everywhere), model.nsp_logits(hidden, first)[:, 0]
    return hidden, model.bert.pool(hidden, first)[:, 0], *heads


def _torch_outputs(
    directory: Path, architecture: str, names: tuple[str, ...], ids: np.ndarray, types: np.ndarray
) -> list[np.ndarray]:
    import torch
    import transformers
    import transformers.utils.logging

    transformers.utils.logging.disable_progress_bar()
    model = getattr(transformers, architecture).from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        out = model(input_ids=torch.tensor(ids, dtype=torch.long), token_type_ids=torch.tensor(types, dtype=torch.long))
    return [out[name].numpy() for name in names]


def _hugging_face_ids(directory: Path, texts: list[str]) -> list[list[int]]:
    import transformers

    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(directory)
    # `verbose` is about texts longer than the model: only their ids are compared.
    return tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)['input_ids']
