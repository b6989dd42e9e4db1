"""The JobSet manifest, read as Kubernetes reads it, lets each pod find the others."""

import re
import shlex
import subprocess
import sys
from typing import Any

import pytest
import yaml

from bert_jax.cli.commands import COMMANDS
from bert_jax.cli.flags import parse
from bert_jax.runtime.processes import ProcessInfo, find_process_info
from bert_jax.runtime.stopping import _UNMEASURED_SAVE, EXIT_BAD_INPUT, EXIT_RUN_AGAIN
from tests.support.processes import ROOT

JOB_INDEX = 'batch.kubernetes.io/job-completion-index'  # the annotation of a pod of an Indexed job


@pytest.fixture(scope='module')
def manifest() -> dict[str, Any]:
    text = (ROOT / 'launch' / 'gke_jobset.yaml').read_text()
    return yaml.safe_load(re.sub(r'<[^>]*>', 'placeholder', text))


@pytest.fixture(scope='module')
def job(manifest: dict[str, Any]) -> dict[str, Any]:
    [replicated] = manifest['spec']['replicatedJobs']
    assert replicated['replicas'] == 1
    return replicated['template']['spec']


@pytest.fixture(scope='module')
def container(job: dict[str, Any]) -> dict[str, Any]:
    [container] = job['template']['spec']['containers']
    return container


def _environment(container: dict[str, Any], index: int) -> dict[str, str]:
    """Returns the environment of the pod with this index, with fields of the pod filled in."""
    annotations = {JOB_INDEX: str(index)}
    environment = {}
    for variable in container['env']:
        assert variable.keys() in ({'name', 'value'}, {'name', 'valueFrom'})
        value = variable.get('value')
        if value is None:
            path = variable['valueFrom']['fieldRef']['fieldPath']
            value = annotations[re.fullmatch(r"metadata\.annotations\['(.+)'\]", path).group(1)]
        assert isinstance(value, str), f'{variable["name"]}: Kubernetes takes strings only'
        environment[variable['name']] = value
    return environment


