"""The table and the plot of `benchmarks.pretraining_pays`."""

import collections
import statistics
from pathlib import Path
from typing import Any

SIZES = ('1000', 'full')
STARTS = {'scratch': 'no pretraining', 'hugging_face': 'Hugging Face Trainer', 'bert_jax': 'bert_jax'}
TASK_FLAGS = {'tagging': 'wikiann', 'spans': 'xquad'}
_COLORS = {'scratch': '#8c8c8c', 'hugging_face': '#d0801f', 'bert_jax': '#2b6cb0'}
_TASK_METRICS = {
    'tagging': ('WikiANN English', (('entity_f1', 'entity F1'),)),
    'spans': ('XQuAD English, 4/5 for training', (('f1', 'F1'), ('exact_match', 'exact match'))),
}


def table(results: dict[str, dict[str, Any]]) -> str:
    """Returns the available results, {part: result}, in Markdown."""
    header = ['pretrained by', 'steps', 'tokens seen', 'minutes', 'masked words, nats per character']
    header += [f'SST-2, {_size(results, size)}' for size in SIZES]
    rows = [header, ['---', *['--:'] * (len(header) - 1)]]
    baselines = [run['unigram_nats_per_character'] for run in map(results.get, STARTS) if run]
    for start, name in STARTS.items():
        run = results.get(start)
        cells = [''] * 4
        if run:
            cells = [f'{run["steps"]:,}', f'{run["tokens"] / 1e6:.1f} M', f'{run["minutes"]:.1f}']
            cells.append(f'{run["masked_word_nats_per_character"]:.3f}')
        elif baselines:
            cells[-1] = f'{baselines[0]:.3f} (frequencies)'
        rows.append([name, *cells, *(_percentages(results.get(f'sst2-{size}-{start}'), 'accuracy') for size in SIZES)])
    text = '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows)
    for task, (data, metrics) in _TASK_METRICS.items():
        models = [
            f'{STARTS[start]} ' + ', '.join(f'{name} {_percentages(found, key)}' for key, name in metrics)
            for start in STARTS
            if (found := results.get(f'{task}-{start}'))
        ]
        text += f'\n\n{data}: ' + '; '.join(models) + '.' if models else ''
    return text


def _size(results: dict[str, dict[str, Any]], size: str) -> str:
    """Returns the number of training examples, for example `1,000 examples`."""
    examples = [found.get('examples') for start in STARTS if (found := results.get(f'sst2-{size}-{start}'))]
    return f'{examples[0]:,} examples' if any(examples) else {'1000': '1,000 examples', 'full': 'all examples'}[size]


def _percentages(result: dict[str, Any] | None, name: str) -> str:
    """Returns the median and range over seeds, `81.2% (80.9 to 81.7)`, or the value of a single seed, `81.2%`."""
    values = [100 * seed[name] for seed in result['seeds']] if result else []
    if not values:
        return ''
    value_range = f' ({min(values):.1f} to {max(values):.1f})' if len(values) > 1 else ''
    return f'{statistics.median(values):.1f}%{value_range}'


def most_frequent(path: Path) -> float:
    """Returns the accuracy of always predicting the most frequent label of a GLUE file."""
    labels = [line.rpartition('\t')[2] for line in path.read_text(encoding='utf-8').splitlines()[1:]]
    return max(collections.Counter(labels).values()) / len(labels)


def draw(results: dict[str, dict[str, Any]], baseline: float, path: Path) -> None:
    """Plots a dot per seed and a bar at their median, in one panel per number of examples."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({'font.size': 9, 'svg.hashsalt': 'pretraining_pays', 'svg.fonttype': 'none'}):
        figure = Figure(figsize=(6.4, 3.2), layout='constrained')
        panels = figure.subplots(1, len(SIZES), sharey=True)
        for axes, size in zip(panels, SIZES, strict=True):
            for x, start in enumerate(STARTS):
                found = results.get(f'sst2-{size}-{start}')
                values = [100 * seed['accuracy'] for seed in found['seeds']] if found else []
                positions = [x + 0.12 * (index - (len(values) - 1) / 2) for index in range(len(values))]
                axes.plot(positions, values, 'o', color=_COLORS[start], alpha=0.8, markersize=6)
                if values:
                    median = statistics.median(values)
                    axes.hlines(median, x - 0.3, x + 0.3, color=_COLORS[start], linewidth=1.5)
                    axes.annotate(f'{median:.1f}%', (x, max(values)), (0, 6), textcoords='offset points', ha='center')
            axes.axhline(100 * baseline, color='#bbbbbb', linestyle='--', linewidth=1, zorder=0)
            axes.set_title(_size(results, size))
            axes.set_xticks(range(len(STARTS)), ['no\npretraining', 'Hugging Face\nTrainer', 'bert_jax'])
            axes.set_xlim(-0.6, len(STARTS) - 0.4)
            axes.margins(y=0.18)
            axes.spines[['top', 'right']].set_visible(False)
        panels[0].set_ylabel('accuracy on SST-2, %')
        panels[1].annotate(
            'most frequent label', (1, 100 * baseline), (0, 3), xycoords=('axes fraction', 'data'),
            textcoords='offset points', ha='right', color='#888888', fontsize=8,
        )  # fmt: skip
        figure.savefig(path, metadata={'Date': None})
