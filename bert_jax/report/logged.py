"""Reads and checks what runs have logged in their workdirs."""

import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import Any

from etils import epath

from bert_jax.config import Config, resolve
from bert_jax.errors import BadInput
from bert_jax.evaluation import evaluation_file, ranking
from bert_jax.files import matching
from bert_jax.json_files import DamagedJson, parse_json, read_given_json
from bert_jax.report.quantities import (
    BY_LENGTH,
    FINAL,
    MASKED_WORDS,
    MFU,
    MLM_ACCURACY,
    MLM_LOSS,
    NSP_ACCURACY,
    NSP_LOSS,
    VALIDATION,
    Quantity,
    loss_at,
    must_be_number,
    probe,
    retrieval,
    task_metric,
)


@dataclasses.dataclass(frozen=True)
class LoggedRun:
    """A run as recorded in its workdir.

    Attributes:
      name: the name of the run in reports.
      config_json: the content of config.json: `config`, `fingerprint` and `versions`.
      metrics: the lines of metrics.jsonl merged by step, in ascending order.
      evaluation: the content of evaluation.json; {} if the run has not been evaluated. The losses by length also stand
        under `mlm_loss_by_length/LENGTH`.
      group: the name of the requested workdir; the seeds of a fine-tune share a group.
      workdir: the path of the workdir.
      history: the lines of history.jsonl; empty for a run of an early version.
      examples: the lines of examples.jsonl, one per evaluation.
      results: the metrics of a fine-tune at its last step, by name; {} until it has finished.
    """

    name: str
    config_json: dict[str, Any]
    metrics: list[dict[str, Any]]
    evaluation: dict[str, Any]
    group: str = ''
    workdir: str = ''
    history: tuple[dict[str, Any], ...] = ()
    examples: tuple[dict[str, Any], ...] = ()
    results: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def step(self) -> int:
        """The last logged step."""
        return self.metrics[-1]['step']

    @property
    def planned_steps(self) -> int | None:
        """The number of steps that the run was started for, if config.json has it."""
        train = self.config_json['config'].get('train')
        steps = train.get('steps') if isinstance(train, dict) else None
        if self.is_finetune:
            steps = (self.config_json.get('fingerprint') or {}).get('train.steps')
        return steps if isinstance(steps, int) else None

    @functools.cached_property
    def phases(self) -> Config | None:
        """The config of a pretraining run in phases; None for other runs, or a config that this version cannot read."""
        if not self.config_json['config'].get('phases'):
            return None
        try:
            return resolve(self.config_json['config'])
        except BadInput:
            return None

    @property
    def is_finetune(self) -> bool:
        return 'task' in self.config_json['config']

    @property
    def has_fixed_evaluation(self) -> bool:
        """Whether held-out losses do not depend on how the run masks in training (`train.fixed_evaluation`)."""
        train = self.config_json['config'].get('train')
        return isinstance(train, dict) and train.get('fixed_evaluation') is True

    def curve(self, key: str) -> tuple[list[int], list[float]]:
        """Returns the steps and the values logged under a key."""
        points = [(line['step'], line[key]) for line in self.metrics if line.get(key) is not None]
        return [step for step, _ in points], [value for _, value in points]

    def last(self, key: str) -> float | None:
        """Returns the last value logged under a key."""
        values = self.curve(key)[1]
        return values[-1] if values else None

    def validation(self, quantity: Quantity) -> float | None:
        """Returns the last value on held-out examples: that of `evaluate`, or else the last logged one."""
        if quantity.is_held_out:
            return self.last(quantity.key)
        value = self.evaluation.get(quantity.key)
        return value if value is not None else self.last(f'{VALIDATION}{quantity.key}')

    def baseline(self, quantity: Quantity) -> float | None:
        """Returns the value of the quantity's baseline."""
        if not quantity.baseline_key:
            return quantity.chance
        return self.last(quantity.baseline_key) if quantity.is_held_out else self.evaluation.get(quantity.baseline_key)

    def describe_sample(self, quantity: Quantity) -> str:
        """Returns the size of the sample of text that a quantity was measured on; '' if that was all held-out text."""
        is_sampled = quantity is MASKED_WORDS and self.evaluation.get(MASKED_WORDS.key) is not None
        num_windows = evaluation_file.num_windows(self.evaluation) if is_sampled else 0
        return f'{num_windows:,} text windows' if num_windows else ''

    @property
    def run_metrics(self) -> ranking.RunMetrics:
        """The metrics by which runs may be ranked."""
        last_logged: dict[str, Any] = {}
        for line in self.metrics:
            last_logged |= line
        return ranking.RunMetrics(self.step, self.evaluation, last_logged, self.config_json['config'].get('probe'))

    def starts(self) -> list[dict[str, Any]]:
        """Returns the `start` lines of the history."""
        return [line for line in self.history if line['event'] == 'start']

    def skipped(self) -> list[tuple[int, int]]:
        """Returns (logged step, updates skipped since the previous logged step) for each step with skipped updates."""
        steps, totals = self.curve('skipped_updates')
        previous = [0, *totals]
        return [(step, int(new - old)) for step, old, new in zip(steps, previous, totals, strict=False) if new > old]


