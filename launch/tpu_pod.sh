#!/bin/bash
# Trains on all hosts of a TPU slice, using gcloud.
#
#     launch/tpu_pod.sh TPU_NAME ZONE --config=configs/bert.py:base --workdir=gs://bucket/runs/base
#
# It copies the current directory to every host, installs bert_jax there in .venv, and starts the same command on each.
# In the project's own directory it installs with `make install ACCELERATOR=tpu`; elsewhere, set INSTALL, for example
#
#     INSTALL="python3 -m venv .venv && .venv/bin/pip install './bert_jax-VERSION-py3-none-any.whl[tpu]'"
#
# The hosts share no disk: put the workdir in a bucket, and the corpus in the current directory or on each host.
# After a preemption, rerun the same command to resume from the last checkpoint. The exit status is that of the hosts.
set -euo pipefail

if [ $# -lt 3 ]; then
  sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
  exit 2
fi
name=$1 zone=$2
shift 2

folder=$(basename "$PWD")
archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
tar --exclude=.venv --exclude=.git --exclude=runs -czf "$archive" -C .. "$folder"
gcloud compute tpus tpu-vm scp "$archive" "$name:bert_jax.tar.gz" --zone="$zone" --worker=all

command="tar -xzf bert_jax.tar.gz && cd $(printf %q "$folder") && ${INSTALL:-make install ACCELERATOR=tpu} &&"
command+=" .venv/bin/python -m bert_jax train --distributed $(printf '%q ' "$@")"
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$command"
