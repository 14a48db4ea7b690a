#!/usr/bin/env bash
# Ask for a TPU slice, wait for it, and train on all of its hosts.
#
#   launch/tpu/queued.sh --name of9b --zone us-east5-b --type v5litepod-64 \
#       -- --config=configs/of9b.py --workdir=/mnt/runs/of9b
#
# The working directory is on a disk that all hosts have mounted. Needs gcloud. --dry-run prints the commands instead. Run the same command again after a
# preemption: training goes on from the last checkpoint.
set -euo pipefail
source "$(dirname "$0")/../options.sh"

usage() {
  cat <<'USAGE'
usage: queued.sh --name NAME --zone ZONE --type TYPE [options] -- ARGUMENTS OF flamingo_jax.train
  --type TYPE      v5litepod-64, v5p-128, v4-256, …
  --runtime R      software of the hosts (default v2-alpha-tpuv5-lite)
  --project P      default: gcloud's
  --source GIT     what the hosts install (default: the repository's origin)
  --spot           a slice that can be taken back
  --dry-run        print the commands
USAGE
}

name= zone= type= runtime=v2-alpha-tpuv5-lite project= source= spot= dry_run=
read_options "name zone type runtime project source" "dry-run spot" "$@"
for required in name zone type; do
  [[ ${!required} ]] || fail "--$required is not given"
done
source=${source:-$(git -C "$(dirname "$0")" remote get-url origin 2>/dev/null || true)}
[[ $source ]] || fail "--source is not given, and the repository has no origin"

run() {
  if [[ $dry_run ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

place=(--zone "$zone" ${project:+--project "$project"})
queued=(gcloud compute tpus queued-resources)
state() {
  "${queued[@]}" describe "$name" "${place[@]}" --format 'value(state.state)' 2>/dev/null || true
}

if [[ $dry_run || $(state) != ACTIVE ]]; then
  run "${queued[@]}" create "$name" --node-id "$name" "${place[@]}" --accelerator-type "$type" \
    --runtime-version "$runtime" ${spot:+--spot}
fi
if [[ ! $dry_run ]]; then
  until [[ $(state) == ACTIVE ]]; do
    case $(state) in
      FAILED | SUSPENDED) fail "$name is $(state); delete it and try again" ;;
    esac
    sleep 30
  done
fi

printf -v train ' %q' "${arguments[@]}"
printf -v clone %q "$source"
setup="test -d flamingo_jax || git clone --depth 1 $clone flamingo_jax"
install="cd flamingo_jax && python3 -m venv .venv && .venv/bin/pip install --quiet -e '.[tpu]'"
run gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker all \
  --command "$setup; $install && .venv/bin/python -m flamingo_jax.train$train"
