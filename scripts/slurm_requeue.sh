#!/usr/bin/env bash
# A run that SLURM may interrupt as often as it likes:
#   sbatch --nodes 2 --gpus-per-node 4 scripts/slurm_requeue.sh experiment=tagging/spoken_words exp_dir=experiments/a
# One task to a GPU, without torchrun in between: srun passes the signal on to each of them. Two minutes before the time
# limit, or on pre-emption, the run gets SIGUSR1, saves at its next update and leaves with 138; the job is put back into
# the queue and goes on from there. See what would run, without SLURM: DRY_RUN=1 scripts/slurm_requeue.sh ...
#SBATCH --job-name=ostinato
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
set -euo pipefail

case " $* " in
  *" exp_dir="*) ;;
  *) echo "error: name the folder to go on in: exp_dir=..." >&2; exit 2 ;;
esac

readonly REQUEUE=138  # 128 + SIGUSR1, as the trainer exits when it has saved
nodes=${SLURM_JOB_NODELIST:-localhost}
MASTER_ADDR=$([ -n "${DRY_RUN:-}" ] && echo localhost || scontrol show hostnames "$nodes" | head -n 1)
MASTER_PORT=$((20000 + ${SLURM_JOB_ID:-0} % 20000))
export MASTER_ADDR MASTER_PORT
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

# What launchers set, from what srun sets.
read -r -d '' TASK <<'TASK' || true
export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
exec python train.py auto_resume=true "$@"
TASK
command=(srun --kill-on-bad-exit=0 bash -c "$TASK" train.py "$@")

if [ -n "${DRY_RUN:-}" ]; then
  printf '%q ' "${command[@]}"; echo
  echo "MASTER_ADDR=$MASTER_ADDR MASTER_PORT=$MASTER_PORT; exit $REQUEUE: scontrol requeue ${SLURM_JOB_ID:-<job>}"
  exit 0
fi

"${command[@]}" &
child=$!
trap 'kill -USR1 "$child"' USR1
code=0
wait "$child" || code=$?
while kill -0 "$child" 2>/dev/null; do  # a trapped signal ends `wait` before the child ends
  code=0
  wait "$child" || code=$?
done
if [ "$code" -eq "$REQUEUE" ]; then
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$code"
