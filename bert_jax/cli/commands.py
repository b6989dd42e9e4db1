"""The commands: each is a few lines that import what they need and call one function."""

import dataclasses
import json
import os
from typing import Any

from absl import flags

from bert_jax.cli.flags import Command, config_of, config_of_run, fields_of, parse, required, tell
from bert_jax.config import Config
from bert_jax.errors import BadInput
from bert_jax.runtime.stopping import EXIT_BAD_INPUT, EXIT_RUN_AGAIN, StopRequest


def _prepare(values: flags.FlagValues, _: list[str]) -> int:
    from bert_jax.text import prepare

    config, initial = config_of(values), None
    if config.init:
        from bert_jax.pretrained.initialize import initial_tokenizer

        initial = initial_tokenizer(config.init)
    if values.tokenizer_only:
        preview = prepare.tokenizer_preview(config.data, config.tokenizer, initial=initial)
        tell(values, preview, json.dumps(preview, indent=2, ensure_ascii=False))
        return 0
    shard = None if values.shard is None else _parsed_shard(values.shard)
    beam = None if values.beam is None else values.beam.split()
    workers = values.workers or len(os.sched_getaffinity(0))
    summary = prepare.prepare(config.data, config.tokenizer, initial=initial, workers=workers, shard=shard, beam=beam)
    if isinstance(summary, prepare.Unfinished):
        text = (
            f'Shard {values.shard} is done; {summary.pieces_left} of {summary.pieces} chunks are left to other shards.'
        )
        tell(values, dataclasses.asdict(summary), text)
        return 0
    as_json, text = dataclasses.asdict(summary), _describe_corpus(summary)
    if values.show:
        from bert_jax.data.show import describe_rows

        as_json['rows'] = _first_rows(config, values.show)
        text += '\n' + describe_rows(as_json['rows'])
    tell(values, as_json, text)
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
    from bert_jax.cli.doctor import describe, diagnose, problem_of

    try:
        config = config_of(values)
    except BadInput as error:
        problems = [problem_of(error)]
    else:
        problems = diagnose(config, values.workdir)
    tell(values, {'problems': [dataclasses.asdict(problem) for problem in problems]}, describe(problems))
    return EXIT_BAD_INPUT if any(problem.level == 'error' for problem in problems) else 0


def _plan(values: flags.FlagValues, _: list[str]) -> int:
    target_name, config = required(values, 'target'), config_of(values)
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
        tell(values, search.to_json(ranking, values.price), search.describe(ranking, values.price))
        return 0
    run = phased.make_run_plan(config, target_name)
    if values.scaling:
        scales = scaling.scaling(run.plans[0])
        tell(values, scaling.to_json(scales), scaling.describe(run.plans[0], scales))
        return 0
    tell(values, run.to_json(values.price), phased.describe(run, values.price))
    return 0


def _only_cpu() -> None:
    """A plan for elsewhere needs no device, and must not wait for one."""
    import jax

    jax.config.update('jax_platforms', 'cpu')


def _train(values: flags.FlagValues, _: list[str]) -> int:
    workdir = required(values, 'workdir')
    with StopRequest() as stop:
        config = config_of_run(values, workdir)
        from bert_jax.runtime import processes

        processes.join(values.distributed, values.join_timeout, config.train.watchdog_seconds)
        _select_platform(config)
        processes.check_devices(values.devices)
        from bert_jax.pretrain import train

        outcome = train(config, workdir, stop, values.allow_change)
    next_steps = (
        f'Next: python -m bert_jax evaluate --workdir={workdir}\n'
        f'      python -m bert_jax export --workdir={workdir} --output={workdir}/export'
    )
    if processes.is_first():
        tell(values, dataclasses.asdict(outcome), next_steps if outcome.finished else '')
    return 0 if outcome.finished else EXIT_RUN_AGAIN


def _finetune(values: flags.FlagValues, _: list[str]) -> int:
    workdir = required(values, 'workdir')
    from bert_jax.config.finetuning import resolve
    from bert_jax.finetune.workdirs import read_plan

    config, num_seeds = (resolve(fields_of(values.config)), 1) if values.config is not None else read_plan(workdir)
    from bert_jax.runtime import processes

    processes.join(values.distributed, values.join_timeout, config.train.watchdog_seconds)
    _select_platform(config)
    processes.check_devices(values.devices)
    from bert_jax.finetune.command import describe, finetune

    summary = finetune(config, workdir, values.seeds or num_seeds)
    if processes.is_first():
        text = f'{describe(summary)}\nNext: python -m bert_jax export --workdir={workdir} --output={workdir}/export'
        tell(values, dataclasses.asdict(summary), text if summary.finished else '')
    return 0 if summary.finished else EXIT_RUN_AGAIN


