"""What is known of a model's weights beyond their values: at which positions they were trained, and which heads were.

A workdir's config.json records what its run started from (`start`). Of an export and of any other model directory, the
heads that it lacks are untrained, and its tokenizer's `model_max_length` says how long texts may be.
"""

import dataclasses
from pathlib import Path
from typing import Any

from bert_jax.config import Config, finetuning, positions_trained
from bert_jax.errors import BadInput
from bert_jax.json_files import read_given_json
from bert_jax.pretrained.tensor_names import HEADS, MLM_HEAD, NSP_HEAD, POOLER
from bert_jax.workdir import identity


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Facts about weights.

    Attributes:
      positions_trained: positions, from the first on, that were trained; None: as many as there are.
      untrained_heads: names of the parts (`tensor_names.HEADS`) that are absent or random.
      rows_dropped: of the embeddings, beyond the tokens of the tokenizer, when the model was imported.
    """

    positions_trained: int | None = None
    untrained_heads: tuple[str, ...] = ()
    rows_dropped: int = 0

    def to_json(self) -> dict[str, Any]:
        """As config.json records it."""
        return dataclasses.asdict(self) | {'untrained_heads': list(self.untrained_heads)}

    @classmethod
    def from_json(cls, content: Any, where: str) -> 'Provenance':
        """Reads what `to_json` returned.

        Raises:
          BadInput: when it is something else.
        """
        content = content if isinstance(content, dict) else {}
        positions, heads = content.get('positions_trained'), content.get('untrained_heads')
        dropped = content.get('rows_dropped', 0)
        if (
            not (positions is None or (type(positions) is int and positions > 0))
            or not (isinstance(heads, list) and all(isinstance(head, str) and head in HEADS for head in heads))
            or type(dropped) is not int
        ):
            expected = f'positions_trained, a number or null, and untrained_heads, a list of {", ".join(HEADS)}'
            raise BadInput(where, 'does not say what was trained', expected, 'restore the file that was written')
        return cls(positions, tuple(heads), dropped)

    def max_length(self, max_positions: int) -> int:
        """Tokens of the longest text that the weights can be trusted with."""
        return min(self.positions_trained or max_positions, max_positions)

    def notes(self, needed: tuple[str, ...] = tuple(HEADS)) -> list[str]:
        """What a person who saves or trains the weights should know, in words.

        Args:
          needed: the heads that are used.
        """
        missing = [head for head in self.untrained_heads if head in needed]
        found = [f'no trained {", no trained ".join(missing)}: initialized with random values'] if missing else []
        if self.rows_dropped:
            found.append(f'{self.rows_dropped} rows of the embeddings, beyond the tokens of the tokenizer, are dropped')
        return found


def start_of(workdir: str) -> Provenance | None:
    """What the weights were that a run started from; None for random ones.

    A workdir that was written before this was recorded does not say: then all of an initial model counts as trained.
    """
    recorded = identity.load_recorded_start(workdir)
    if recorded is not None:
        return Provenance.from_json(recorded, f'{workdir}/config.json: start')
    fingerprint = identity.load_fingerprint(workdir)
    has_initial = 'imported' in fingerprint or fingerprint.get('init', 'scratch') != 'scratch'
    return Provenance() if has_initial else None


def of_run(config: Config, step: int, start: Provenance | None) -> Provenance:
    """What is known of the weights of a pretraining run after a step.

    Args:
      start: of the weights that it started from; None for random ones.
    """
    if not step:
        return start or Provenance(positions_trained(config, 0), tuple(HEADS))
    heads = (POOLER, NSP_HEAD) if config.data.pairing == 'none' else ()
    return Provenance(_longest(start, positions_trained(config, step)), heads, start.rows_dropped if start else 0)


def of_finetune(config: finetuning.FinetuneConfig, start: Provenance | None) -> Provenance:
    """What is known of the weights of a fine-tune; it has no heads of pretraining."""
    return Provenance(
        _longest(start, config.task.sequence_length), (MLM_HEAD, NSP_HEAD), start.rows_dropped if start else 0
    )


def of_files(directory: Path, max_positions: int, absent: tuple[str, ...] = (), rows_dropped: int = 0) -> Provenance:
    """What a model directory that is no workdir says of its weights.

    Args:
      absent: the heads that its tensors lack.  rows_dropped: see `Provenance`.

    Raises:
      BadInput: for a tokenizer_config.json that is not JSON.
    """
    settings, length = directory / 'tokenizer_config.json', None
    if settings.is_file():
        length = read_given_json(settings, 'the settings of a tokenizer').get('model_max_length')
    is_length = isinstance(length, int) and 2 < length < max_positions  # `transformers` writes 1e30 for 'not known'
    return Provenance(length if is_length else max_positions, absent, rows_dropped)


def _longest(start: Provenance | None, positions: int) -> int | None:
    """Positions trained before and since; None where all were trained before."""
    if start is None:
        return positions
    return None if start.positions_trained is None else max(start.positions_trained, positions)
