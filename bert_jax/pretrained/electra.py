"""Exports a BERT that was trained to detect replaced tokens as ELECTRA, with its detector.

ELECTRA whose embeddings are as wide as its hidden states is BERT without a pooler: `export` writes it as either.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from bert_jax import config
from bert_jax.activity import activity
from bert_jax.errors import BadInput
from bert_jax.model.inputs import Inputs
from bert_jax.model.replaced_tokens import ReplacedTokens, builder
from bert_jax.pretrained import bert
from bert_jax.pretrained.card import model_card
from bert_jax.pretrained.export import check_output, prove, publish
from bert_jax.pretrained.hugging_face import model_json
from bert_jax.pretrained.load import Pretrained, load_pretrained
from bert_jax.pretrained.safetensors_files import read_tensors
from bert_jax.pretrained.sentences import SentenceSettings
from bert_jax.pretrained.tensor_names import to_tensors
from bert_jax.pretrained.tensors import Tensor, dense
from bert_jax.train.state import model_of
from bert_jax.workdir import identity
from bert_jax.workdir.checkpoint import restore_whole

_CITATION = """\
@inproceedings{clark-etal-2020-electra,
  title = {{ELECTRA}: Pre-training Text Encoders as Discriminators Rather Than Generators},
  author = {Clark, Kevin and Luong, Minh-Thang and Le, Quoc V. and Manning, Christopher D.},
  booktitle = {International Conference on Learning Representations},
  year = {2020}
}"""
_HUB = bert.HUB._replace(name='electra', title='ELECTRA', class_prefix='Electra', citation=_CITATION)
ARCHITECTURE = 'ElectraForPreTraining'
_ENCODER = [
    tensor._replace(name=f'electra.{tensor.name.removeprefix("bert.")}')
    for tensor in bert.TABLE
    if tensor.path.startswith('bert/') and not tensor.path.startswith('bert/pooler')
]
TABLE: list[Tensor] = [
    *_ENCODER,
    *dense('detector/dense', 'discriminator_predictions.dense'),
    *dense('detector/output', 'discriminator_predictions.dense_prediction'),
]


@dataclasses.dataclass(frozen=True)
class Detecting:
    """A discriminator with its detector, in float32 and without dropout: what `export.prove` reads of a model."""

    model: ReplacedTokens
    pretrained: Pretrained

    @property
    def tokenizer(self) -> Any:
        return self.pretrained.tokenizer

    @property
    def config(self) -> Any:
        return self.pretrained.config

    @property
    def step(self) -> int | None:
        return self.pretrained.step

    @property
    def params(self) -> nnx.State:
        """The parameters of discriminator and detector, by the paths of `TABLE`."""
        flat = dict(nnx.to_flat_state(nnx.state(self.model.whole_discriminator(), nnx.Param)))
        detector = nnx.to_flat_state(nnx.state(self.model.detector, nnx.Param))
        return nnx.from_flat_state(flat | {('detector', *path): value for path, value in detector})


def export_electra(
    workdir: str, output: str, step: int | None = None, card: config.Card | None = None
) -> dict[str, Any]:
    """Writes the discriminator of a run as `ElectraForPreTraining`, which `ElectraModel` opens too; returns its proof.

    Raises:
      BadInput: if the run did not detect replaced tokens with a BERT, or as `export.export`.
    """
    target, resolved = check_output(output), identity.load_config(workdir)
    objective = resolved.in_phases[0].objective
    if objective.name != 'rtd' or resolved.model.family != 'bert':
        found = f'is the run of a {resolved.model.family} with objective {objective.name}'
        raise BadInput(f'--workdir={workdir}', found, "a bert with objective 'rtd', for --layout=electra", '--layout=')
    pretrained = load_pretrained(workdir, step)
    state = restore_whole(workdir, resolved, pretrained.tokenizer.vocab_size, pretrained.step)
    whole = jax.device_put(jax.device_get(state.weights), jax.local_devices()[0])
    model = dataclasses.replace(pretrained.config, attention='auto')
    trained = Detecting(model_of(whole, model, pretrained.tokenizer.vocab_size, builder(objective)), pretrained)
    settings = SentenceSettings(output, max_length=pretrained.max_length)
    readme = model_card(workdir, resolved, card or resolved.card, pretrained, settings, _HUB)

    def fill(directory: Path) -> dict[str, object]:
        _write(directory, trained)
        pretrained.tokenizer.save(directory, pretrained.max_length, True)
        (directory / 'README.md').write_text(readme, 'utf-8')
        with activity('comparing logits'):
            return prove(directory, trained, ARCHITECTURE, _outputs, lambda: _read_back(directory, trained))

    return publish(target, fill) | {
        'architecture': ARCHITECTURE,
        'positions_trained': pretrained.max_length,
        'untrained_heads': [],
    }


def electra_json(model: config.Model, tokenizer: Any) -> dict[str, object]:
    """Returns the content of config.json."""
    names = {'model_type': 'electra', 'architectures': [ARCHITECTURE], 'embedding_size': model.hidden_size}
    return model_json(model, tokenizer) | names


def _write(directory: Path, trained: Detecting) -> None:
    content = electra_json(trained.config, trained.tokenizer)
    (directory / 'config.json').write_text(json.dumps(content, indent=2) + '\n')
    tensors = to_tensors(trained.params, trained.config, trained.tokenizer.vocab_size, TABLE)
    save_file(tensors, directory / 'model.safetensors', metadata={'format': 'pt'})


def _read_back(directory: Path, trained: Detecting) -> Detecting:
    """Returns the model, after comparing its tensors with those in the directory."""
    _, written = read_tensors(directory)
    ours = to_tensors(trained.params, trained.config, trained.tokenizer.vocab_size, TABLE)
    if written.keys() != ours.keys() or not all(np.array_equal(written[name], ours[name]) for name in ours):
        raise RuntimeError('the export is wrong: its tensors differ; nothing was written')
    return trained


def _outputs(trained: Detecting, ids: np.ndarray, types: np.ndarray) -> list[np.ndarray]:
    return [np.asarray(_logits(*nnx.split(trained.model), ids, types))]


@functools.partial(jax.jit, static_argnums=0)
def _logits(graph: nnx.GraphDef, params: nnx.State, ids: jax.Array, types: jax.Array) -> jax.Array:
    """Returns [B, L], a logit for each token."""
    model = nnx.merge(graph, params)
    everywhere = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    return model.detector(model.whole_discriminator().encode(Inputs(ids, types, jnp.ones_like(ids), everywhere)))