def test_each_pod_finds_its_rank_and_the_coordinator(
    manifest: dict[str, Any], job: dict[str, Any], container: dict[str, Any]
) -> None:
    assert (manifest['apiVersion'], manifest['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
    assert job['completionMode'] == 'Indexed'  # without it pods have no index
    hosts = job['completions']
    assert job['parallelism'] == hosts  # all at once, or they wait for each other forever
    infos = [find_process_info(_environment(container, index), num_gpus=8) for index in range(hosts)]
    [replicated] = manifest['spec']['replicatedJobs']
    # JobSet names pods SET-JOB-REPLICA-INDEX, and gives them DNS names under the subdomain, by default the set's name.
    name = manifest['metadata']['name']
    assert manifest['spec']['network']['enableDNSHostnames'] is True
    subdomain = manifest['spec']['network'].get('subdomain', name)
    host = f'{name}-{replicated["name"]}-0-0.{subdomain}'
    [port] = [port['containerPort'] for port in container['ports']]
    assert infos == [ProcessInfo(f'{host}:{port}', hosts, index, None) for index in range(hosts)]


def test_pods_run_a_valid_command_with_all_gpus(job: dict[str, Any], container: dict[str, Any]) -> None:
    python, dash_m, package, command = container['command']
    assert (python, dash_m, package, command) == ('python', '-m', 'bert_jax', 'train')
    arguments = container['args']
    assert all(isinstance(argument, str) for argument in arguments)
    values, _ = parse(COMMANDS['train'], [argument.replace('configs/', f'{ROOT}/configs/') for argument in arguments])
    gpus = int(container['resources']['limits']['nvidia.com/gpu'])
    assert values.devices == job['completions'] * gpus
    assert values.workdir.startswith('gs://')  # pods share no disk
    mounts = {mount['name']: mount['mountPath'] for mount in container['volumeMounts']}
    volumes = {volume['name']: volume for volume in job['template']['spec']['volumes']}
    assert mounts.keys() == volumes.keys()
    assert mounts['shared-memory'] == '/dev/shm' and volumes['shared-memory']['emptyDir']['medium'] == 'Memory'
    corpus = values.config.data.corpus
    assert mounts['corpora'].endswith('/' + corpus.partition('/')[0])


def test_bad_input_ends_the_job_and_other_failures_restart_it(
    manifest: dict[str, Any], job: dict[str, Any], container: dict[str, Any]
) -> None:
    assert job['backoffLimit'] == 0 and job['template']['spec']['restartPolicy'] == 'Never'  # all pods start together
    [rule] = job['podFailurePolicy']['rules']
    assert rule['action'] == 'FailJob' and rule['onExitCodes']['operator'] == 'In'
    assert rule['onExitCodes']['values'] == [EXIT_BAD_INPUT] and EXIT_RUN_AGAIN not in rule['onExitCodes']['values']
    assert rule['onExitCodes']['containerName'] == container['name']
    policy = manifest['spec']['failurePolicy']
    assert policy['maxRestarts'] > 0
    [fatal] = policy['rules']
    # https://jobset.sigs.k8s.io: rule names are identifiers; FailJobSet does not restart.
    assert re.fullmatch(r'[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?', fatal['name'])
    assert (fatal['action'], fatal['onJobFailureReasons']) == ('FailJobSet', ['PodFailurePolicy'])
    assert job['template']['spec']['terminationGracePeriodSeconds'] >= _UNMEASURED_SAVE


def test_pods_meet_the_restricted_standard_and_write_only_to_tmp(
    job: dict[str, Any], container: dict[str, Any]
) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards, `restricted`."""
    pod, own = job['template']['spec']['securityContext'], container['securityContext']
    assert pod['runAsNonRoot'] is True and pod['runAsUser'] > 0 and pod['runAsGroup'] > 0
    assert pod['seccompProfile'] == {'type': 'RuntimeDefault'}
    assert own['allowPrivilegeEscalation'] is False and own['readOnlyRootFilesystem'] is True
    assert own['capabilities'] == {'drop': ['ALL']} and not own.get('privileged')
    spec = job['template']['spec']
    assert not {'hostNetwork', 'hostPID', 'hostIPC'} & spec.keys() and spec['automountServiceAccountToken'] is False
    assert not any('hostPath' in volume for volume in spec['volumes'])
    writable = {mount['mountPath'] for mount in container['volumeMounts'] if not mount.get('readOnly')}
    assert writable == {'/tmp', '/dev/shm'} and _environment(container, 0)['HOME'] == '/tmp'  # caches, plans of windows


@pytest.mark.processes
def test_command_of_the_tpu_script_is_valid(tmp_path) -> None:
    """gcloud is replaced by a program that records its arguments."""
    notes = tmp_path / 'notes'
    (tmp_path / 'gcloud').write_text(
        f'#!{sys.executable}\nimport sys\nopen({str(notes)!r}, "a").write(repr(sys.argv[1:]) + "\\n")\n'
    )
    (tmp_path / 'gcloud').chmod(0o755)
    (tmp_path / 'folder').mkdir()
    arguments = ['--config=configs/bert.py:base', '--workdir=gs://bucket/a run', '--config.card.language=en, de']
    subprocess.run(
        ['bash', str(ROOT / 'launch' / 'tpu_pod.sh'), 'pod', 'zone', *arguments],
        env={'PATH': f'{tmp_path}:/usr/bin:/bin'},
        cwd=tmp_path / 'folder',
        check=True,
        timeout=60,
    )
    copy, run = (eval(line) for line in notes.read_text().splitlines())
    assert copy[:4] == ['compute', 'tpus', 'tpu-vm', 'scp'] and copy[-1] == '--worker=all'
    assert run[:5] == ['compute', 'tpus', 'tpu-vm', 'ssh', 'pod'] and '--worker=all' in run
    command = shlex.split(run[-1].removeprefix('--command=').rpartition('&&')[2])
    assert command[1:4] == ['-m', 'bert_jax', 'train'] and command[4] == '--distributed'
    assert command[5:] == arguments
