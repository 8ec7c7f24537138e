#!/usr/bin/env bash
# Train on this machine with several processes.
#
#   launch_scripts/local.sh PROCESSES CONFIG.yaml [section.key=value ...]
#
# PROCESSES is the number of GPUs, or on a machine without one the number of CPU processes. It must be a multiple of
# parallel.tensor x parallel.pipeline; what is left over is data parallelism.
set -euo pipefail

if (($# < 2)); then
    echo "usage: $0 PROCESSES CONFIG.yaml [section.key=value ...]" >&2
    exit 2
fi
processes=$1
shift

# One thread a process, unless asked for otherwise: processes that share a CPU must not fight over its cores.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# On SIGTERM torchrun passes the signal on and kills workers that have not ended after --shutdown-timeout seconds (its
# default is 30): the time that a step, a validation and a save may take. Whatever the workers' exit status, its own is
# then 1.
exec torchrun --standalone --nproc-per-node="$processes" --shutdown-timeout=600 -m megaokd.cli train "$@"
