"""The command line: python -m bert_jax COMMAND [--config=FILE.py[:VARIANT]] [--workdir=DIR] [--config.a.b=VALUE …]

Each command is a few lines that import what they need and call one function.
Exit status: 0 finished; 2 bad input, told in a message; 75 stopped and saved, run me again; anything else a fault.
"""

import dataclasses
import difflib
import errno
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from bert_jax import versions
from bert_jax.errors import BadInput, DeviceFault
from bert_jax.stopping import EXIT_BAD_INPUT, EXIT_RUN_AGAIN, StopRequest, leave

try:
    from absl import flags

    from bert_jax.config import Config, resolve, unknown_field
except ModuleNotFoundError:
    try:
        versions.check()
    except BadInput as error:
        sys.exit(print(f'bert_jax: {error}', file=sys.stderr) or EXIT_BAD_INPUT)
    raise

EXIT_FAULT = 1
_CANNOT_BE_USED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG}
_CANNOT_BE_USED |= {errno.ENOTDIR, errno.EISDIR}


@dataclasses.dataclass(frozen=True)
class Command:
    """A command: what it does in a line, an example, the flags that it needs and may take, and its function."""

    run: Callable[[flags.FlagValues, list[str]], int]
    does: str
    example: str
    flags: tuple[str, ...]
    arguments: str = ''


_FLAG_HELP = {
    'workdir': 'directory of a run',
    'input': 'text file, a line for each vector',
    'output': 'what to write: a directory (export), an .npy file (embed)',
    'from': 'a Hugging Face directory, or one of an original checkpoint (bert_config.json, bert_model.ckpt.*)',
    'beam': 'options of Apache Beam, for example --beam="--runner=DirectRunner"; see requirements-beam.txt',
    'shard': 'I/N: do part I (from 0) of N parts of the work; the last to finish puts the corpus together',
    'model': 'a workdir, an export or a Hugging Face directory',
    'source': 'other text to evaluate on, as data.source names it: text:GLOB, jsonl:GLOB, parquet:GLOB, tfds:NAME',
    'slurm': "options of sbatch: submit the runs as an array of SLURM ('' for none)",
    'target': 'tpu-v5e:4x4 (a chip and a topology), h200:2x8 (hosts x GPUs of each), or here',
}


