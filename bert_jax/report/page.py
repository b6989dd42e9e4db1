"""report.html: one run, or several side by side."""

import html
import math
import statistics
from collections.abc import Iterable

from etils import epath

from bert_jax.files import write_whole
from bert_jax.report.curves import charts, is_shown
from bert_jax.report.html import page, swatch
from bert_jax.report.quantities import FINAL, INPUT_WAIT, MFU, Quantity
from bert_jax.report.runs import Run, probes, rank, read_runs
from bert_jax.report.settings import show_settings
from bert_jax.report.timeline import happenings, hardware, summary

_MOST_EXAMPLES = 5  # steps at which the example sentences are shown
_MOST_HAPPENINGS = 12  # of a run; more are folded away


def write_report(workdirs: list[str]) -> epath.Path:
    """Writes `report.html` into the first workdir, about all of them, and returns its path.

    The page needs no network. It holds what the runs logged, their configs and versions, what they made of the
    sentences in `train.examples`, and no corpus text.

    Args:
      workdirs: directories of runs, or of fine-tunes, whose seeds are runs; several are drawn over each other.

    Raises:
      BadInput: for a missing or broken config.json, metrics.jsonl (with its line) or evaluation.json. A last line
        of metrics.jsonl that a kill left half-written is passed over.
    """
    content = _page(read_runs(workdirs))
    path = epath.Path(workdirs[0]) / 'report.html'
    write_whole(path, content)
    return path


def _page(runs: list[Run]) -> str:
    groups = dict.fromkeys(run.group for run in runs)
    title = ', '.join(groups)
    progress = ''.join(f'<p>{_named(runs, i)}{progress_of(run)}</p>' for i, run in enumerate(runs))
    pretraining = [run for run in runs if not run.is_finetune]
    parts = [f'<h1>{html.escape(title)}</h1>{progress}', '<h2>Where it stands</h2>']
    parts += [_ranks(runs), _final_table(runs, pretraining)] if pretraining else []
    parts += [_figures(name, [run for run in runs if run.group == name and run.is_finetune]) for name in groups]
    parts += [f'<h2>Curves</h2>{charts(runs)}', _examples(runs), _happenings(runs), _hardware(runs)]
    return page(title, '\n'.join([*filter(None, parts), show_settings(runs)]))


def _named(runs: list[Run], i: int, after: str = ': ') -> str:
    """The i-th run's name and line, where there are several."""
    return f'{swatch(i)}{html.escape(runs[i].name)}{after}' if len(runs) > 1 else ''


def _table(head: Iterable[str], body: str) -> str:
    names = ''.join(f'<th{" class=number" if name else ""}>{name}</th>' for name in head)
    return f'<div class="wide"><table><thead><tr>{names}</tr></thead>{body}</table></div>'


# --- Where it stands. ---


def progress_of(run: Run) -> str:
    """How far a run is, and how fast."""
    steps = f'step {run.step:,}' + (f' of {run.planned_steps:,}' if run.planned_steps is not None else '')
    speeds = [value for value in run.curve('tokens_per_second')[1] if math.isfinite(value)]
    speed = f' · {_number(statistics.median(speeds))} tokens per second' if speeds else ''
    mfu, waits = ([v for v in run.curve(q.key)[1] if math.isfinite(v)] for q in (MFU, INPUT_WAIT))
    shares = f' · MFU {MFU.show(statistics.median(mfu))}' if mfu else ''
    shares += f' · waiting for input {INPUT_WAIT.show(statistics.median(waits))}' if waits else ''
    return steps + speed + shares


def _number(value: float) -> str:
    return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}'


def _ranks(runs: list[Run]) -> str:
    why, *places = map(html.escape, rank(runs) or [''])
    return f'<p>{"<br>".join([why, *places])}</p>' if places else ''


def _final_table(runs: list[Run], pretraining: list[Run]) -> str:
    rows = []
    for quantity in (*FINAL, *probes(pretraining)):
        if not is_shown(quantity, pretraining):
            continue
        title = html.escape(quantity.title)
        if len(runs) > 1:
            beside = f' <small>baseline: {quantity.baseline}</small>' if quantity.baseline else ''
            rows.append(f'<tbody><tr class="group"><th colspan="4">{title}{beside}</th></tr>')
        else:
            rows.append('<tbody>')
        for i, run in enumerate(runs):
            if run in pretraining:
                rows.append(_final_row(_named(runs, i, '') or title, quantity, run, is_alone=len(runs) == 1))
        rows.append('</tbody>')
    return _table(('', 'training', 'validation', 'baseline'), ''.join(rows))


