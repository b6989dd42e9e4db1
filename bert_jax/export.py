"""A checkpoint as a Hugging Face directory, written only after its logits were compared."""

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from bert_jax.errors import BadInput
from bert_jax.files import sync
from bert_jax.interop import hugging_face
from bert_jax.pretrained import Pretrained, load_pretrained

_TOLERANCE = 1e-4
_PROOF_ROWS, _PROOF_LENGTH = 4, 32


def export(workdir: str, output: str, step: int | None = None) -> dict[str, object]:
    """Writes OUTPUT as a directory that `transformers` opens; returns its proof.

    Everything is written to a temporary directory beside OUTPUT, read back, and its logits on synthetic ids compared
    with the checkpoint's (by torch and transformers where they are installed, else by this package); then renamed.

    Raises:
      BadInput: when OUTPUT exists, or there is no such checkpoint.
    """
    target = Path(output)
    if target.exists() and (not target.is_dir() or any(target.iterdir())) and not (target / 'proof.json').is_file():
        raise BadInput(str(target), 'exists and is not an export', 'a new directory', 'name another --output')
    trained = load_pretrained(workdir, step)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f'.{target.name}-', dir=target.parent))
    try:
        params = nnx.state(trained.model, nnx.Param)
        tokenizer = trained.tokenizer
        hugging_face.write_model(temporary, params, trained.config, tokenizer.vocab_size, tokenizer.pad_id)
        tokenizer.save(temporary)
        proof = _prove(temporary, trained)
        (temporary / 'proof.json').write_text(json.dumps(proof, indent=2) + '\n')
        for file in temporary.iterdir():
            sync(file)
        temporary.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return proof


def _prove(directory: Path, trained: Pretrained) -> dict[str, object]:
    """Compares logits on synthetic ids; raises RuntimeError when they differ."""
    vocab_size = trained.tokenizer.vocab_size
    length = min(_PROOF_LENGTH, trained.config.max_positions)
    ids = np.random.default_rng(0).integers(0, vocab_size, (_PROOF_ROWS, length), dtype=np.int32)
    types = np.broadcast_to(np.arange(length) >= length // 2, ids.shape).astype(np.int32)
    ours = _logits(trained, ids, types)
    by_torch = all(importlib.util.find_spec(name) for name in ('torch', 'transformers'))
    theirs = _torch_logits(directory, ids, types) if by_torch else _logits(load_pretrained(str(directory)), ids, types)
    difference = max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))
    if not difference <= _TOLERANCE:
        raise RuntimeError(f'the export is wrong: its logits differ by {difference:.2e}; nothing was written')
    return {
        'compared_with': 'transformers BertForPreTraining' if by_torch else 'the files read back by bert_jax',
        'input_ids': ids.tolist(),
        'token_type_ids': types.tolist(),
        'logits_compared': int(sum(array.size for array in ours)),
        'largest_difference': difference,
        'tolerance': _TOLERANCE,
        'step': trained.step,
        'sha256': {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(directory.iterdir())},
    }


def _logits(trained: Pretrained, ids: np.ndarray, types: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    everywhere = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    first = jnp.zeros((len(ids), 1), jnp.int32)
    mlm, nsp = trained.model(ids, types, jnp.ones_like(ids), everywhere, everywhere, first)
    return np.asarray(mlm)[..., : trained.tokenizer.vocab_size], np.asarray(nsp)[:, 0]


def _torch_logits(directory: Path, ids: np.ndarray, types: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model = transformers.BertForPreTraining.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        out = model(input_ids=torch.tensor(ids, dtype=torch.long), token_type_ids=torch.tensor(types, dtype=torch.long))
    return out.prediction_logits.numpy(), out.seq_relationship_logits.numpy()