def _define(command: Command, arguments: Sequence[str] = ()) -> flags.FlagValues:
    from ml_collections import config_flags

    values = flags.FlagValues()
    for name in command.flags:
        if name == 'config':
            config_flags.DEFINE_config_file(
                'config', None, 'config file FILE.py[:VARIANT]', flag_values=values, sys_argv=['', *arguments]
            )
        elif name == 'workdirs':
            flags.DEFINE_multi_string('workdir', [], 'directory of a run; may be repeated', flag_values=values)
        elif name == 'step':
            flags.DEFINE_integer('step', None, 'step of the checkpoint; the newest without it', flag_values=values)
        elif name == 'allow_change':
            does = 'fields, with commas, that may differ from those that the run was begun with; config.json records it'
            flags.DEFINE_list('allow_change', [], does, flag_values=values)
        elif name == 'top_k':
            flags.DEFINE_integer('top_k', 5, 'fillers to show', lower_bound=1, flag_values=values)
        elif name == 'distributed':
            does = (
                'join the processes of a TPU pod or of Open MPI; --nodistributed: alone, whatever the environment says'
            )
            flags.DEFINE_boolean('distributed', None, does, flag_values=values)
        elif name == 'devices':
            flags.DEFINE_integer('devices', None, 'how many devices there must be, over all hosts', flag_values=values)
        elif name == 'join_timeout':
            flags.DEFINE_integer('join_timeout', 300, 'seconds to wait for the other hosts', flag_values=values)
        elif name == 'price':
            flags.DEFINE_float('price', None, 'dollars of a chip and an hour', lower_bound=0.0, flag_values=values)
        elif name == 'search':
            flags.DEFINE_boolean('search', False, 'rank meshes, microbatches and remat policies', flag_values=values)
        elif name == 'scaling':
            does = 'predict the efficiency of 8 to 4096 such devices, split over data'
            flags.DEFINE_boolean('scaling', False, does, flag_values=values)
        elif name == 'tokenizer_only':
            flags.DEFINE_boolean('tokenizer_only', False, 'train and show the tokenizer, then stop', flag_values=values)
        elif name == 'seconds':
            flags.DEFINE_float('seconds', 20.0, 'how long to measure', lower_bound=0.0, flag_values=values)
        elif name == 'jobs':
            meaning = 'runs at a time (1; under SLURM all); 0 starts none and shows what there is'
            flags.DEFINE_integer('jobs', None, meaning, lower_bound=0, flag_values=values)
        elif name == 'sample':
            does = 'windows of text to mask words in, an eighth of them for pseudo-perplexity; 0: none'
            flags.DEFINE_integer('sample', 512, does, lower_bound=0, flag_values=values)
        elif name == 'show':
            flags.DEFINE_integer('show', 0, 'rows of the first batch to print', lower_bound=0, flag_values=values)
        elif name == 'seeds':
            does = 'runs, each with a seed of its own; as many as before, or one'
            flags.DEFINE_integer('seeds', None, does, lower_bound=1, flag_values=values)
        elif name == 'workers':
            flags.DEFINE_integer('workers', None, 'processes; as many as cores without it', 1, flag_values=values)
        else:
            flags.DEFINE_string(name, None, _FLAG_HELP[name], flag_values=values)
    flags.DEFINE_boolean('json', False, 'write one JSON object to standard output, nothing else', flag_values=values)
    return values


def _prepare(values: flags.FlagValues, _: list[str]) -> int:
    from bert_jax.text import prepare

    config, initial = _config(values), None
    if config.init:
        from bert_jax.initial import initial_tokenizer

        initial = initial_tokenizer(config.init)
    if values.tokenizer_only:
        preview = prepare.tokenizer_preview(config.data, config.tokenizer, initial=initial)
        _tell(values, preview, json.dumps(preview, indent=2, ensure_ascii=False))
        return 0
    shard = None if values.shard is None else _parsed_shard(values.shard)
    beam = None if values.beam is None else values.beam.split()
    workers = values.workers or len(os.sched_getaffinity(0))
    summary = prepare.prepare(config.data, config.tokenizer, initial=initial, workers=workers, shard=shard, beam=beam)
    if isinstance(summary, prepare.Unfinished):
        text = (
            f'Shard {values.shard} is done; {summary.pieces_left} of {summary.pieces} pieces are left to other shards.'
        )
        _tell(values, dataclasses.asdict(summary), text)
        return 0
    as_json, text = dataclasses.asdict(summary), _describe_corpus(summary)
    if values.show:
        from bert_jax.data.show import describe_rows

        as_json['rows'] = _first_rows(config, values.show)
        text += '\n' + describe_rows(as_json['rows'])
    _tell(values, as_json, text)
    return 0


def _parsed_shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition('/')
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        expected = 'I/N, I from 0 to N - 1: which of N parts of the work this process does'
        raise BadInput('--shard', f'is {text!r}', expected, '--shard=$SLURM_ARRAY_TASK_ID/8 with --array=0-7')
    return int(number), int(count)


def _first_rows(config: Config, num_rows: int) -> list[list[dict[str, Any]]]:
    """The first rows that a run of this config would train on, decoded."""
    from bert_jax.config import in_phases
    from bert_jax.data.batches import CorpusStream
    from bert_jax.data.show import decode_rows
    from bert_jax.text.corpus import load_corpus

    corpus, phase = load_corpus(config.data.corpus, config.data.local_copy), in_phases(config)[0]
    stream = CorpusStream(corpus, phase.data, 'train', batch_size=num_rows, seed=config.train.seed)
    return decode_rows(stream.batch(0), corpus.tokenizer, phase.data.pairing)


