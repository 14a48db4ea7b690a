#!/usr/bin/env bash
# Submit a training run on nodes of A100s, or on others with 8 GPUs.
#
#   launch/slurm/train.sh --nodes 8 -- --config=configs/of9b.py --workdir=/shared/runs/of9b
#
# What stands after -- goes to flamingo_jax.train. --dry-run prints the batch script instead.
# Before the time limit the run saves and is queued again; so it is when it is preempted.
set -euo pipefail
source "$(dirname "$0")/../options.sh"

usage() {
  cat <<'USAGE'
usage: train.sh [options] -- ARGUMENTS OF flamingo_jax.train
  --nodes N         nodes (default 1)
  --gpus N          GPUs per node (default 8)
  --tasks gpu|node  one process per GPU (default), or one per node
  --time T          time limit (default 24:00:00)
  --partition P     --account A    --name N (default flamingo)
  --warning S       seconds before the time limit when the run is told to save (default 300)
  --flags PRESET    XLA flags, see flamingo_jax/runtime/xla_flags.py (default fsdp; none: none)
  --python PATH     default .venv/bin/python
  --dry-run         print the batch script
USAGE
}

nodes=1 gpus=8 tasks=gpu time=24:00:00 partition= account= name=flamingo warning=300
flags=fsdp python=.venv/bin/python dry_run=
read_options "nodes gpus tasks time partition account name warning flags python" "dry-run" "$@"
case $tasks in
  gpu) per_node=$gpus ;;
  node) per_node=1 ;;
  *) fail "--tasks is $tasks, expected gpu or node" ;;
esac
for number in "$nodes" "$gpus" "$warning"; do
  [[ $number =~ ^[1-9][0-9]*$ ]] || fail "$number is not a positive number"
done

printf -v command ' %q' "$python" -m flamingo_jax.train "${arguments[@]}"
script=$(
  cat <<SCRIPT
#!/usr/bin/env bash
#SBATCH --job-name=$name
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$per_node
#SBATCH --gpus-per-node=$gpus
#SBATCH --exclusive
#SBATCH --time=$time
#SBATCH --requeue
#SBATCH --signal=B:USR1@$warning
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
${partition:+#SBATCH --partition=$partition
}${account:+#SBATCH --account=$account
}set -euo pipefail
SCRIPT
  if [[ $flags != none ]]; then
    printf 'XLA_FLAGS=$(%q -m flamingo_jax.runtime.xla_flags %q)\nexport XLA_FLAGS\n' "$python" "$flags"
  fi
  cat <<SCRIPT
# SLURM tells this shell alone that time is running out; srun passes the signal on to every task.
out_of_time=
trap 'out_of_time=yes; kill -USR1 "\$step"' USR1
srun --kill-on-bad-exit=1$command &
step=\$!
status=0
wait "\$step" || status=\$?
if [[ \$out_of_time ]]; then
  wait "\$step" && status=0 || status=\$?  # the trap ended the first wait
  [[ \$status == 0 ]] && scontrol requeue "\$SLURM_JOB_ID"
fi
exit "\$status"
SCRIPT
)
if [[ $dry_run ]]; then
  echo "$script"
else
  sbatch <<<"$script"
fi
