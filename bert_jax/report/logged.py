"""What a run logged: the files of its workdir, read and checked."""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from etils import epath

from bert_jax.errors import BadInput
from bert_jax.evaluation import evaluation_file, ranking
from bert_jax.files import matching
from bert_jax.json_files import DamagedJson, parse_json, read_given_json
from bert_jax.report.quantities import (
    FINAL,
    MFU,
    MLM_ACCURACY,
    MLM_LOSS,
    NSP_ACCURACY,
    NSP_LOSS,
    VALIDATION,
    WORDS,
    Quantity,
    is_a_number,
    probe,
    task_metric,
)


@dataclasses.dataclass(frozen=True)
class LoggedRun:
    """A run as its workdir records it.

    Attributes:
      name: shown on pages.
      document: config.json.
      metrics: the lines of metrics.jsonl, one per step, steps ascending.
      evaluation: evaluation.json; empty if the run was not evaluated.
      group: the name of the requested workdir. The seeds of a fine-tune are runs of one group.
      workdir: its path.
      history: the lines of history.jsonl; empty for a run of an early version.
      examples: the lines of examples.jsonl, one per evaluation.
      results: metrics of a fine-tune at its last step, by name; empty before that.
    """

    name: str
    document: dict[str, Any]
    metrics: list[dict[str, Any]]
    evaluation: dict[str, Any]
    group: str = ''
    workdir: str = ''
    history: tuple[dict[str, Any], ...] = ()
    examples: tuple[dict[str, Any], ...] = ()
    results: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def step(self) -> int:
        return self.metrics[-1]['step']

    @property
    def planned_steps(self) -> int | None:
        train = self.document['config'].get('train')
        steps = train.get('steps') if isinstance(train, dict) else None
        if self.is_finetune:
            steps = (self.document.get('fingerprint') or {}).get('train.steps')
        return steps if isinstance(steps, int) else None

    @property
    def is_finetune(self) -> bool:
        return 'task' in self.document['config']

    def curve(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values logged under a key."""
        points = [(line['step'], line[key]) for line in self.metrics if line.get(key) is not None]
        return [step for step, _ in points], [value for _, value in points]

    def last(self, key: str) -> float | None:
        """The newest value logged under a key."""
        values = self.curve(key)[1]
        return values[-1] if values else None

    def validation(self, quantity: Quantity) -> float | None:
        """The newest value on held-out examples."""
        if quantity.is_held_out:
            return self.last(quantity.key)
        value = self.evaluation.get(quantity.key)
        return value if value is not None else self.last(f'{VALIDATION}{quantity.key}')

    def baseline(self, quantity: Quantity) -> float | None:
        """The value that the quantity is compared with."""
        if not quantity.baseline_key:
            return quantity.chance
        return self.last(quantity.baseline_key) if quantity.is_held_out else self.evaluation.get(quantity.baseline_key)

    def sample_size(self, quantity: Quantity) -> str:
        """How much text an evaluation's figure was sampled on, in words; '' where it is of all held-out text."""
        is_sampled = quantity is WORDS and self.evaluation.get(WORDS.key) is not None
        size = evaluation_file.num_windows(self.evaluation) if is_sampled else 0
        return f'{size:,} windows' if size else ''

    @property
    def run_metrics(self) -> ranking.RunMetrics:
        """The metrics by which runs may be ranked."""
        last_logged: dict[str, Any] = {}
        for line in self.metrics:
            last_logged |= line
        return ranking.RunMetrics(self.step, self.evaluation, last_logged, self.document['config'].get('probe'))

    def starts(self) -> list[dict[str, Any]]:
        """The `start` lines of the history."""
        return [line for line in self.history if line['event'] == 'start']

    def skipped(self) -> list[tuple[int, int]]:
        """(logged step, updates skipped since the previous logged step) wherever updates were skipped."""
        steps, totals = self.curve('skipped_updates')
        before = [0, *totals]
        return [(step, int(new - old)) for step, old, new in zip(steps, before, totals, strict=False) if new > old]


def probes(runs: list[LoggedRun]) -> list[Quantity]:
    """The probes that any run logged."""
    return [probe(key) for key in _keys(runs, ranking.PROBE_PREFIX) if ranking.is_probe(key)]


def task_metrics(runs: list[LoggedRun]) -> list[Quantity]:
    """The task metrics that any fine-tune logged."""
    return [task_metric(key) for key in _keys([run for run in runs if run.is_finetune], VALIDATION)]


def _keys(runs: list[LoggedRun], prefix: str) -> list[str]:
    keys = {key: None for run in runs for line in run.metrics for key in line if key.startswith(prefix)}
    return list(keys)


def rank(runs: list[LoggedRun]) -> list[str]:
    """Runs ranked by a metric they all share, best first, after a line with the reason; [] if there is none.

    Fine-tunes alone are not ranked: their task has figures of its own.
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


def _measured(values: dict[str, Any], *, has_pairs: bool = True) -> dict[str, Any]:
    """Logged values without those of nothing, which early versions logged.

    They wrote 0 as the loss and the accuracy of what a batch does not hold (no pairs), and an MFU above 1 where the
    peak was measured on a busy machine. A loss is 0 only where every guess is certain and right.
    """
    absent = {MFU.key} if _is_number(values.get(MFU.key)) and values[MFU.key] > 1 else set()
    for prefix in ('', VALIDATION):
        for loss, accuracy in ((MLM_LOSS, MLM_ACCURACY), (NSP_LOSS, NSP_ACCURACY)):
            pair = f'{prefix}{loss.key}', f'{prefix}{accuracy.key}'
            is_of_nothing = all(values.get(key) == 0 for key in pair)
            if is_of_nothing or (loss is NSP_LOSS and not has_pairs):
                absent |= {*pair}
    return {key: value for key, value in values.items() if key not in absent}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read_if_there(path: epath.Path) -> dict[str, Any]:
    return read_given_json(path, 'a JSON object') if path.exists() else {}


def _lines(path: epath.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(position, values) of each line. A last line that a kill left incomplete is skipped."""
    expected = 'a JSON object with an integer `step`'
    lines = path.read_bytes().split(b'\n')
    for number, line in enumerate(lines, 1):
        where = f'{path}:{number}'
        if not line.strip():
            continue
        try:
            values = parse_json(line)
        except DamagedJson as error:
            if number == len(lines):  # no newline after it: incomplete
                continue
            raise BadInput(where, str(error), expected) from None
        if type(values.get('step')) is not int:
            raise BadInput(where, 'is JSON of another kind', expected)
        yield where, values


def _read_metrics(path: epath.Path, command: str) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl merged by step; `command` is the one that writes more of them."""
    if not path.exists():
        raise BadInput(str(path), 'there is no such file', 'the metrics of a run that has logged a step', command)
    steps: dict[int, dict[str, Any]] = {}
    for where, values in _lines(path):
        for key in filter(is_a_number, values):
            if values[key] is not None and not _is_number(values[key]):
                raise BadInput(where, f'{key} is of type {type(values[key]).__name__}', 'a number')
        steps.setdefault(values['step'], {}).update(values)
    if not steps:
        raise BadInput(str(path), 'holds no complete line yet', 'at least one logged step', command)
    return [steps[step] for step in sorted(steps)]


def _read_history(path: epath.Path) -> tuple[dict[str, Any], ...]:
    """Lines of history.jsonl, without those that a kill left incomplete."""
    found = []
    for line in path.read_bytes().split(b'\n') if path.exists() else ():
        try:
            values = parse_json(line)
        except DamagedJson:
            continue
        if type(values.get('step')) is int and isinstance(values.get('event'), str):
            found.append(values)
    return tuple(found)


def _read_examples(path: epath.Path) -> tuple[dict[str, Any], ...]:
    found = []
    for where, values in _lines(path) if path.exists() else ():
        try:
            for example in values['examples']:
                masks = [[(f['token'], f['score'] + 0.0) for f in mask] for mask in example['fillers']]
                if not all(isinstance(token, str) for mask in [[(example['text'], 0)], *masks] for token, _ in mask):
                    raise TypeError
        except (KeyError, TypeError, ValueError):
            raise BadInput(where, 'is JSON of another kind', 'sentences with their fillers, as train writes') from None
        found.append(values)
    return tuple(found)


def read_run(workdir: str, name: str, group: str = '') -> LoggedRun:
    """Reads a run from its workdir.

    Raises:
      BadInput: if a file is missing or broken, or no step is logged yet.
    """
    directory = epath.Path(workdir)
    config_path = directory / 'config.json'
    document = read_given_json(config_path, 'the workdir of a run')
    if not isinstance(document.get('config'), dict):
        raise BadInput(str(config_path), 'has no `config`', 'a JSON object with the resolved config under `config`')
    is_finetune = 'task' in document['config']
    command, argument = ('finetune', directory.parent) if is_finetune else ('train', directory)
    metrics = _read_metrics(directory / 'metrics.jsonl', f'bert-jax {command} --workdir={argument}')
    data = document['config'].get('data')
    has_pairs = not (isinstance(data, dict) and data.get('pairing') == 'none')
    metrics = [_measured(line, has_pairs=has_pairs) for line in metrics]
    evaluation_path, results_path = directory / 'evaluation.json', directory / 'results.json'
    evaluation = _measured({} if is_finetune else _read_if_there(evaluation_path), has_pairs=has_pairs)
    results = _read_if_there(results_path).get('metrics', {}) if is_finetune else {}
    _check_numbers(evaluation_path, evaluation, [q.key for q in FINAL] + [q.baseline_key for q in FINAL])
    _check_numbers(results_path, results, results)
    history, examples = _read_history(directory / 'history.jsonl'), _read_examples(directory / 'examples.jsonl')
    return LoggedRun(name, document, metrics, evaluation, group or name, workdir, history, examples, results)


def _check_numbers(path: epath.Path, values: dict[str, Any], keys: Any) -> None:
    for key in keys:
        if values.get(key) is not None and not _is_number(values[key]):
            raise BadInput(str(path), f'{key} is of type {type(values[key]).__name__}', 'a number')


def read_runs(workdirs: list[str]) -> list[LoggedRun]:
    """Runs, and each seed of a fine-tune, named after their directories, or by whole paths if those names collide."""
    if not workdirs:
        raise BadInput('--workdir', 'is missing', 'the workdir of a run', '--workdir=runs/demo')
    names = [os.path.basename(workdir.rstrip('/')) or workdir for workdir in workdirs]
    if len(set(names)) < len(names):
        names = list(workdirs)
    found = []
    for workdir, name in zip(workdirs, names, strict=True):
        seeds = [] if (epath.Path(workdir) / 'config.json').exists() else _seeds(epath.Path(workdir))
        found += [read_run(str(seed), f'{name}/{seed.name}', name) for seed in seeds] or [read_run(workdir, name)]
    return found


def _seeds(directory: epath.Path) -> list[epath.Path]:
    """The workdirs of a fine-tune's seeds in order: those that have logged a step, or all if none has."""
    found = [path for path in matching(directory, 'seed-*') if (path / 'config.json').exists()]
    found.sort(key=lambda path: (len(path.name), path.name))
    logged = [path for path in found if (path / 'metrics.jsonl').exists() and (path / 'metrics.jsonl').read_bytes()]
    return logged or found
