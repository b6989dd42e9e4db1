"""Checks that concern more than one field of a pretraining config."""

import dataclasses
import math

from bert_jax.config.data import (
    MIN_BPE_TOKENS,
    TABLE_KINDS,
    Data,
    Tokenizer,
    is_records,
    mixes_sources,
    sources,
    template_parts,
)
from bert_jax.config.families import Model
from bert_jax.config.pretraining import Config, Mesh, Phase, Probe, Train
from bert_jax.errors import BadInput


def check_model(model: Model) -> None:
    """Raises `BadInput` if the heads do not divide the hidden size or the fields of the family do not fit."""
    if model.hidden_size % model.num_heads:
        small = [h for h in range(1, math.isqrt(model.hidden_size) + 1) if model.hidden_size % h == 0]
        works = {*small, *(model.hidden_size // h for h in small)}
        near = sorted(works, key=lambda h: (abs(h - model.num_heads), h))[:3]
        raise BadInput(
            'config.model.num_heads',
            f'is {model.num_heads}, which does not divide hidden_size={model.hidden_size}',
            f'a divisor of {model.hidden_size}, for example {", ".join(map(str, sorted(near)))}',
        )
    model.check()


def check_pairing(config: Config) -> None:
    """Raises `BadInput` if the data has pairs and the model has no head for them, or the run never learns them."""
    if config.data.pairing == 'none':
        return
    if not any(phase.objective.learns_pairs for phase in config.in_phases):
        raise BadInput(
            'config.data.pairing',
            f'is {config.data.pairing!r}, and objective {config.in_phases[0].objective.name} learns no pairs',
            "'none'",
            '--config.data.pairing=none',
        )
    if not config.model.LEARNS_PAIRS:
        raise BadInput(
            'config.data.pairing',
            f'is {config.data.pairing!r}, and {config.model.family} has no head for pairs',
            "'none'",
            '--config.data.pairing=none',
        )


def check_objectives(config: Config) -> None:
    """Raises `BadInput` if some phases detect replaced tokens and others do not, or the model cannot."""
    names = [phase.objective.name for phase in config.in_phases]
    if 'rtd' not in names:
        return
    if {*names} != {'rtd'}:
        index = next(index for index, name in enumerate(names) if name != 'rtd')
        raise BadInput(
            f'config.phases[{index}].objective',
            f"is {names[index]!r}, and other phases have 'rtd', whose model has a generator",
            "'rtd' in all phases or in none",
            'two runs: the second one starts from the first with --config.init=WORKDIR',
        )
    if not config.model.DETECTS_REPLACED:
        found = f"is 'rtd', which family {config.model.family} does not support"
        raise BadInput('config.objective.name', found, 'family bert or modernbert')
    if config.init:
        found = f"is {config.init}, and a run with objective 'rtd' starts from random weights"
        raise BadInput('config.init', found, 'empty', "--config.init=''")
    if any(phase.objective.causal_share for phase in config.in_phases):
        raise BadInput('config.objective.causal_share', "is above 0 with objective 'rtd'", '0, or mlm or mntp')


def check_family_of_phases(config: Config) -> None:
    """Raises `BadInput` if a phase sets a field of the model that its family lacks."""
    for index, phase in enumerate(config.phases):
        for field in dataclasses.fields(Phase):
            owner, name = field.metadata.get('same_as', (object, ''))
            value = getattr(phase, field.name)
            if issubclass(owner, Model) and value is not None and not isinstance(config.model, owner):
                own = [each for each in ('global_rope_theta', 'rope_theta') if hasattr(config.model, each)]
                raise BadInput(
                    f'config.phases[{index}].{field.name}',
                    f'is {value}, and family {config.model.family} has no {name}',
                    f'{own[0]}, its base of rotary wavelengths' if own and 'theta' in name else f'no {name}',
                )


def check_probes(probe_every: int, probe: Probe) -> None:
    """Raises `BadInput` if probes are requested without labelled sets."""
    if probe_every and not probe.sets:
        fix = "--config.probe.sets=\"(('mood','tsv:mood.tsv'),)\""
        raise BadInput('config.probe.sets', 'is (), and train.probe_every asks for probes', 'labelled sets', fix)


def check_mesh(mesh: Mesh) -> None:
    """Raises `BadInput` if more than one axis is -1."""
    axes = dataclasses.asdict(mesh)
    if sum(size == -1 for size in axes.values()) > 1:
        raise BadInput('config.mesh', f'is {axes}', 'at most one axis of -1 (the rest of the devices)')


def check_together(config: Config) -> None:
    """Checks what concerns more than one field."""
    data = config.data
    check_model(config.model)
    if not config.init:  # otherwise the initial model determines the family
        check_family_of_phases(config)
    check_pairing(config)
    check_objectives(config)
    _check_reading(data)
    if data.validation_source and is_records(data.validation_source) != is_records(data.source):
        raise BadInput(
            'config.data.validation_source',
            f'is {data.validation_source!r}, and data.source is {data.source!r}',
            'both text, or both tfrecord:GLOB',
        )
    if data.packing and is_records(data.source):
        raise BadInput('config.data.packing', 'is True, and records are rows already', 'False with tfrecord:GLOB')
    if data.bucket_lengths:
        _check_buckets(config)
    _check_tokenizer(config.tokenizer, is_provided=bool(config.init or config.tokenizer.path))
    if config.init_optimizer and not config.init:
        fix = '--config.init=WORKDIR or --config.init=WORKDIR@STEP'
        raise BadInput('config.init_optimizer', 'is True, and config.init names no run', 'both or neither', fix)
    if config.init_larger and (config.init_optimizer or not config.init):
        found = 'config.init_optimizer keeps moments of other shapes' if config.init else 'config.init names no model'
        fix = '--config.init_optimizer=False' if config.init else '--config.init=DIR'
        raise BadInput('config.init_larger', f'is True, and {found}', 'a smaller model, with new moments', fix)
    check_probes(config.train.probe_every, config.probe)
    check_mesh(config.mesh)


def _check_reading(data: Data) -> None:
    """Checks that the fields that say how text is read fit the kinds of the sources."""
    training = {name.partition(':')[0] for name, _ in sources(data)}
    kinds = training | {data.validation_source.partition(':')[0]}
    if data.group_field and not training <= {*TABLE_KINDS}:
        found = f'is {data.group_field!r}, but text files have no fields'
        raise BadInput('config.data.group_field', found, ', '.join(TABLE_KINDS))
    if data.documents == 'file' and 'text' not in kinds:
        found, expected = "is 'file', and no source is of text files", "'blank_lines' where each record is a document"
        raise BadInput('config.data.documents', found, expected)
    if data.template and not kinds & {*TABLE_KINDS}:
        raise BadInput('config.data.template', 'is set, and no source has fields', f'one of {", ".join(TABLE_KINDS)}')
    if data.template and data.text_field != Data().text_field:
        found = f'is set, and so is data.text_field={data.text_field!r}'
        raise BadInput('config.data.template', found, 'one of the two', '--config.data.text_field=text')
    if data.columns and not kinds & {'csv', 'tsv'}:
        raise BadInput('config.data.columns', 'is set, and no source is of csv or tsv files', '()')
    if data.near_duplicate_unit != 'document' and not data.near_duplicates:
        found, expected = f'is {data.near_duplicate_unit!r}, and data.near_duplicates is 0', 'a similarity, such as 0.8'
        raise BadInput('config.data.near_duplicate_unit', found, expected, '--config.data.near_duplicates=0.8')
    named = [name for _, name in template_parts(data.template) if name] if data.template else [data.text_field]
    missing = [name for name in (*named, data.group_field) if name and name not in data.columns]
    if data.columns and missing:
        fix = '--config.data.text_field=NAME, one of these columns'
        raise BadInput('config.data.columns', f'is {data.columns}, without {missing[0]!r}', 'the columns to read', fix)


def _check_tokenizer(tokenizer: Tokenizer, is_provided: bool) -> None:
    if tokenizer.add_tokens and not is_provided:
        raise BadInput(
            'config.tokenizer.add_tokens',
            'is set, and there is no vocabulary to add to',
            'an initial model or a tokenizer',
            '--config.init=DIR or --config.tokenizer.path=DIR; a vocabulary trained here has its words from the text',
        )
    if is_provided:
        return
    if tokenizer.num_unused and tokenizer.kind != 'bpe':
        found = f'is {tokenizer.num_unused}, and tokenizer.kind is {tokenizer.kind!r}'
        raise BadInput('config.tokenizer.num_unused', found, "0, or tokenizer.kind='bpe'")
    smallest = MIN_BPE_TOKENS + tokenizer.num_unused
    if tokenizer.kind == 'bpe' and tokenizer.vocab_size < smallest:
        found = f'is {tokenizer.vocab_size:,} with num_unused={tokenizer.num_unused}'
        expected = f'at least {smallest:,}: a token for each byte, the special and the unused ones'
        raise BadInput('config.tokenizer.vocab_size', found, expected)


def check_phase(config: Config, phase: str) -> None:
    """Checks the fields that a phase may set. phase: prefix of their names, '' without phases."""
    model, data, train = config.model, config.data, config.train
    masking = data.masking
    if masking.mask_fraction + masking.random_fraction > 1:
        raise BadInput(
            f'config.{phase or "data."}masking',
            f'mask_fraction={masking.mask_fraction} + random_fraction={masking.random_fraction} is more than 1',
            'a sum of at most 1; the rest keeps its token',
        )
    grows = bool(config.init) or is_records(data.source)  # an initial model's positions grow; records tell their length
    if data.sequence_length > model.max_positions and not grows:
        raise BadInput(
            f'config.{phase or "data."}sequence_length',
            f'is {data.sequence_length}, more than the model has positions',
            f'at most model.max_positions={model.max_positions}',
            f'--config.model.max_positions={data.sequence_length}',
        )
    check_exact(train, phase)
    _check_sources(config.data, phase)
    _check_batch_warmup(train, phase)
    if train.microbatches != -1 and train.global_batch_size % train.microbatches:
        works = -(-train.global_batch_size // train.microbatches) * train.microbatches
        where = f'config.{phase or "train."}global_batch_size'
        raise BadInput(
            'config.train.microbatches',
            f'is {train.microbatches}, which does not divide {where[7:]}={train.global_batch_size}',
            f'a divisor of {train.global_batch_size}',
            f'--{where}={works}',
        )
    _check_schedule(config, phase)


def _check_schedule(config: Config, phase: str) -> None:
    """Checks that warm-up and decay fit into the steps, and that the decay has an end; phase as in `check_phase`."""
    optimizer, steps, section = config.optimizer, config.train.steps, phase or 'optimizer.'
    whole = f'{"the phase" if phase else "the run"} has steps'
    if optimizer.warmup_steps > steps:
        where = f'config.{section}warmup_steps'
        raise BadInput(
            where,
            f'is {optimizer.warmup_steps}, more than {whole}',
            f'at most {phase or "train."}steps={steps}',
            f'--{where}={steps // 10}',
        )
    if optimizer.schedule == 'wsd' and optimizer.warmup_steps + optimizer.decay_steps > steps:
        where, most = f'config.{section}decay_steps', steps - optimizer.warmup_steps
        sum_of = f', with warmup_steps={optimizer.warmup_steps}' if optimizer.warmup_steps else ''
        raise BadInput(
            where,
            f'is {optimizer.decay_steps}{sum_of}, more than {whole}',
            f'at most {most}: {phase or "train."}steps={steps} without the warm-up',
            f'--{where}={most}' if most else '',
        )
    if optimizer.schedule == 'wsd' and optimizer.decay == 'inverse_sqrt' and not optimizer.final_fraction:
        where = f'config.{section}final_fraction'
        raise BadInput(where, "is 0, which decay='inverse_sqrt' never reaches", 'a number above 0', f'--{where}=0.1')


def _check_sources(data: Data, phase: str) -> None:
    if not mixes_sources(data):
        return
    where = f'config.{phase or "data."}{"source_weights" if data.source_weights else "source_temperature"}'
    if is_records(data.source):
        raise BadInput(where, 'is set, and records are one source', 'text')
    if data.bucket_lengths:
        found = f'is set, and data.bucket_lengths is {data.bucket_lengths}'
        raise BadInput(
            where, found, 'rows of one length', '--config.data.packing=True --config.data.bucket_lengths="()"'
        )


def _check_batch_warmup(train: Train, phase: str) -> None:
    first, steps, last = train.first_batch_size, train.batch_warmup_steps, train.global_batch_size
    prefix = phase or 'train.'
    if bool(first) != bool(steps):
        missing, present = ('batch_warmup_steps', 'first_batch_size')[:: 1 if first else -1]
        found = f'is 0, and {present} is {first or steps:,}'
        raise BadInput(f'config.{prefix}{missing}', found, 'both, for a batch-size warm-up, or neither')
    if first and (first >= last or last % first):
        divisors = [size for size in range(1, last) if last % size == 0]
        near = min(divisors, key=lambda size: abs(size - first), default=0)
        raise BadInput(
            f'config.{prefix}first_batch_size',
            f'is {first}, and {prefix}global_batch_size is {last}',
            'a smaller number that divides it, because all batches of the warm-up are multiples of the first',
            f'--config.{prefix}first_batch_size={near}',
        )
    if steps > train.steps:
        raise BadInput(
            f'config.{prefix}batch_warmup_steps',
            f'is {steps:,}, more than {"the phase" if phase else "the run"} has steps',
            f'at most {prefix}steps={train.steps:,}',
        )
    if first and train.reduction == 'exact' and first % train.exact_shards:
        found = f'is {first}, and train.exact_shards={train.exact_shards} does not divide it'
        raise BadInput(f'config.{prefix}first_batch_size', found, f'a multiple of {train.exact_shards}')


def _check_buckets(config: Config) -> None:
    data, where = config.data, 'config.data.bucket_lengths'
    if data.packing or is_records(data.source):
        found = 'data.packing fills the rows' if data.packing else 'records are rows already'
        raise BadInput(where, f'is {data.bucket_lengths}, and {found}', '() with packing or tfrecord:GLOB')
    longest = max(phase.data.sequence_length for phase in config.in_phases)
    if data.bucket_lengths[-1] >= longest:
        expected = f'lengths below data.sequence_length={longest}, which is the longest already'
        shorter = tuple(length for length in data.bucket_lengths if length < longest)
        raise BadInput(where, f'is {data.bucket_lengths}', expected, f'--config.data.bucket_lengths="{shorter}"')


def check_exact(train: Train, phase: str = '') -> None:
    """Raises `BadInput` when `train.reduction='exact'` does not fit the batch; `phase` as in `check_phase`."""
    if train.reduction != 'exact':
        return
    if train.microbatches != 1:
        raise BadInput(
            'config.train.microbatches',
            f"is {train.microbatches}, and with train.reduction='exact' the shards are the microbatches",
            '1; more shards are smaller ones',
            '--config.train.microbatches=1',
        )
    if train.global_batch_size % train.exact_shards:
        where = f'config.{phase or "train."}global_batch_size'
        works = -(-train.global_batch_size // train.exact_shards) * train.exact_shards
        raise BadInput(
            'config.train.exact_shards',
            f'is {train.exact_shards}, which does not divide {where[7:]}={train.global_batch_size}',
            f'a power of two that divides {train.global_batch_size}',
            f'--{where}={works}',
        )
