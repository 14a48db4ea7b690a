"""Launch scripts say what they would run; nothing is submitted."""

import subprocess
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = sorted(LAUNCH.glob("*/*.sh"))
TRAIN = ["--", "--config=configs/of9b.py", "--workdir=/shared/a run"]
TPU = ["--name", "of9b", "--zone", "us-east5-b", "--type", "v5litepod-64"]
TPU += ["--source", "https://example.org/flamingo.git"]
GKE = ["--name", "of9b", "--image", "gcr.io/p/flamingo", "--topology", "8x8", "--hosts", "16"]
GKE += ["--accelerator", "tpu-v5-lite-podslice"]


def dry_run(script: str, *arguments: str) -> str:
    return run(script, *arguments, "--dry-run", *TRAIN).stdout


def run(script: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", LAUNCH / script, *arguments], capture_output=True, text=True, check=check
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert script.stat().st_mode & 0o100
    assert run(str(script), "--help").stdout.startswith(f"usage: {script.name}")


def test_all_scripts_are_tried():
    assert [path.name for path in SCRIPTS] == ["train.sh", "jobset.sh", "queued.sh"]


@pytest.mark.parametrize(("tasks", "per_node"), [("gpu", 8), ("node", 1)])
def test_slurm_starts_one_process_per_gpu_or_node(tasks, per_node):
    script = dry_run("slurm/train.sh", "--nodes", "4", "--tasks", tasks, "--partition", "a100")
    lines = script.splitlines()
    assert {
        "#SBATCH --nodes=4",
        f"#SBATCH --ntasks-per-node={per_node}",
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --requeue",
        "#SBATCH --signal=B:USR1@300",
        "#SBATCH --partition=a100",
    } <= set(lines)
    assert r"--workdir=/shared/a\ run &" in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize(
    ("step", "status", "requeued"),
    [("exit 0", 0, False), ("exit 3", 3, False), ("trap 'exit 0' USR1; sleep 9 & wait", 0, True)],
    ids=["done", "failed", "out_of_time"],
)
def test_a_slurm_job_that_runs_out_of_time_is_queued_again(tmp_path, step, status, requeued):
    """The batch script itself, with stand-ins for SLURM's commands."""
    script = dry_run("slurm/train.sh", "--flags", "none")
    for name, text in {"srun": step, "scontrol": f"echo $* > {tmp_path}/requeued"}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
    if requeued:  # SLURM signals the batch shell
        script = script.replace("step=$!\n", "step=$!\n(sleep 1; kill -USR1 $$) &\n")
    done = subprocess.run(["bash"], input=script, text=True, env=environment, timeout=60)
    assert done.returncode == status
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 7\n"


def test_queued_resources_are_asked_for_and_used():
    create, train = dry_run("tpu/queued.sh", *TPU, "--spot").splitlines()
    assert create.startswith("gcloud compute tpus queued-resources create of9b --node-id of9b")
    assert "--accelerator-type v5litepod-64" in create
    assert "--spot" in create
    assert train.startswith("gcloud compute tpus tpu-vm ssh of9b --zone us-east5-b --worker all")
    assert "flamingo_jax.train" in train


def test_the_jobset_is_a_manifest():
    manifest = yaml.safe_load(dry_run("tpu/jobset.sh", *GKE, "--slices", "2"))
    assert manifest["kind"] == "JobSet"
    (job,) = manifest["spec"]["replicatedJobs"]
    assert job["replicas"] == 2
    assert job["template"]["spec"]["parallelism"] == 16
    pod = job["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "8x8"
    (container,) = pod["containers"]
    assert container["command"][-2:] == TRAIN[1:]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert "volumes" not in pod


def test_a_claim_is_mounted_in_every_pod():
    manifest = yaml.safe_load(dry_run("tpu/jobset.sh", *GKE, "--claim", "runs"))
    (job,) = manifest["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    (volume,), (container,) = pod["volumes"], pod["containers"]
    assert volume["persistentVolumeClaim"] == {"claimName": "runs"}
    assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/mnt/runs"}]


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("slurm/train.sh", ["--nodes", "2"], "no -- with arguments of flamingo_jax.train"),
        ("slurm/train.sh", ["--tasks", "core", *TRAIN], "--tasks is core, expected gpu or node"),
        ("slurm/train.sh", ["--nodes", "two", *TRAIN], "two is not a positive number"),
        ("slurm/train.sh", ["--nods", "2", *TRAIN], "unknown option --nods"),
        ("tpu/queued.sh", TRAIN, "--name is not given"),
        ("tpu/jobset.sh", ["--name"], "--name needs a value"),
    ],
)
def test_mistakes_are_named(script, arguments, message):
    done = run(script, *arguments, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == f"error: {message}"