def _describe_corpus(summary: Any) -> str:
    dropped = ', '.join(f'{count:,} {reason.replace("_", " ")}' for reason, count in summary.dropped.items())
    return (
        f'Corpus {summary.path}: {summary.documents:,} documents, {summary.sentences:,} sentences, '
        f'{summary.tokens:,} tokens; {summary.tokens_per_word:.2f} tokens a word, '
        f'{summary.unknown_rate:.2%} unknown; {summary.seconds:.0f} s' + (f'\n  dropped: {dropped}' if dropped else '')
    )


def _doctor(values: flags.FlagValues, _: list[str]) -> int:
    from bert_jax.doctor import describe, diagnose, problem_of

    try:
        config = _config(values)
    except BadInput as error:
        problems = [problem_of(error)]
    else:
        problems = diagnose(config, values.workdir)
    _tell(values, {'problems': [dataclasses.asdict(problem) for problem in problems]}, describe(problems))
    return EXIT_BAD_INPUT if any(problem.level == 'error' for problem in problems) else 0


def _plan(values: flags.FlagValues, _: list[str]) -> int:
    target_name, config = _required(values, 'target'), _config(values)
    if config.phases and (values.search or values.scaling):
        raise BadInput(
            'config.phases',
            f'has {len(config.phases)} phases',
            'one at a time with --search and --scaling',
            '--config.phases="()" and the fields of a phase, for example --config.data.sequence_length=512',
        )
    if target_name == 'here':
        _select_platform(config)
    else:
        _only_cpu()
    from bert_jax.plan import phased, planning, scaling, search

    if values.search:
        ranking = search.search(config, planning.find_target(target_name, config))
        _tell(values, search.to_json(ranking, values.price), search.describe(ranking, values.price))
        return 0
    run = phased.make_run_plan(config, target_name)
    if values.scaling:
        scales = scaling.scaling(run.plans[0])
        _tell(values, scaling.to_json(scales), scaling.describe(run.plans[0], scales))
        return 0
    _tell(values, run.to_json(values.price), phased.describe(run, values.price))
    return 0


def _only_cpu() -> None:
    """A plan for elsewhere needs no device, and must not wait for one."""
    import jax

    jax.config.update('jax_platforms', 'cpu')


def _train(values: flags.FlagValues, _: list[str]) -> int:
    workdir = _required(values, 'workdir')
    with StopRequest() as stop:
        config = _run_config(values, workdir)
        from bert_jax import hosts

        hosts.join(values.distributed, values.join_timeout, config.train.watchdog_seconds)
        _select_platform(config)
        hosts.check_devices(values.devices)
        from bert_jax.train.loop import train

        outcome = train(config, workdir, stop, values.allow_change)
    next_steps = (
        f'Next: python -m bert_jax evaluate --workdir={workdir}\n'
        f'      python -m bert_jax export --workdir={workdir} --output={workdir}/export'
    )
    if hosts.is_first():
        _tell(values, dataclasses.asdict(outcome), next_steps if outcome.finished else '')
    return 0 if outcome.finished else EXIT_RUN_AGAIN


def _finetune(values: flags.FlagValues, _: list[str]) -> int:
    workdir = _required(values, 'workdir')
    from bert_jax.finetune.config import resolve
    from bert_jax.finetune.workdirs import read_plan

    config, num_seeds = (resolve(_fields(values.config)), 1) if values.config is not None else read_plan(workdir)
    from bert_jax import hosts

    hosts.join(values.distributed, values.join_timeout, config.train.watchdog_seconds)
    _select_platform(config)
    hosts.check_devices(values.devices)
    from bert_jax.finetune.command import describe, finetune

    summary = finetune(config, workdir, values.seeds or num_seeds)
    if hosts.is_first():
        text = f'{describe(summary)}\nNext: python -m bert_jax export --workdir={workdir} --output={workdir}/export'
        _tell(values, dataclasses.asdict(summary), text if summary.finished else '')
    return 0 if summary.finished else EXIT_RUN_AGAIN


