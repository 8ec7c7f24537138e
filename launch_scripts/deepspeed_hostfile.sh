#!/usr/bin/env bash
# Train on the machines of a hostfile with DeepSpeed's launcher, which starts the processes over ssh.
#
#   launch_scripts/deepspeed_hostfile.sh HOSTFILE CONFIG.yaml [section.key=value ...]
#
# HOSTFILE has one machine a line, `node1 slots=8`. It needs on every machine: passwordless ssh from this one, `pdsh` here,
# and MegaOKD, the data, the models and checkpoint.folder under the same paths.
#
# This script has not been run on more than one machine yet.
set -euo pipefail

if (($# < 2)); then
    echo "usage: $0 HOSTFILE CONFIG.yaml [section.key=value ...]" >&2
    exit 2
fi
hostfile=$1
shift

# --module starts `python -m megaokd.cli`; without --no_local_rank the launcher would put `--local_rank=N` in front of
# `train`, and the command would be refused.
exec deepspeed --hostfile "$hostfile" --no_local_rank --module megaokd.cli train "$@"
