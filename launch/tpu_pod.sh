#!/bin/bash
# Trains on all hosts of a TPU slice, through gcloud.
#
#     launch/tpu_pod.sh TPU_NAME ZONE --config=configs/bert.py:base --workdir=gs://bucket/runs/base
#
# Run it from the project's folder: it copies the folder to every host, installs, and starts the same command on each.
# The hosts share no disk: the workdir lies in a bucket, and the corpus is copied to each host (or lies in the folder).
# Typed again after a preemption, it goes on from the last checkpoint. The exit status is that of the hosts.
set -euo pipefail

if [ $# -lt 3 ]; then
  sed -n '2,8s/^# \{0,1\}//p' "$0"
  exit 2
fi
name=$1 zone=$2
shift 2

folder=$(basename "$PWD")
archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
tar --exclude=.venv --exclude=.git --exclude=runs -czf "$archive" -C .. "$folder"
gcloud compute tpus tpu-vm scp "$archive" "$name:bert_jax.tar.gz" --zone="$zone" --worker=all

command="tar -xzf bert_jax.tar.gz && cd $(printf %q "$folder") && make install ACCELERATOR=tpu &&"
command+=" .venv/bin/python -m bert_jax train --distributed $(printf '%q ' "$@")"
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$command"