def _evaluate(values: flags.FlagValues, _: list[str]) -> int:
    from bert_jax.finetune.workdirs import seeds_of

    workdir = _required(values, 'workdir')
    if seeds := seeds_of(workdir):
        return _evaluate_finetuned(values, workdir, seeds[0])
    _select_platform(_run_config(values, workdir))
    from bert_jax.evaluate import describe, evaluate

    given = _config(values) if values.config is not None else None
    workers = len(os.sched_getaffinity(0))
    result = evaluate(
        workdir, values.step, source=values.source or '', sample=values.sample, config=given, workers=workers
    )
    _tell(values, result, describe(result))
    return 0


def _evaluate_finetuned(values: flags.FlagValues, workdir: str, seed: str) -> int:
    from bert_jax.finetune.workdirs import read_run

    _select_platform(read_run(seed))
    from bert_jax.finetune.command import describe
    from bert_jax.finetune.evaluate import as_json, evaluate

    summary = evaluate(workdir, values.step)
    _tell(values, as_json(summary), describe(summary))
    return 0


def _export(values: flags.FlagValues, _: list[str]) -> int:
    from bert_jax.export import export
    from bert_jax.finetune.workdirs import seeds_of

    output, workdir = _required(values, 'output'), _required(values, 'workdir')
    _keep_programs()
    if seeds_of(workdir):
        return _export_finetuned(values, workdir, output)
    card = _config(values).card if values.config is not None else None
    proof = export(workdir, output, values.step, card)
    _tell(
        values,
        proof,
        f'Exported step {proof["step"]} to {output}: {proof["logits_compared"]:,} logits compared with '
        f'{proof["compared_with"]}, largest difference {proof["largest_difference"]:.1e}.\n'
        f'Next: python -m bert_jax fill-mask --model={output} "the [MASK] of the file"\n'
        f"      transformers.pipeline('fill-mask', model='{output}')",
    )
    return 0


def _export_finetuned(values: flags.FlagValues, workdir: str, output: str) -> int:
    from bert_jax.finetune.export import PIPELINES, export

    proof = export(workdir, output, values.step)
    _tell(
        values,
        proof,
        f'Exported step {proof["step"]} of {proof["workdir"]} to {output}: {proof["logits_compared"]:,} logits '
        f'compared with {proof["compared_with"]}, largest difference {proof["largest_difference"]:.1e}.\n'
        f"Next: transformers.pipeline('{PIPELINES[proof['architecture']]}', model='{output}')",
    )
    return 0


def _import(values: flags.FlagValues, _: list[str]) -> int:
    source, workdir = _required(values, 'from'), _required(values, 'workdir')
    data = _config(values).data if values.config is not None else None
    from bert_jax.importing import import_model

    summary = import_model(source, workdir, data)
    _tell(
        values,
        summary,
        f'Imported {source} to {workdir}: {summary["parameters"]:,} parameters, vocabulary {summary["vocab_size"]:,}\n'
        f'Next: python -m bert_jax export --workdir={workdir} --output={workdir}/export\n'
        f'      python -m bert_jax train --config=configs/continue.py --config.init={workdir} --workdir=…',
    )
    return 0


def _fill_mask(values: flags.FlagValues, texts: list[str]) -> int:
    directory = _required(values, 'model')
    if not texts:
        raise BadInput('fill-mask', 'no text given', 'one or more texts with [MASK]', COMMANDS['fill-mask'].example)
    from bert_jax.pretrained import load_pretrained

    _keep_programs()
    pretrained = load_pretrained(directory)
    answers = [pretrained.fill_mask(text, values.top_k) for text in texts]
    shown = []
    for text, slots in zip(texts, answers, strict=True):
        shown.append(text)
        shown += ['    ' + '  '.join(f'{filler.token} {filler.score:.0%}' for filler in slot) for slot in slots]
    results = [[dataclasses.asdict(filler) for filler in slot] for slots in answers for slot in slots]
    _tell(values, {'results': results}, '\n'.join(shown))
    return 0


