"""Writes the archive that `test_old_files_open.py` reads: tiny examples of all files that a given commit writes.

    git worktree add /tmp/old 79a7f4e
    python tests/compat/generate.py /tmp/old tests/compat/fixtures-79a7f4e.tar.xz

The first argument is a checkout of the commit, the second the archive. The interpreter needs that commit's
requirements and its `finetune` extra. The script takes a few minutes on two cores. Run it once for each commit whose
files must stay readable, and keep the archive: later code cannot rebuild it.

The checkout's command line runs in an empty directory, with relative paths only. One absolute path remains, in a file
that Orbax writes and nothing reads; so the directory is always /tmp/bert_jax-old, the same on every machine.
Contents of the archive:

    text.txt, lines.txt, *.tsv              input
    pretrain.py, finetune.py, sweep.py      config files in the style of that commit
    corpus/, corpus-sentencepiece/          written by `prepare`; training added plans
    run/, phases/, sentencepiece/           pretraining workdirs, stopped before their last step
    export/                                 `run` exported at the step where it stopped
    finetuned/, finetuned-stopped/          the same fine-tuning of `export`, finished and stopped
    finetuned-export/                       the better seed of `finetuned`
    sweep/                                  a finished sweep of two runs
    recorded/                               what the commands of that commit printed or computed:
      metrics-NAME.jsonl                    the metrics of workdir NAME, trained without interruption
      COMMAND….json, vectors.npy            the output of other commands on these files
"""

import json
import lzma
import os
import random
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

# Step at which each pretraining run is stopped; a process runs one more step after its time is up.
STOP_AFTER = {'run': 2, 'phases': 1, 'sentencepiece': 1}
NUM_SEEDS = 2

DIRECTORY = Path('/tmp/bert_jax-old')
MODIFIED = 1_767_225_600  # 2026-01-01T00:00:00Z; a corpus records when its text was written
EXIT_RUN_AGAIN = 75
# Files of finished runs that no command reads, and that are large or contain names of the machine.
LEFT_OUT = ('tensorboard', 'report.html', 'sweep.html', 'train.log')

WORDS = (
    'amber badger candle drift ember fable garden harbor island jungle kettle lantern meadow nectar orchard pebble '
    'quarry ribbon saddle timber umbrella valley willow yellow zephyr café naïve about between through under'
).split()
GOOD, BAD = ['amber', 'garden', 'nectar', 'willow'], ['drift', 'quarry', 'under', 'jungle']

PRETRAIN = '''\
"""Tiny pretraining runs: pretrain.py:run, pretrain.py:phases, pretrain.py:sentencepiece, pretrain.py:sweep."""

import bert_jax.config


def get_config(variant: str = 'run'):
    config = bert_jax.config.bert('tiny')
    config.data.source = 'text:text.txt'
    config.data.corpus = 'corpus'
    config.data.validation_fraction = 0.2
    config.data.sequence_length = 32
    config.tokenizer.vocab_size = 96
    config.model.num_layers = 1
    config.model.hidden_size = 8
    config.model.num_heads = 2
    config.model.intermediate_size = 8
    config.model.max_positions = 32
    config.train.steps = 8
    config.train.global_batch_size = 8
    config.train.log_every = 1
    config.train.checkpoint_every = 100
    config.train.keep_checkpoints = 1
    config.train.evaluate_every = 4
    config.train.evaluate_rows = 64
    config.train.examples = ('the [MASK] valley.',)
    config.optimizer.peak_learning_rate = 3e-3
    config.optimizer.warmup_steps = 2
    config.platform = 'cpu'
    if variant == 'run':
        config.model.num_layers = 2
        config.card.license = 'apache-2.0'
    elif variant == 'phases':
        config.optimizer.name = 'muon'
        config.data.packing = True
        config.phases = (
            {'steps': 2, 'sequence_length': 16, 'global_batch_size': 16, 'warmup_steps': 1},
            {'steps': 3, 'sequence_length': 32, 'global_batch_size': 8, 'warmup_steps': 1},
        )
    elif variant == 'sentencepiece':
        config.optimizer.name = 'lamb'
        config.data.corpus = 'corpus-sentencepiece'
        config.data.pairing = 'none'
        config.data.masking.unit = 'word'
        config.tokenizer.kind = 'sentencepiece'
        config.train.steps = 4
    elif variant == 'sweep':
        config.model.hidden_size = 4
        config.model.intermediate_size = 4
        config.train.steps = 2
    else:
        raise ValueError(variant)
    return config
'''