def _final_row(label: str, quantity: Quantity, run: Run, *, is_alone: bool) -> str:
    baseline = run.baseline(quantity)
    named = is_alone and baseline is not None
    beside = quantity.show(baseline) + (f'<small>{quantity.baseline}</small>' if named else '')
    training = None if quantity.is_held_out else run.last(quantity.key)
    cells = (quantity.show(training), quantity.show(run.validation(quantity)), beside)
    return f'<tr><th>{label}</th>' + ''.join(f'<td class="number">{cell}</td>' for cell in cells) + '</tr>'


def _figures(name: str, seeds: list[Run]) -> str:
    """The figures of a fine-tune: the median over its finished seeds, their range, and each."""
    if not seeds:
        return ''
    done = [seed for seed in seeds if seed.results]
    if not done:
        return f'<p>{html.escape(name)}: no seed is finished yet</p>'
    rows = []
    for metric in done[0].results:
        values = [seed.results[metric] for seed in done if metric in seed.results]
        shown = [f'{100 * value:.1f} %' for value in (statistics.median(values), min(values), max(values))]
        cells = ''.join(f'<td class="number">{value}</td>' for value in shown)
        rows.append(f'<tr><th>{html.escape(metric.replace("_", " "))}</th>{cells}</tr>')
    count = f'{len(done)} of {len(seeds)} seeds finished' if len(seeds) > 1 else 'one seed'
    return f'<h3>{html.escape(name)} <small>{count}</small></h3>' + _table(
        ('', 'median', 'lowest', 'highest'), f'<tbody>{"".join(rows)}</tbody>'
    )


# --- What the model says. ---


def fillers(example: dict) -> str:
    """The best fillers of every mask of a sentence: `file 19 %, path 13 % / not 4 %`."""
    masks = [[f'{filler["token"]} {100 * filler["score"]:.0f} %' for filler in mask] for mask in example['fillers']]
    return ' / '.join(', '.join(mask) for mask in masks)


def _examples(runs: list[Run]) -> str:
    """Each sentence with what the runs put at its masks, at a handful of steps."""
    texts = dict.fromkeys(example['text'] for run in runs for line in run.examples for example in line['examples'])
    cards = []
    for text in texts:
        rows = []
        for i, run in enumerate(runs):
            said = [(line['step'], e) for line in run.examples for e in line['examples'] if e['text'] == text]
            some = _handful(said)
            if some and len(runs) > 1:
                rows.append(f'<tr class="group"><th colspan="2">{_named(runs, i, "")}</th></tr>')
            rows += [f'<tr><th class="number">{s:,}</th><td>{html.escape(fillers(e))}</td></tr>' for s, e in some]
        head = '<thead><tr><th class="number">step</th><th>most likely</th></tr></thead>'
        table = f'<table class="examples">{head}<tbody>{"".join(rows)}</tbody></table>'
        cards.append(f'<figure><figcaption>{html.escape(text)}</figcaption>{table}</figure>')
    return f'<h2>What it fills in</h2><div class="charts">{"".join(cards)}</div>' if cards else ''


def _handful(points: list) -> list:
    """The first, the last, and some between."""
    count = min(len(points), _MOST_EXAMPLES)
    return [points[round(i * (len(points) - 1) / max(count - 1, 1))] for i in range(count)]


# --- What happened to it, and on what. ---


def _happenings(runs: list[Run]) -> str:
    tables = []
    for i, run in enumerate(runs):
        found = happenings(run)
        if not found:
            continue
        rows = ''.join(
            f'<tr><td class="number">{one.step:,}</td><td>{html.escape(one.what)}</td>'
            f'<td class="number">{one.lost_steps or "–"}</td><td>{html.escape(_readable(one.time))}</td></tr>'
            for one in found
        )
        names = ('step', 'what', 'steps made again', 'when (UTC)')
        head = ''.join(f'<th{" class=number" * (n in (0, 2))}>{name}</th>' for n, name in enumerate(names))
        table = f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        told = html.escape(summary(run)) or 'nothing out of the ordinary'
        if len(runs) > 1 or len(found) > _MOST_HAPPENINGS:
            table = f'<details><summary>{_named(runs, i)}{told}</summary>{table}</details>'
        else:
            table = f'<p>{told}</p>{table}'
        tables.append(table)
    return f'<h2>What happened</h2>{"".join(tables)}' if tables else ''


def _readable(time: str) -> str:
    return time.replace('T', ' ').partition('+')[0]


def _hardware(runs: list[Run]) -> str:
    rows = []
    for i, run in enumerate(runs):
        places = hardware(run)
        for number, (step, described) in enumerate(places):
            since = f'from step {step:,}' if len(places) > 1 else ''
            label = ' '.join(filter(None, [_named(runs, i, '') if not number else '', since]))
            rows.append(f'<tr><th>{label}</th><td>{html.escape(described)}</td></tr>')
    return f'<h2>What it ran on</h2><table><tbody>{"".join(rows)}</tbody></table>' if rows else ''
