import jax
import pytest

from flamingo_jax.errors import UserError
from flamingo_jax.parallel.mesh import MeshConfig, make_mesh
from flamingo_jax.parallel.multihost import StopVote, cluster_from_env

SHELL = {"SLURM_NTASKS": "16", "SLURM_PROCID": "0", "JAX_PLATFORMS": "cuda"}
STEP = {
    **SHELL,
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_PROCID": "9",
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "1",
}


def test_alone_there_is_nothing_to_join():
    assert cluster_from_env({"JAX_PLATFORMS": "cpu"}) is None
    assert cluster_from_env({**STEP, "SLURM_STEP_NUM_TASKS": "1"}) is None


def test_a_batch_script_that_runs_the_command_without_srun_is_alone():
    assert cluster_from_env({**SHELL, "SLURM_GPUS_ON_NODE": "8"}) is None


@pytest.mark.parametrize("index", ["JAX_PROCESS_ID", "JOB_COMPLETION_INDEX"])
def test_the_environment_may_say_everything(index):
    """JOB_COMPLETION_INDEX is what Kubernetes sets in an indexed job."""
    found = cluster_from_env(
        {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "4", index: "3"}
    )
    assert found == {
        "coordinator_address": "host:1",
        "num_processes": 4,
        "process_id": 3,
        "cluster_detection_method": "deactivate",
    }


def test_half_of_it_is_an_error():
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES and JAX_PROCESS_ID not set"):
        cluster_from_env({"JAX_COORDINATOR_ADDRESS": "host:1"})


@pytest.mark.parametrize(
    ("changes", "devices"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2)", "SLURM_GPUS_ON_NODE": "8"}, [1]),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2)", "CUDA_VISIBLE_DEVICES": "1"}, [0]),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x16)", "SLURM_GPUS_ON_NODE": "4"}, [0, 1, 2, 3]),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x16)", "CUDA_VISIBLE_DEVICES": "0,1"}, [0, 1]),
        ({"SLURM_STEP_TASKS_PER_NODE": "14,2", "SLURM_GPUS_ON_NODE": "2"}, [1]),
        ({"SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_NODEID": "0"}, [0]),
    ],
    ids=[
        "a task per GPU",
        "a task bound to its GPU",
        "a task per node",
        "half of a node",
        "nodes of several sizes",
        "no GPU",
    ],
)
def test_a_slurm_task_gets_its_gpus_and_no_gpu_is_idle(changes, devices):
    assert cluster_from_env({**STEP, **changes}) == {"local_device_ids": devices}


@pytest.mark.parametrize(
    ("gpus", "visible", "seen"),
    [("4", None, "4 of 4"), ("4", "0,1,2,3", "4 of 4"), ("4", "0,1", "2 of 4")],
    ids=["unbound", "all visible", "bound to two each"],
)
def test_gpus_that_would_be_idle_are_an_error(gpus, visible, seen):
    changes = {"SLURM_STEP_TASKS_PER_NODE": "2(x8)", "SLURM_GPUS_ON_NODE": gpus}
    if visible:
        changes["CUDA_VISIBLE_DEVICES"] = visible
    with pytest.raises(UserError, match=f"sees {seen} GPUs and is one of 2 on its node, expected"):
        cluster_from_env({**STEP, **changes})


def test_one_process_agrees_with_itself_at_once():
    votes = iter([0, 15])
    vote = StopVote(make_mesh(MeshConfig(data=1), jax.devices()[:1]), lambda: next(votes))
    vote.cast()
    assert vote.result() == (0, 0)
    assert vote.result() == (15, 0)
