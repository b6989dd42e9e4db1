"""What is known of a model's weights beyond their values: which positions and heads were trained, and their dtypes.

A workdir's config.json records what its run started from (`start`). The heads that an export or another model
directory lacks are untrained, and its tokenizer's `model_max_length` limits the length of texts.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bert_jax.config import Config, finetuning, phase_at, positions_trained
from bert_jax.errors import BadInput
from bert_jax.json_files import read_given_json
from bert_jax.pretrained.families import hub_of
from bert_jax.pretrained.hub import HEADS, MLM_HEAD, NSP_HEAD, POOLER, PREDICTION_HEAD
from bert_jax.workdir import identity


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Facts about weights.

    Attributes:
      positions_trained: number of positions, from the first, that were trained; None for all.
      untrained_heads: those of `hub.HEADS` that are absent or random.
      dtypes: of the tensors in an imported directory, as of `hugging_face.write_model`; {} for float32.
    """

    positions_trained: int | None = None
    untrained_heads: tuple[str, ...] = ()
    dtypes: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns what config.json records."""
        content = dataclasses.asdict(self) | {'untrained_heads': list(self.untrained_heads)}
        return content if self.dtypes else {name: value for name, value in content.items() if name != 'dtypes'}

    @classmethod
    def from_json(cls, content: Any, where: str) -> 'Provenance':
        """Reads what `to_json` returned.

        Raises:
          BadInput: if it is anything else.
        """
        content = content if isinstance(content, dict) else {}
        positions, heads = content.get('positions_trained'), content.get('untrained_heads')
        dtypes = content.get('dtypes', {})
        if (
            not (positions is None or (type(positions) is int and positions > 0))
            or not (isinstance(heads, list) and all(isinstance(head, str) and head in HEADS for head in heads))
            or not (isinstance(dtypes, dict) and all(dtype in _DTYPES for dtype in dtypes.values()))
        ):
            expected = f'positions_trained, a number or null, and untrained_heads, a list of {", ".join(HEADS)}'
            raise BadInput(where, 'does not say what was trained', expected, 'restore the original file')
        return cls(positions, tuple(heads), dtypes)

    def max_length(self, max_positions: int) -> int:
        """Returns the length in tokens of the longest text that the weights were trained for."""
        return min(self.positions_trained or max_positions, max_positions)

    def notes(self, needed: tuple[str, ...] = HEADS) -> list[str]:
        """Returns sentences on what is missing, for those who save or train the weights.

        Args:
          needed: the heads that are used.
        """
        missing = [head for head in self.untrained_heads if head in needed]
        return [f'no trained {", no trained ".join(missing)}: initialized with random values'] if missing else []


@dataclasses.dataclass(frozen=True)
class AveragedCheckpoint:
    """A checkpoint whose weights are part of an average. weight: its share; the shares add up to 1."""

    workdir: str
    step: int
    weight: float

    @property
    def run_name(self) -> str:
        """The last part of the workdir's path, which says nothing about the machine."""
        return Path(self.workdir).resolve().name

    def to_json(self) -> dict[str, Any]:
        """Returns what `proof.json` and the results of `evaluate` record."""
        return {'run': self.run_name, 'step': self.step, 'weight': self.weight}


_DTYPES = ('float16', 'bfloat16', 'float32', 'float64')


def start_of(workdir: str) -> Provenance | None:
    """Returns the provenance of the weights that a run started from; None for random ones.

    Workdirs of early versions do not record it: then everything in an initial model counts as trained.
    """
    recorded = identity.load_recorded_start(workdir)
    if recorded is not None:
        return Provenance.from_json(recorded, f'{workdir}/config.json: start')
    fingerprint = identity.load_fingerprint(workdir)
    has_initial = 'imported' in fingerprint or fingerprint.get('init', 'scratch') != 'scratch'
    return Provenance() if has_initial else None


def of_run(config: Config, step: int, start: Provenance | None) -> Provenance:
    """Returns the provenance of the weights of a pretraining run after a step.

    The head over the vocabulary counts as untrained where the phase does not learn to fill masks: then it predicts
    other tokens.

    Args:
      start: that of the weights that it started from; None for random ones.
    """
    heads = tuple(hub_of(config.model).heads)
    if not step:
        return start or Provenance(positions_trained(config, 0), heads)
    phase = phase_at(config, step)
    objectives = [each.objective for each in config.in_phases[: phase + 1]]
    has_pairs = config.data.pairing != 'none' and any(each.learns_pairs for each in objectives)
    untrained = () if has_pairs else (POOLER, NSP_HEAD)
    untrained += () if objectives[-1].fills_masks else (PREDICTION_HEAD, MLM_HEAD)
    positions = _longest(start, positions_trained(config, step))
    return Provenance(positions, tuple(head for head in HEADS if head in untrained and head in heads))


def of_finetune(config: finetuning.FinetuneConfig, start: Provenance | None) -> Provenance:
    """Returns the provenance of the weights of a fine-tune, which has no heads of pretraining."""
    return Provenance(_longest(start, config.task.sequence_length), (MLM_HEAD, NSP_HEAD))


def of_files(
    directory: Path, max_positions: int, absent: tuple[str, ...] = (), dtypes: dict[str, str] | None = None
) -> Provenance:
    """Returns the provenance of a model directory that is not a workdir.

    Args:
      absent: the heads that its tensors lack.
      dtypes: of its tensors; see `Provenance`.

    Raises:
      BadInput: if tokenizer_config.json is not JSON.
    """
    settings, length = directory / 'tokenizer_config.json', None
    if settings.is_file():
        length = read_given_json(settings, 'the settings of a tokenizer').get('model_max_length')
    is_length = isinstance(length, int) and 2 < length < max_positions  # `transformers` writes 1e30 for 'unknown'
    return Provenance(length if is_length else max_positions, absent, dtypes or {})


def _longest(start: Provenance | None, positions: int) -> int | None:
    """Returns the positions trained before and since; None if all were trained before."""
    if start is None:
        return positions
    return None if start.positions_trained is None else max(start.positions_trained, positions)