FINETUNE = '''\
"""A tiny classification of single sentences."""

from bert_jax.finetune.config import finetune, use_original_recipe


def get_config():
    config = use_original_recipe(finetune('classification'))
    config.init = 'export'
    config.task.predict = 'tsv:test.tsv'
    config.task.metrics = ('accuracy', 'f1')
    config.task.sequence_length = 16
    config.train.global_batch_size = 8
    config.train.log_every = 1
    config.train.evaluate_every = 4
    config.optimizer.peak_learning_rate = 1e-2
    config.platform = 'cpu'
    return config
'''

SWEEP = '''\
"""Two learning rates."""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        {
            'base': 'pretrain.py:sweep',
            'fixed': {'train.log_every': 2},
            'grid': {'optimizer.peak_learning_rate': [1e-3, 3e-3]},
        },
        allow_dotted_keys=True,
    )
'''


def main(checkout: Path, archive: Path) -> None:
    """Writes the archive of the files that the code in `checkout` writes."""
    DIRECTORY.mkdir()
    try:
        root, scratch = DIRECTORY / 'files', DIRECTORY / 'scratch'
        root.mkdir()
        scratch.mkdir()
        write_input(root)
        write_files(CommandLine(checkout, root, scratch), root, scratch)
        normalize(root)
        pack(root, archive)
    finally:
        shutil.rmtree(DIRECTORY)
    print(f'{archive}: {archive.stat().st_size:,} bytes')