def _embed(values: flags.FlagValues, _: list[str]) -> int:
    directory, text, output = (_required(values, name) for name in ('model', 'input', 'output'))
    from bert_jax.embed import check, embed

    check(text, output)
    from bert_jax.pretrained import load_pretrained

    _keep_programs()
    done = embed(load_pretrained(directory), text, output)
    cut = f'; {done.truncated:,} too long, cut' if done.truncated else ''
    told = f'{done.output}: {done.lines:,} vectors of {done.hidden_size:,}, {done.seconds:.1f} s{cut}'
    _tell(values, dataclasses.asdict(done), told)
    return 0


def _report(values: flags.FlagValues, _: list[str]) -> int:
    from bert_jax.report import summarize, write_report

    if not values.workdir:
        raise BadInput('--workdir', 'is missing', 'the directory of a run', COMMANDS['report'].example)
    path = str(write_report(values.workdir))
    _tell(values, {'report': path}, f'{summarize(values.workdir)}\nWrote {path}')
    return 0


def _bench(values: flags.FlagValues, _: list[str]) -> int:
    config = _config(values)
    _select_platform(config)
    from bert_jax.bench import bench, describe

    result = bench(config, values.seconds)
    _tell(values, dataclasses.asdict(result), describe(result))
    return 0


def _sweep(values: flags.FlagValues, _: list[str]) -> int:
    from bert_jax.sweep.command import sweep
    from bert_jax.sweep.runs import check_keys, expand

    workdir = _required(values, 'workdir')
    if values.config is None:
        raise BadInput('--config', 'is missing', 'a sweep file', '--config=configs/sweeps/learning_rate.py')
    fields = _fields(values.config)
    check_keys(fields)
    base = _parse('train', [f'--config={fields["base"]}'])[0].config
    runs = expand(fields, _fields(base), workdir)
    for run in runs:
        _check_flags(run)
    status, as_json, text = sweep(runs, workdir, jobs=values.jobs, slurm=values.slurm)
    _tell(values, as_json, text)
    return status


def _check_flags(run: Any) -> None:
    """Raises BadInput when a run's command would not give its config: not every value can be written on one."""
    try:
        same = _config(_parse('train', run.flags)[0]) == run.config
    except BadInput:
        same = False
    if not same:
        found = f'the command line cannot say {run.varied}'
        raise BadInput(f'run {run.name}', found, 'numbers, texts, True and False', 'a sweep for each base config')


