"""The wheel contains everything that the commands need, and works without the repository."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from bert_jax.runtime import versions
from bert_jax.version import __version__

ROOT = Path(__file__).parents[2]
SOURCES = ('LICENSE', 'README.md', 'pyproject.toml', 'requirements.txt', 'configs', 'launch', 'bert_jax')
DIST_INFO = f'bert_jax-{__version__}.dist-info'

pytestmark = pytest.mark.processes

_BUILD = 'import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])'

# Run in an empty directory, with the unpacked wheel on the path and the repository not.
_USE = """
import contextlib, io, json, sys
from pathlib import Path
import bert_jax
from bert_jax.__main__ import COMMANDS, main
from bert_jax.cli.flags import config_of, fields_of, parse
from bert_jax.cli.shipped import find_config
from bert_jax.config import finetuning
from bert_jax.runtime import versions
from bert_jax.text.sources import python_docs

def config(command, *arguments):
    return parse(COMMANDS[command], list(arguments))[0].config

with contextlib.redirect_stdout(io.StringIO()) as printed:
    launched = main(['bert-jax', 'launch', '--output=launch'])
    tried = main(['bert-jax', 'train', '--config=brt.py', '--workdir=a'])
base = config('train', f'--config={fields_of(config("sweep", "--config=sweeps/learning_rate.py"))["base"]}')
print(json.dumps({
    'package': bert_jax.__file__,
    'found': find_config('demo.py'),
    'layers': config_of(parse(COMMANDS['train'], ['--config=bert.py:tiny'])[0]).model.num_layers,
    'metrics': finetuning.resolve(
        fields_of(config('finetune', '--config=finetune/glue.py:sst2', '--config.init=a', '--config.task.directory=a'))
    ).task.metrics,
    'base': base.optimizer.name,
    'statuses': [launched, tried],
    'launch': sorted(path.name for path in Path('launch').iterdir()),
    'requirements': sorted(line.partition('>')[0].partition('<')[0] for line in versions.requirements()),
    'read_by_python_docs': [found.metadata['Name'] for found in python_docs._required_distributions()],
}))
"""


@pytest.fixture(scope='module')
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds and unpacks the wheel, from a copy that contains nothing of earlier builds."""
    sources, site = tmp_path_factory.mktemp('sources'), tmp_path_factory.mktemp('site')
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, sources / name, symlinks=True, ignore=shutil.ignore_patterns('__pycache__'))
        else:
            shutil.copy(ROOT / name, sources)
    subprocess.run(
        [sys.executable, '-c', _BUILD, 'dist'], cwd=sources, check=True, capture_output=True, text=True, timeout=120
    )
    [built] = sources.glob('dist/*.whl')
    with zipfile.ZipFile(built) as archive:
        archive.extractall(site)
    return site


def test_wheel_contains_package_configs_and_launch_scripts(wheel: Path) -> None:
    def files(directory: Path) -> set[str]:
        return {
            str(path.relative_to(directory))
            for path in directory.rglob('*')
            if path.is_file() and '__pycache__' not in path.parts
        }

    assert {path.name for path in wheel.iterdir()} == {'bert_jax', DIST_INFO}
    package = files(ROOT / 'bert_jax') | {f'configs/{name}' for name in files(ROOT / 'configs')}
    assert files(wheel / 'bert_jax') == package | {f'launch/{name}' for name in files(ROOT / 'launch')}


def test_wheel_metadata_names_licence_version_and_requirements(wheel: Path) -> None:
    found = Parser().parsestr((wheel / DIST_INFO / 'METADATA').read_text())
    assert found['Version'] == __version__ and found['License-Expression'] == 'Apache-2.0'
    assert 'Apache License' in (wheel / DIST_INFO / 'licenses' / 'LICENSE').read_text()
    required = [line for line in found.get_all('Requires-Dist') if 'extra ==' not in line]
    assert len(required) == len(versions.requirements())
    scripts = (wheel / DIST_INFO / 'entry_points.txt').read_text().split()
    assert scripts == ['[console_scripts]', 'bert-jax', '=', 'bert_jax.__main__:start']


def test_wheel_works_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, '-c', _USE],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != 'PYTHONPATH'} | {'PYTHONPATH': str(wheel)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found['package'] == str(wheel / 'bert_jax' / '__init__.py')
    assert found['found'] == str(wheel / 'bert_jax' / 'configs' / 'demo.py')
    assert (found['layers'], found['metrics'], found['base']) == (2, ['accuracy'], 'muon')
    assert found['statuses'] == [0, 2] and "did you mean 'bert.py'?" in done.stderr
    assert found['launch'] == ['gke_jobset.yaml', 'local.py', 'slurm.sbatch', 'tpu_pod.sh']
    assert found['requirements'] == sorted(line.partition('>')[0].partition('<')[0] for line in versions.requirements())
    assert 'numpy' in found['read_by_python_docs'] and 'bert_jax' not in found['read_by_python_docs']