class CommandLine:
    """The command line of a checkout, run in `root`."""

    def __init__(self, checkout: Path, root: Path, scratch: Path) -> None:
        self._place = root
        kept = {name: value for name, value in os.environ.items() if not name.startswith(('SLURM', 'XLA', 'JAX'))}
        self._environment = kept | {
            'PYTHONPATH': str(checkout.resolve()),
            'JAX_PLATFORMS': 'cpu',
            'JAX_COMPILATION_CACHE_DIR': str(scratch / 'compiled'),
            'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        }

    def __call__(self, *arguments: str, is_stopped: bool = False) -> str:
        """Runs a command and returns its output; with `is_stopped`, its time is up and it saves after one step."""
        print('bert_jax', *arguments, flush=True)
        environment = self._environment | ({'SLURM_JOB_END_TIME': '1'} if is_stopped else {})
        command = [sys.executable, '-m', 'bert_jax', *arguments]
        done = subprocess.run(command, cwd=self._place, env=environment, capture_output=True, text=True, timeout=600)
        expected = EXIT_RUN_AGAIN if is_stopped else 0
        if done.returncode != expected:
            raise SystemExit(f'exit status {done.returncode}, not {expected}:\n{done.stdout}{done.stderr}')
        return done.stdout


def write_input(root: Path) -> None:
    """Writes text, labelled sentences and config files."""
    chosen = random.Random(0)

    def sentence(words: list[str]) -> str:
        return ' '.join(chosen.choices(words, k=chosen.randint(3, 8)))

    documents = []
    for _ in range(60):
        topic = chosen.sample(WORDS, 12)
        documents.append('\n'.join(sentence(['the', *topic]).capitalize() + '.' for _ in range(8)))
    (root / 'text.txt').write_text('\n\n'.join(documents) + '\n', 'utf-8')
    (root / 'lines.txt').write_text('The amber valley.\n\nA café between the island and the harbor.\n', 'utf-8')
    for name, num_rows in (('train', 24), ('dev', 16), ('test', 8)):
        rows = []
        for _ in range(num_rows):
            label = chosen.randrange(2)
            text = f'{sentence(WORDS)} {chosen.choice((BAD, GOOD)[label])}'
            rows.append(text if name == 'test' else f'{text}\t{label}')
        head = 'sentence' if name == 'test' else 'sentence\tlabel'
        (root / f'{name}.tsv').write_text('\n'.join([head, *rows]) + '\n', 'utf-8')
    for name, content in (('pretrain', PRETRAIN), ('finetune', FINETUNE), ('sweep', SWEEP)):
        (root / f'{name}.py').write_text(content)
    for path in root.iterdir():
        os.utime(path, (MODIFIED, MODIFIED))


def write_files(bert_jax: CommandLine, root: Path, scratch: Path) -> None:
    """Runs the commands that write files, and records the output of the others."""
    recorded = root / 'recorded'
    recorded.mkdir()

    def record(name: str, *arguments: str) -> None:
        (recorded / f'{name}.json').write_text(bert_jax(*arguments, '--json'))

    for name in ('run', 'sentencepiece'):
        bert_jax('prepare', f'--config=pretrain.py:{name}', '--workers=1')
    for name, num_steps in STOP_AFTER.items():
        config = f'--config=pretrain.py:{name}'
        bert_jax('train', config, f'--workdir={scratch / name}')
        shutil.copyfile(scratch / name / 'metrics.jsonl', recorded / f'metrics-{name}.jsonl')
        for _ in range(num_steps):
            bert_jax('train', config, f'--workdir={name}', is_stopped=True)
        check_is_stopped(root / name, num_steps)
    for name in STOP_AFTER:
        record(f'evaluate-{name}', 'evaluate', f'--workdir={name}', '--sample=16')
    for name in ('run', 'sentencepiece'):
        record(f'fill-mask-{name}', 'fill-mask', f'--model={name}', '--top_k=60', 'the [MASK] of an [MASK] valley.')
    bert_jax('export', '--workdir=run', '--output=export')
    bert_jax('embed', '--model=export', '--input=lines.txt', '--output=recorded/vectors.npy')

    finetune = ('finetune', '--config=finetune.py', f'--seeds={NUM_SEEDS}')
    bert_jax(*finetune, '--workdir=finetuned')
    bert_jax(*finetune, '--workdir=finetuned-stopped', is_stopped=True)
    check_is_stopped(root / 'finetuned-stopped' / 'seed-0', 1)
    record('evaluate-finetuned', 'evaluate', '--workdir=finetuned')
    bert_jax('export', '--workdir=finetuned', '--output=finetuned-export')

    record('sweep', 'sweep', '--config=sweep.py', '--workdir=sweep')
    bert_jax('report', '--workdir=run', '--workdir=phases')


def check_is_stopped(workdir: Path, step: int) -> None:
    """Fails unless the newest checkpoint of a workdir is that of `step`."""
    newest = max(int(path.parent.name) for path in (workdir / 'checkpoints').glob('*/manifest.json'))
    if newest != step:
        raise SystemExit(f'{workdir} stopped at step {newest}, not {step}')


def normalize(root: Path) -> None:
    """Removes files that depend on the machine, and checks that no other file contains an absolute path."""
    for name in LEFT_OUT:
        for path in root.rglob(name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in root.rglob('.lease/*.json'):
        owner = json.loads(path.read_text()) | {'host': 'host', 'machine': 'machine', 'pid': 1, 'started': 1}
        path.write_text(json.dumps(owner) + '\n')
    for path in root.rglob('*'):
        content = path.read_bytes() if path.is_file() else b''
        allowed = path.name == 'commit_success.txt'  # sealed with the checkpoint
        for forbidden in (sys.prefix, *([] if allowed else [str(DIRECTORY)])):
            if forbidden.encode() in content:
                raise SystemExit(f'{path} contains the path {forbidden}')


def pack(root: Path, archive: Path) -> None:
    """Writes all files of `root`, sorted by name, without owners and with the same modification time."""

    def anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = ''
        info.mtime, info.mode = MODIFIED, 0o755 if info.isdir() else 0o644
        return info

    with lzma.open(archive, 'wb', preset=9 | lzma.PRESET_EXTREME) as compressed:
        with tarfile.open(fileobj=compressed, mode='w', format=tarfile.GNU_FORMAT) as tar:
            for path in sorted(root.rglob('*')):
                tar.add(path, path.relative_to(root).as_posix(), recursive=False, filter=anonymous)


if __name__ == '__main__':
    if len(sys.argv) != 3:
        raise SystemExit('python tests/compat/generate.py CHECKOUT OUTPUT')
    main(Path(sys.argv[1]), Path(sys.argv[2]))