COMMANDS = {
    'prepare': Command(
        _prepare,
        'reads text, trains the tokenizer unless one is given, writes the corpus',
        'python -m bert_jax prepare --config=configs/demo.py',
        ('config', 'tokenizer_only', 'show', 'workers', 'shard', 'beam'),
    ),
    'doctor': Command(
        _doctor,
        'says what would go wrong, before a device is used',
        'python -m bert_jax doctor --config=configs/demo.py',
        ('config', 'workdir'),
    ),
    'plan': Command(
        _plan,
        'whether a run fits devices that need not be here, how long it takes, what it costs',
        'python -m bert_jax plan --config=configs/bert.py:base --target=tpu-v5e:4x4 --price=1.20',
        ('config', 'target', 'price', 'search', 'scaling'),
    ),
    'train': Command(
        _train,
        'trains, or continues what the workdir holds',
        'python -m bert_jax train --config=configs/demo.py --workdir=runs/demo',
        ('config', 'workdir', 'allow_change', 'distributed', 'devices', 'join_timeout'),
    ),
    'finetune': Command(
        _finetune,
        'learns a task from labelled examples (classes, numbers, tags or spans), or continues what the workdir holds',
        'python -m bert_jax finetune --config=configs/finetune/glue.py:sst2 --config.task.directory=glue/SST-2 '
        '--config.init=models/mine --workdir=runs/sst2 --seeds=5',
        ('config', 'workdir', 'seeds', 'distributed', 'devices', 'join_timeout'),
    ),
    'evaluate': Command(
        _evaluate,
        'loss and accuracy on held-out text, next to the baselines to read them by',
        'python -m bert_jax evaluate --workdir=runs/demo',
        ('config', 'workdir', 'step', 'source', 'sample'),
    ),
    'export': Command(
        _export,
        'writes a Hugging Face model directory, with its proof',
        'python -m bert_jax export --workdir=runs/demo --output=runs/demo/export',
        ('config', 'workdir', 'output', 'step'),
    ),
    'import': Command(
        _import,
        'converts a Hugging Face directory or a Google checkpoint into a workdir',
        'python -m bert_jax import --from=models/bert-base-uncased --workdir=runs/base',
        ('from', 'workdir', 'config'),
    ),
    'fill-mask': Command(
        _fill_mask,
        'the best fillers for each [MASK]',
        'python -m bert_jax fill-mask --model=runs/demo "the [MASK] of the file"',
        ('model', 'top_k'),
        ' "TEXT WITH [MASK]" …',
    ),
    'embed': Command(
        _embed,
        'mean-pooled vectors of the lines of a file',
        'python -m bert_jax embed --model=runs/demo/export --input=lines.txt --output=vectors.npy',
        ('model', 'input', 'output'),
    ),
    'report': Command(
        _report,
        'report.html for one workdir, or several side by side',
        'python -m bert_jax report --workdir=runs/demo',
        ('workdirs',),
    ),
    'sweep': Command(
        _sweep,
        'every run that a sweep file names, then the table and the picture of all',
        'python -m bert_jax sweep --config=configs/sweeps/learning_rate.py --workdir=runs/learning_rate',
        ('config', 'workdir', 'jobs', 'slurm'),
    ),
    'bench': Command(
        _bench,
        'tokens per second, MFU and memory of the real train step on what is here',
        'python -m bert_jax bench --config=configs/bert.py:mini --config.train.global_batch_size=32',
        ('config', 'seconds'),
    ),
}


def _tell(values: flags.FlagValues, as_json: dict[str, Any], text: str) -> None:
    if values.json:
        print(json.dumps(as_json, ensure_ascii=False))
    elif text:
        print(text)


def _required(values: flags.FlagValues, name: str) -> str:
    if not values[name].value:
        raise BadInput(f'--{name}', 'is missing', _FLAG_HELP[name])
    return values[name].value


def _config(values: flags.FlagValues) -> Config:
    if values.config is None:
        raise BadInput('--config', 'is missing', 'a config file', '--config=configs/demo.py')
    return _resolved(values.config)


def _resolved(given: Any) -> Config:
    return resolve(_fields(given))


def _fields(given: Any) -> dict[str, Any]:
    """What a config file returned, as a dict."""
    try:
        return given.to_dict()
    except BadInput:
        raise
    except Exception as error:  # a config file is its owner's program: it may raise anything
        found = f'cannot be used ({type(error).__name__}: {error})'
        raise BadInput(
            '--config', found, 'a Python file whose get_config() returns a ConfigDict', '--config=configs/demo.py'
        ) from error


def _run_config(values: flags.FlagValues, workdir: str) -> Config:
    """The config given, or the one that the workdir holds."""
    if values.config is not None:
        return _resolved(values.config)
    from bert_jax.run import load_config

    return load_config(workdir)


def _select_platform(config: Any) -> None:
    from bert_jax.devices import select_platform

    select_platform(config.platform)
    _keep_programs()


def _keep_programs() -> None:
    from bert_jax.program_cache import keep_programs

    keep_programs()


def _root(name: str) -> type:
    """The kind of config that a command takes."""
    if name != 'finetune':
        return Config
    from bert_jax.finetune.config import FinetuneConfig

    return FinetuneConfig


