"""The settings of a run, checked and frozen before anything else happens."""

from bert_jax.config.batch_sizes import BatchSizes, batch_sizes, describe_batch, num_full_steps, num_rows
from bert_jax.config.checks import (
    check_exact,
    check_family_of_phases,
    check_mesh,
    check_model,
    check_pairing,
    check_probes,
)
from bert_jax.config.data import (
    SOURCE_KINDS,
    Data,
    Masking,
    Tokenizer,
    chooses_max_sequences,
    is_records,
    max_sequences,
    mixes_sources,
    num_predictions,
    row_lengths,
    sources,
)
from bert_jax.config.families import FAMILIES, Bert, EuroBert, Model, ModernBert
from bert_jax.config.names import field_names, unknown_field
from bert_jax.config.phases import model_at, phase_at, positions_trained, weight_decays
from bert_jax.config.pretraining import Card, Config, Mesh, Optimizer, Phase, PhaseMasking, Probe, Train
from bert_jax.config.resolve import resolve
from bert_jax.config.sizes import ETTIN_SIZES, FEW_LAYERS, MODERNBERT_SIZES, SIZES, bert, defaults, ettin, modernbert

__all__ = [
    'ETTIN_SIZES',
    'FAMILIES',
    'FEW_LAYERS',
    'MODERNBERT_SIZES',
    'SIZES',
    'SOURCE_KINDS',
    'BatchSizes',
    'Bert',
    'Card',
    'Config',
    'Data',
    'EuroBert',
    'Masking',
    'Mesh',
    'Model',
    'ModernBert',
    'Optimizer',
    'Phase',
    'PhaseMasking',
    'Probe',
    'Tokenizer',
    'Train',
    'batch_sizes',
    'bert',
    'check_exact',
    'check_family_of_phases',
    'check_mesh',
    'check_model',
    'check_pairing',
    'check_probes',
    'defaults',
    'describe_batch',
    'ettin',
    'field_names',
    'is_records',
    'chooses_max_sequences',
    'max_sequences',
    'mixes_sources',
    'model_at',
    'modernbert',
    'num_full_steps',
    'num_predictions',
    'num_rows',
    'phase_at',
    'positions_trained',
    'resolve',
    'row_lengths',
    'sources',
    'unknown_field',
    'weight_decays',
]