def _evaluate(values: flags.FlagValues, _: list[str]) -> int:
    from bert_jax.finetune.workdirs import seeds_of

    workdir = required(values, 'workdir')
    if seeds := seeds_of(workdir):
        return _evaluate_finetuned(values, workdir, seeds[0])
    _select_platform(config_of_run(values, workdir))
    from bert_jax.evaluation.evaluate import describe, evaluate

    given = config_of(values) if values.config is not None else None
    workers = len(os.sched_getaffinity(0))
    result = evaluate(
        workdir, values.step, source=values.source or '', sample=values.sample, config=given, workers=workers
    )
    tell(values, result, describe(result))
    return 0


def _evaluate_finetuned(values: flags.FlagValues, workdir: str, seed: str) -> int:
    from bert_jax.finetune.workdirs import read_run

    _select_platform(read_run(seed))
    from bert_jax.finetune.command import describe
    from bert_jax.finetune.evaluate import as_json, evaluate

    summary = evaluate(workdir, values.step)
    tell(values, as_json(summary), describe(summary))
    return 0


def _export(values: flags.FlagValues, _: list[str]) -> int:
    from bert_jax.finetune.workdirs import seeds_of
    from bert_jax.pretrained.export import export

    output, workdir = required(values, 'output'), required(values, 'workdir')
    _keep_programs()
    if seeds_of(workdir):
        return _export_finetuned(values, workdir, output)
    card = config_of(values).card if values.config is not None else None
    proof = export(workdir, output, values.step, card)
    next_steps = (
        f'Next: python -m bert_jax fill-mask --model={output} "the [MASK] of the file"\n'
        f"      transformers.pipeline('fill-mask', model='{output}')"
    )
    tell(values, proof, f'{_describe_proof(proof, output)}\n{next_steps}')
    return 0


def _export_finetuned(values: flags.FlagValues, workdir: str, output: str) -> int:
    from bert_jax.finetune.export import PIPELINES, export

    proof = export(workdir, output, values.step)
    next_step = f"Next: transformers.pipeline('{PIPELINES[proof['architecture']]}', model='{output}')"
    tell(values, proof, f'{_describe_proof(proof, output, " of " + proof["workdir"])}\n{next_step}')
    return 0


def _describe_proof(proof: dict[str, Any], output: str, of: str = '') -> str:
    return (
        f'Exported step {proof["step"]}{of} to {output}: {proof["logits_compared"]:,} logits compared with '
        f'{proof["compared_with"]}, largest difference {proof["largest_difference"]:.1e}.'
    )


def _import(values: flags.FlagValues, _: list[str]) -> int:
    source, workdir = required(values, 'from'), required(values, 'workdir')
    data = config_of(values).data if values.config is not None else None
    from bert_jax.pretrained.convert import import_model

    summary = import_model(source, workdir, data)
    tell(
        values,
        summary,
        f'Imported {source} to {workdir}: {summary["parameters"]:,} parameters, vocabulary {summary["vocab_size"]:,}\n'
        f'Next: python -m bert_jax export --workdir={workdir} --output={workdir}/export\n'
        f'      python -m bert_jax train --config=configs/continue.py --config.init={workdir} --workdir=…',
    )
    return 0


def _fill_mask(values: flags.FlagValues, texts: list[str]) -> int:
    directory = required(values, 'model')
    if not texts:
        raise BadInput('fill-mask', 'no text given', 'one or more texts with [MASK]', COMMANDS['fill-mask'].example)
    from bert_jax.pretrained.load import load_pretrained

    _keep_programs()
    pretrained = load_pretrained(directory)
    answers = [pretrained.fill_mask(text, values.top_k) for text in texts]
    shown = []
    for text, slots in zip(texts, answers, strict=True):
        shown.append(text)
        shown += ['    ' + '  '.join(f'{filler.token} {filler.score:.0%}' for filler in slot) for slot in slots]
    results = [[dataclasses.asdict(filler) for filler in slot] for slots in answers for slot in slots]
    tell(values, {'results': results}, '\n'.join(shown))
    return 0


def _embed(values: flags.FlagValues, _: list[str]) -> int:
    directory, text, output = (required(values, name) for name in ('model', 'input', 'output'))
    from bert_jax.pretrained.embed import check, embed

    check(text, output)
    from bert_jax.pretrained.load import load_pretrained

    _keep_programs()
    done = embed(load_pretrained(directory), text, output)
    cut = f'; {done.truncated:,} too long, cut' if done.truncated else ''
    told = f'{done.output}: {done.lines:,} vectors of {done.hidden_size:,}, {done.seconds:.1f} s{cut}'
    tell(values, dataclasses.asdict(done), told)
    return 0


def _report(values: flags.FlagValues, _: list[str]) -> int:
    from bert_jax.report import summarize, write_report

    if not values.workdir:
        raise BadInput('--workdir', 'is missing', 'the directory of a run', COMMANDS['report'].example)
    path = str(write_report(values.workdir))
    tell(values, {'report': path}, f'{summarize(values.workdir)}\nWrote {path}')
    return 0


def _bench(values: flags.FlagValues, _: list[str]) -> int:
    config = config_of(values)
    _select_platform(config)
    from bert_jax.plan.bench import bench, describe

    result = bench(config, values.seconds)
    tell(values, dataclasses.asdict(result), describe(result))
    return 0