def _parse(name: str, arguments: list[str]) -> tuple[flags.FlagValues, list[str]]:
    """Flags and the rest of the arguments; what does not parse becomes `BadInput`."""
    values = _define(COMMANDS[name], arguments)
    try:
        rest = values([name, *arguments])[1:]
    except (AttributeError, KeyError) as error:  # a config file or an override that sets a field which does not exist
        given = [argument[2:].partition('=')[0] for argument in arguments if argument.startswith('--config.')]
        from bert_jax.config import Phase, field_names

        root = _root(name)
        known = {*field_names(root), *field_names(Phase, 'phases[].')}
        for path in (path.removeprefix('config.') for path in given):
            if re.sub(r'\[\d+\]', '[]', path) not in known:
                raise unknown_field(path, root) from error
        raise BadInput('--config', str(error).strip('"\'')) from error
    except flags.UnrecognizedFlagError as error:
        near = difflib.get_close_matches(error.flagname, list(values), n=1)
        mend = f'did you mean --{near[0]}?' if near else f'python -m bert_jax {name} --help'
        raise BadInput(f'--{error.flagname}', f'is not a flag of {name}', '', mend) from error
    except (flags.Error, OSError, IndexError, TypeError, ValueError, SyntaxError, ImportError) as error:
        raise BadInput('command line', ' '.join(str(error).split()), '', f'python -m bert_jax {name} --help') from error
    if rest and not COMMANDS[name].arguments:
        raise BadInput(
            'command line', f'{rest[0]!r} is not a flag', '--NAME=VALUE', f'python -m bert_jax {name} --help'
        )
    return values, rest


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f'  {name:{width}}  {command.does}' for name, command in COMMANDS.items()]
    return '\n'.join([__doc__, *lines, '', 'python -m bert_jax COMMAND --help tells more.'])


def _help(name: str) -> str:
    command, values = COMMANDS[name], _define(COMMANDS[name])
    lines = [f'python -m bert_jax {name} [--flag=VALUE …]{command.arguments}: {command.does}', '']
    lines += [f'  --{flag}: {values[flag].help}' for flag in sorted(values) if flag in values]
    lines += ['', f'Example: {command.example}']
    return '\n'.join(lines)


def main(argv: list[str]) -> int:
    """Runs one command; returns its exit status."""
    if len(argv) < 2 or argv[1] in ('help', '-h', '--help'):
        print(_overview())
        return 0 if len(argv) > 1 else EXIT_BAD_INPUT
    name, arguments = argv[1], argv[2:]
    try:
        if name not in COMMANDS:
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            mend = f'did you mean {near[0]}?' if near else 'python -m bert_jax --help'
            raise BadInput(name, 'is not a command', ', '.join(COMMANDS), mend)
        if '--help' in arguments or '-h' in arguments:
            print(_help(name))
            return 0
        versions.check()
        values, rest = _parse(name, arguments)
        return COMMANDS[name].run(values, rest)
    except BadInput as error:
        print(f'bert_jax: {error}', file=sys.stderr)
        return EXIT_FAULT if isinstance(error, DeviceFault) else EXIT_BAD_INPUT
    except OSError as error:
        if error.errno not in _CANNOT_BE_USED:
            raise
        place = error.filename or 'the disk'
        told = BadInput(str(place), f'cannot be used ({error.strerror})', 'a place with room, and the right to use it')
        print(f'bert_jax: {told}', file=sys.stderr)
        return EXIT_BAD_INPUT
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error)):
            raise
        told = BadInput(
            name,
            f'does not fit into memory ({(str(error).splitlines() or ["no room"])[0][:200]})',
            'a smaller model or batch, more train.microbatches, or more devices to split over',
            'python -m bert_jax plan --target=… says what fits',
        )
        print(f'bert_jax: {told}', file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print('bert_jax: interrupted before anything was trained; the same command starts again.', file=sys.stderr)
        return EXIT_RUN_AGAIN


if __name__ == '__main__':
    leave(main(sys.argv))