def probes(runs: list[LoggedRun]) -> list[Quantity]:
    """Returns the probes and retrieval sets that any of the runs logged."""
    accuracies = [probe(key) for key in _keys(runs, ranking.PROBE_PREFIX) if ranking.is_probe(key)]
    return accuracies + [retrieval(key) for key in _keys(runs, ranking.RETRIEVAL_PREFIX) if ranking.is_retrieval(key)]


def losses_by_length(runs: list[LoggedRun]) -> list[Quantity]:
    """Returns the MLM loss at each length that any of the runs was evaluated on; [] if each has only one."""
    of_runs = [[key for key in run.evaluation if key.startswith(BY_LENGTH)] for run in runs]
    keys = {key for keys in of_runs if len(keys) > 1 for key in keys}
    return [loss_at(key) for key in sorted(keys, key=lambda key: int(key.removeprefix(BY_LENGTH)))]


def task_metrics(runs: list[LoggedRun]) -> list[Quantity]:
    """Returns the task metrics that any of the fine-tunes logged."""
    return [task_metric(key) for key in _keys([run for run in runs if run.is_finetune], VALIDATION)]


def _keys(runs: list[LoggedRun], prefix: str) -> list[str]:
    keys = {key: None for run in runs for line in run.metrics for key in line if key.startswith(prefix)}
    return list(keys)


def rank(runs: list[LoggedRun]) -> list[str]:
    """Ranks runs by a metric that they share.

    Returns:
      A line with the reason for the metric, then a line per run, best first; [] if the runs share no metric. Fine-tunes
      alone are not ranked, because their task has its own metrics.
    """
    if all(run.is_finetune for run in runs):
        return []
    metric = ranking.common_metric([run.run_metrics for run in runs])
    if metric is None:
        return []
    order = sorted(range(len(runs)), key=metric.scores.__getitem__)
    ranked = [f'{rank}. {runs[i].name}  {metric.format(metric.values[i])}' for rank, i in enumerate(order, 1)]
    return [f'Runs are {metric.reason}.', *ranked]


# --- Reading. ---


def _drop_placeholders(values: dict[str, Any], *, has_pairs: bool = True) -> dict[str, Any]:
    """Removes values that early versions logged although nothing was measured.

    If a batch had no pairs or no masked tokens, they logged 0 for both loss and accuracy. If the peak was measured on a
    busy machine, they logged an MFU above 1. A measured loss is 0 only if every prediction is certain and correct.
    """
    placeholders = {MFU.key} if _is_number(values.get(MFU.key)) and values[MFU.key] > 1 else set()
    for prefix in ('', VALIDATION):
        for loss, accuracy in ((MLM_LOSS, MLM_ACCURACY), (NSP_LOSS, NSP_ACCURACY)):
            keys = f'{prefix}{loss.key}', f'{prefix}{accuracy.key}'
            if all(values.get(key) == 0 for key in keys) or (loss is NSP_LOSS and not has_pairs):
                placeholders |= {*keys}
    return {key: value for key, value in values.items() if key not in placeholders}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read_optional(path: epath.Path) -> dict[str, Any]:
    return read_given_json(path, 'a JSON object') if path.exists() else {}


