#!/usr/bin/env bash
# Train on TPU slices of a GKE cluster with JobSet (https://jobset.sigs.k8s.io).
#
#   launch/tpu/jobset.sh --name of9b --image gcr.io/project/flamingo --accelerator tpu-v5-lite-podslice \
#       --topology 8x8 --hosts 16 --claim runs -- --config=configs/of9b.py --workdir=/mnt/runs/of9b
#
# --dry-run prints the manifest instead of applying it. Pods that are preempted get SIGTERM, save, and
# start again from the checkpoint.
set -euo pipefail
source "$(dirname "$0")/../options.sh"

usage() {
  cat <<'USAGE'
usage: jobset.sh --name NAME --image IMAGE --accelerator A --topology T --hosts N [options] -- ARGUMENTS
  --accelerator A  value of cloud.google.com/gke-tpu-accelerator: tpu-v5-lite-podslice, tpu-v5p-slice, …
  --topology T     of one slice: 4x8, 2x2x4, …
  --hosts N        of one slice
  --slices N       slices (default 1)
  --chips N        chips per host (default 4)
  --claim C        a PersistentVolumeClaim that all pods may write, mounted at /mnt/runs: there a
                   working directory outlives its pods
  --restarts N     of the whole set, before it is given up (default 100)
  --dry-run        print the manifest
USAGE
}

name= image= accelerator= topology= hosts= slices=1 chips=4 claim= restarts=100 dry_run=
read_options "name image accelerator topology hosts slices chips claim restarts" "dry-run" "$@"
for required in name image accelerator topology hosts; do
  [[ ${!required} ]] || fail "--$required is not given"
done

command='"python", "-m", "flamingo_jax.train"'
for argument in "${arguments[@]}"; do
  escaped=${argument//\\/\\\\}
  command+=", \"${escaped//\"/\\\"}\""
done
storage=
if [[ $claim ]]; then
  storage="\
                  volumeMounts: [{name: runs, mountPath: /mnt/runs}]
              volumes: [{name: runs, persistentVolumeClaim: {claimName: $claim}}]"
fi
manifest=$(
  cat <<MANIFEST
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  annotations:
    # One slice of one node pool per job, so that chips of a slice are neighbours.
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $restarts
  replicatedJobs:
    - name: slice
      replicas: $slices
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          backoffLimit: 0
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 300
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $accelerator
                cloud.google.com/gke-tpu-topology: $topology
              containers:
                - name: train
                  image: $image
                  command: [$command]
                  ports:
                    - containerPort: 8471  # between hosts of a slice
                    - containerPort: 8080  # between slices
                  resources:
                    requests: {google.com/tpu: $chips}
                    limits: {google.com/tpu: $chips}
$storage
MANIFEST
)
if [[ $dry_run ]]; then
  echo "$manifest"
else
  kubectl apply -f - <<<"$manifest"
fi