def _sweep(values: flags.FlagValues, _: list[str]) -> int:
    from bert_jax.sweep.command import sweep
    from bert_jax.sweep.runs import check_keys, expand

    workdir = required(values, 'workdir')
    if values.config is None:
        raise BadInput('--config', 'is missing', 'a sweep file', '--config=configs/sweeps/learning_rate.py')
    fields = fields_of(values.config)
    check_keys(fields)
    base = parse(COMMANDS['train'], [f'--config={fields["base"]}'])[0].config
    runs = expand(fields, fields_of(base), workdir)
    for run in runs:
        _check_flags(run)
    status, as_json, text = sweep(runs, workdir, jobs=values.jobs, slurm=values.slurm)
    tell(values, as_json, text)
    return status


def _check_flags(run: Any) -> None:
    """Raises BadInput when a run's command would not give its config: not every value can be written on one."""
    try:
        same = config_of(parse(COMMANDS['train'], run.flags)[0]) == run.config
    except BadInput:
        same = False
    if not same:
        found = f'the command line cannot say {run.varied}'
        raise BadInput(f'run {run.name}', found, 'numbers, texts, True and False', 'a sweep for each base config')


def _select_platform(config: Any) -> None:
    from bert_jax.runtime.devices import select_platform

    select_platform(config.platform)
    _keep_programs()


def _keep_programs() -> None:
    from bert_jax.runtime.compilation_cache import keep_programs

    keep_programs()


_ALL = (
    Command(
        'prepare',
        _prepare,
        'reads text, trains the tokenizer unless one is given, writes the corpus',
        'python -m bert_jax prepare --config=configs/demo.py',
        ('config', 'tokenizer_only', 'show', 'workers', 'shard', 'beam'),
    ),
    Command(
        'doctor',
        _doctor,
        'says what would go wrong, before a device is used',
        'python -m bert_jax doctor --config=configs/demo.py',
        ('config', 'workdir'),
    ),
    Command(
        'plan',
        _plan,
        'whether a run fits devices that need not be here, how long it takes, what it costs',
        'python -m bert_jax plan --config=configs/bert.py:base --target=tpu-v5e:4x4 --price=1.20',
        ('config', 'target', 'price', 'search', 'scaling'),
    ),
    Command(
        'train',
        _train,
        'trains, or continues what the workdir holds',
        'python -m bert_jax train --config=configs/demo.py --workdir=runs/demo',
        ('config', 'workdir', 'allow_change', 'distributed', 'devices', 'join_timeout'),
    ),
    Command(
        'finetune',
        _finetune,
        'learns a task from labelled examples (classes, numbers, tags or spans), or continues what the workdir holds',
        'python -m bert_jax finetune --config=configs/finetune/glue.py:sst2 --config.task.directory=glue/SST-2 '
        '--config.init=models/mine --workdir=runs/sst2 --seeds=5',
        ('config', 'workdir', 'seeds', 'distributed', 'devices', 'join_timeout'),
    ),
    Command(
        'evaluate',
        _evaluate,
        'loss and accuracy on held-out text, next to the baselines to read them by',
        'python -m bert_jax evaluate --workdir=runs/demo',
        ('config', 'workdir', 'step', 'source', 'sample'),
    ),
    Command(
        'export',
        _export,
        'writes a Hugging Face model directory, with its proof',
        'python -m bert_jax export --workdir=runs/demo --output=runs/demo/export',
        ('config', 'workdir', 'output', 'step'),
    ),
    Command(
        'import',
        _import,
        'converts a Hugging Face directory or a Google checkpoint into a workdir',
        'python -m bert_jax import --from=models/bert-base-uncased --workdir=runs/base',
        ('from', 'workdir', 'config'),
    ),
    Command(
        'fill-mask',
        _fill_mask,
        'the best fillers for each [MASK]',
        'python -m bert_jax fill-mask --model=runs/demo "the [MASK] of the file"',
        ('model', 'top_k'),
        ' "TEXT WITH [MASK]" …',
    ),
    Command(
        'embed',
        _embed,
        'mean-pooled vectors of the lines of a file',
        'python -m bert_jax embed --model=runs/demo/export --input=lines.txt --output=vectors.npy',
        ('model', 'input', 'output'),
    ),
    Command(
        'report',
        _report,
        'report.html for one workdir, or several side by side',
        'python -m bert_jax report --workdir=runs/demo',
        ('workdirs',),
    ),
    Command(
        'sweep',
        _sweep,
        'every run that a sweep file names, then the table and the picture of all',
        'python -m bert_jax sweep --config=configs/sweeps/learning_rate.py --workdir=runs/learning_rate',
        ('config', 'workdir', 'jobs', 'slurm'),
    ),
    Command(
        'bench',
        _bench,
        'tokens per second, MFU and memory of the real train step on what is here',
        'python -m bert_jax bench --config=configs/bert.py:mini --config.train.global_batch_size=32',
        ('config', 'seconds'),
    ),
)
COMMANDS = {command.name: command for command in _ALL}
