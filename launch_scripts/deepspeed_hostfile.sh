#!/usr/bin/env bash
# Train on the machines of a hostfile with DeepSpeed's launcher, which starts the processes with pdsh over ssh.
#
#   launch_scripts/deepspeed_hostfile.sh HOSTFILE CONFIG.yaml [section.key=value ...]
#
# HOSTFILE has one machine a line, `node1 slots=8`: 8 processes there. Run it on the first of them, with the environment
# of MegaOKD active. Every machine needs this directory, the environment, the data, the models and checkpoint.folder
# under the same paths, and passwordless ssh from here; `pdsh` is needed here. docs/cluster.md says more.
set -euo pipefail

if (($# < 2)); then
    echo "usage: $0 HOSTFILE CONFIG.yaml [section.key=value ...]" >&2
    exit 2
fi
hostfile=$1
shift

# Without these, ssh would wait for a machine that the network lost for as long as TCP does, a quarter of an hour or
# more: it ends after 60 seconds of silence instead, and asks nobody for a password.
export PDSH_SSH_ARGS_APPEND="-o BatchMode=yes -o ServerAliveInterval=15 -o ServerAliveCountMax=4 ${PDSH_SSH_ARGS_APPEND:-}"

# The launcher passes on few variables; without this, processes that share a CPU would each start a thread for every core.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# What is passed on stands on command lines, which `ps` shows to everybody on every machine, and in the launcher's log.
settings=()
while read -r name; do
    if [[ $name =~ TOKEN|KEY|SECRET|PASSWORD ]]; then
        echo "$0: $name is not passed on, it would be no secret any more; docs/cluster.md says what to do instead" >&2
    else
        settings+=("$name=${!name}")
    fi
done < <(compgen -e | grep -E '^(OMP|GLOO|NCCL|TORCH|HF|WANDB)_')

# `env` sets them on every machine. Without --no_local_rank the launcher would add `--local_rank=N`, and the command would
# be refused. MASTER_PORT keeps two runs on one machine apart.
exec deepspeed --hostfile "$hostfile" --master_port "${MASTER_PORT:-29500}" --no_local_rank --no_python \
    env "${settings[@]}" "$(command -v python)" -m megaokd.cli train "$@"
