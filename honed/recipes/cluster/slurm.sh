#!/bin/bash
# Many nodes under Slurm: one torchrun on each, one process per GPU; what stands behind the script is for `honed train`.
#   CLUSTER=$(python -c "import honed, pathlib; print(pathlib.Path(honed.__file__).parent / 'recipes/cluster')")
#   sbatch --nodes 8 "$CLUSTER/slurm.sh" multi_gpu model=/shared/Qwen3-0.6B data.files=/shared/rows.jsonl output=/shared/runs/mine
#
# Submit from the Python environment that is to be used, in a folder that all nodes see; model, data and output lie on
# such a file system, too. Nodes are taken to be offline: the model is a folder, or in the cache that HF_HOME names
# (fetch it before, on a login node).
#
# Five minutes before the time limit, or on `scancel --signal USR1 JOB`, the processes get SIGTERM: they finish their
# step, save a checkpoint and end. The job is then put back into the queue, and the same command goes on from there. (A
# SIGTERM to torchrun itself would leave them 30 seconds.) A killed node costs what was trained since the last
# checkpoint: set save_strategy=steps save_steps=N. A checkpoint counts with the same number of GPUs only.
# Tested with stand-ins for srun and scontrol; not measured on a cluster.
#SBATCH --job-name=honed
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

: "${SLURM_JOB_ID:?is not set: start this script with sbatch}"
if (($# == 0)); then
  echo "Nothing to train: give the arguments of honed train, as the first lines of this script show." >&2
  exit 2
fi

export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"
read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST") # the first line
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))

on_each_node() {
  torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc_per_node "${SLURM_GPUS_ON_NODE:-8}" \
    --rdzv_backend c10d --rdzv_id "$SLURM_JOB_ID" --rdzv_endpoint "$MASTER_ADDR:$MASTER_PORT" \
    -m honed train "$@" &
  launcher=$!
  # to the processes that train, not to torchrun, which would kill them after 30 seconds
  trap 'touch "$STOPPED"; pkill -TERM -P "$launcher" || true' USR1
  until wait "$launcher"; do # a signal ends the waiting early
    status=$?
    kill -0 "$launcher" 2>/dev/null || return "$status"
  done
}
export -f on_each_node

export STOPPED="$PWD/.honed-stopped-$SLURM_JOB_ID" # made by the signal, seen below
rm -f "$STOPPED"
srun --kill-on-bad-exit=1 bash -c 'set -u; on_each_node "$@"' on_each_node "$@"

if [[ -e $STOPPED ]]; then
  rm -f "$STOPPED"
  scontrol requeue "$SLURM_JOB_ID"
fi