def _lines(path: epath.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (file and line, values) for each line. An incomplete last line, as a killed run leaves it, is skipped."""
    expected = 'a JSON object with an integer `step`'
    lines = path.read_bytes().split(b'\n')
    for line_number, line in enumerate(lines, 1):
        where = f'{path}:{line_number}'
        if not line.strip():
            continue
        try:
            values = parse_json(line)
        except DamagedJson as error:
            if line_number == len(lines):  # incomplete, as no newline follows
                continue
            raise BadInput(where, str(error), expected) from None
        if type(values.get('step')) is not int:
            raise BadInput(where, 'has no integer `step`', expected)
        yield where, values


def _read_metrics(path: epath.Path, command: str) -> list[dict[str, Any]]:
    """Reads metrics.jsonl and merges its lines by step; errors suggest `command`, which continues the run."""
    if not path.exists():
        raise BadInput(str(path), 'does not exist', 'the metrics of a run that has logged a step', command)
    steps: dict[int, dict[str, Any]] = {}
    for where, values in _lines(path):
        for key in filter(must_be_number, values):
            if values[key] is not None and not _is_number(values[key]):
                raise BadInput(where, f'{key} is of type {type(values[key]).__name__}', 'a number')
        steps.setdefault(values['step'], {}).update(values)
    if not steps:
        raise BadInput(str(path), 'has no complete line yet', 'at least one logged step', command)
    return [steps[step] for step in sorted(steps)]


def _read_history(path: epath.Path) -> tuple[dict[str, Any], ...]:
    """Reads the lines of history.jsonl; incomplete lines, as a killed run leaves them, are skipped."""
    events = []
    for line in path.read_bytes().split(b'\n') if path.exists() else ():
        try:
            values = parse_json(line)
        except DamagedJson:
            continue
        if type(values.get('step')) is int and isinstance(values.get('event'), str):
            events.append(values)
    return tuple(events)


def _read_examples(path: epath.Path) -> tuple[dict[str, Any], ...]:
    evaluations = []
    for where, values in _lines(path) if path.exists() else ():
        try:
            for example in values['examples']:
                masks = [[(f['token'], f['score'] + 0.0) for f in mask] for mask in example['fillers']]
                if not all(isinstance(token, str) for mask in [[(example['text'], 0)], *masks] for token, _ in mask):
                    raise TypeError
        except (KeyError, TypeError, ValueError):
            raise BadInput(
                where, 'has no valid `examples`', 'sentences with their fillers, as train writes them'
            ) from None
        evaluations.append(values)
    return tuple(evaluations)


def read_run(workdir: str, name: str, group: str = '') -> LoggedRun:
    """Reads a run from its workdir.

    Raises:
      BadInput: if a file is missing or damaged, or no step has been logged yet.
    """
    directory = epath.Path(workdir)
    config_path = directory / 'config.json'
    config_json = read_given_json(config_path, 'the workdir of a run')
    if not isinstance(config_json.get('config'), dict):
        raise BadInput(str(config_path), 'has no `config`', 'a JSON object with the resolved config under `config`')
    is_finetune = 'task' in config_json['config']
    command, argument = ('finetune', directory.parent) if is_finetune else ('train', directory)
    metrics = _read_metrics(directory / 'metrics.jsonl', f'bert-jax {command} --workdir={argument}')
    data = config_json['config'].get('data')
    has_pairs = not (isinstance(data, dict) and data.get('pairing') == 'none')
    metrics = [_drop_placeholders(line, has_pairs=has_pairs) for line in metrics]
    evaluation_path, results_path = directory / 'evaluation.json', directory / 'results.json'
    evaluation = _drop_placeholders({} if is_finetune else _read_optional(evaluation_path), has_pairs=has_pairs)
    evaluation |= _by_length(evaluation_path, evaluation)
    results = _read_optional(results_path).get('metrics', {}) if is_finetune else {}
    _check_numbers(evaluation_path, evaluation, [q.key for q in FINAL] + [q.baseline_key for q in FINAL])
    _check_numbers(results_path, results, results)
    history, examples = _read_history(directory / 'history.jsonl'), _read_examples(directory / 'examples.jsonl')
    return LoggedRun(name, config_json, metrics, evaluation, group or name, workdir, history, examples, results)


def _by_length(path: epath.Path, evaluation: dict[str, Any]) -> dict[str, float]:
    losses = evaluation.get('mlm_loss_by_length', {})
    if not isinstance(losses, dict) or not all(length.isdecimal() for length in losses):
        raise BadInput(str(path), f'mlm_loss_by_length is {losses!r}', 'an object with a loss for each length')
    _check_numbers(path, losses, losses)
    return {f'{BY_LENGTH}{length}': loss for length, loss in losses.items() if loss is not None}


def _check_numbers(path: epath.Path, values: dict[str, Any], keys: Any) -> None:
    for key in keys:
        if values.get(key) is not None and not _is_number(values[key]):
            raise BadInput(str(path), f'{key} is of type {type(values[key]).__name__}', 'a number')


def read_runs(workdirs: list[str]) -> list[LoggedRun]:
    """Reads runs, including each seed of a fine-tune.

    Runs are named after their directories, or by their whole paths if those names collide.
    """
    if not workdirs:
        raise BadInput('--workdir', 'is missing', 'the workdir of a run', '--workdir=runs/demo')
    names = [os.path.basename(workdir.rstrip('/')) or workdir for workdir in workdirs]
    if len(set(names)) < len(names):
        names = list(workdirs)
    runs = []
    for workdir, name in zip(workdirs, names, strict=True):
        seeds = [] if (epath.Path(workdir) / 'config.json').exists() else _seeds(epath.Path(workdir))
        runs += [read_run(str(seed), f'{name}/{seed.name}', name) for seed in seeds] or [read_run(workdir, name)]
    return runs


def _seeds(directory: epath.Path) -> list[epath.Path]:
    """Returns the workdirs of a fine-tune's seeds in order: those that have logged a step, or all if none has."""
    seeds = [path for path in matching(directory, 'seed-*') if (path / 'config.json').exists()]
    seeds.sort(key=lambda path: (len(path.name), path.name))
    logged = [path for path in seeds if (path / 'metrics.jsonl').exists() and (path / 'metrics.jsonl').read_bytes()]
    return logged or seeds
