import re
from dataclasses import dataclass, replace

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from flamingo_jax.models.params import model_graph
from flamingo_jax.parallel.mesh import MeshConfig, make_mesh
from flamingo_jax.parallel.sharding import (
    ParamFacts,
    gathered_spec,
    host_part,
    parameter_spec,
    to_device,
    tree_shardings,
)
from tests.conftest import small_config


def test_minus_one_takes_what_is_left():
    assert make_mesh(MeshConfig()).shape == {"data": 8, "fsdp": 1, "tensor": 1}
    assert make_mesh(MeshConfig(fsdp=4)).shape == {"data": 2, "fsdp": 4, "tensor": 1}
    assert make_mesh(MeshConfig(data=2, fsdp=-1, tensor=2)).shape["fsdp"] == 2


def test_a_mesh_that_does_not_fit_says_so():
    with pytest.raises(ValueError, match="data=3 × fsdp=1 × tensor=1 does not fit 8 devices"):
        make_mesh(MeshConfig(data=3))
    with pytest.raises(ValueError, match="data=-1 × fsdp=3 × tensor=1 does not fit 8 devices"):
        make_mesh(MeshConfig(fsdp=3))
    with pytest.raises(ValueError, match="one may be -1"):
        MeshConfig(data=-1, fsdp=-1)


OUT, IN, TABLE = ParamFacts(split=-1), ParamFacts(split=-2), ParamFacts(split=0)
LAYERS, LAYERS_OUT, LAYERS_IN = (replace(facts, stacked=True) for facts in (ParamFacts(), OUT, IN))


@pytest.mark.parametrize(
    ("facts", "shape", "spec"),
    [
        (TABLE, (50277, 2048), PartitionSpec(None, "fsdp")),
        (LAYERS_OUT, (8, 2048, 8192), PartitionSpec(None, "fsdp")),
        (LAYERS_OUT, (8, 2049, 8192), PartitionSpec(None, None, "fsdp")),
        (LAYERS_IN, (8, 512, 4096), PartitionSpec(None, "fsdp")),
        (ParamFacts(), (64, 1024), PartitionSpec("fsdp")),
        (ParamFacts(), (4096,), PartitionSpec()),
        (LAYERS, (32, 4096), PartitionSpec()),  # a layer of it is small
    ],
)
def test_the_first_divisible_axis_after_the_layers_is_split(facts, shape, spec):
    assert parameter_spec(facts, shape, make_mesh(MeshConfig(fsdp=8))) == spec
    assert parameter_spec(facts, shape, make_mesh(MeshConfig())) == PartitionSpec()


@pytest.mark.parametrize(
    ("facts", "shape", "between_uses", "in_use"),
    [
        (
            LAYERS_OUT,
            (8, 2048, 2048),
            PartitionSpec(None, "fsdp", "tensor"),
            PartitionSpec(None, None, "tensor"),
        ),
        (
            LAYERS_IN,
            (8, 8192, 2048),
            PartitionSpec(None, ("tensor", "fsdp")),
            PartitionSpec(None, "tensor"),
        ),
        (
            LAYERS_OUT,  # a bias
            (3, 16384),
            PartitionSpec(None, ("tensor", "fsdp")),
            PartitionSpec(None, "tensor"),
        ),
        (OUT, (2048, 50280), PartitionSpec("fsdp", "tensor"), PartitionSpec(None, "tensor")),
        (TABLE, (50277, 2048), PartitionSpec(None, "fsdp"), PartitionSpec()),
        (ParamFacts(), (64, 1024), PartitionSpec("fsdp"), PartitionSpec()),
        (ParamFacts(), (4096,), PartitionSpec(), PartitionSpec()),
    ],
)
def test_heads_and_hidden_units_are_split_over_tensor(facts, shape, between_uses, in_use):
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    assert parameter_spec(facts, shape, mesh) == between_uses
    assert gathered_spec(facts, shape, mesh) == in_use


STACKED = re.compile(r"/layers/|/tail/|^cross_attention/")
SPLIT = {
    -1: re.compile(r"/(query|key|value|up|gate)/(kernel|bias)$|^decoder/head/kernel$"),
    -2: re.compile(r"/(out|down)/kernel$"),
    0: re.compile(r"^decoder/embedding/table$"),
}


@pytest.mark.parametrize("decoder", [{}, {"tie_head": False, "gated_mlp": True, "norm": "rmsnorm"}])
def test_what_modules_say_of_their_parameters(decoder):
    """Said once more, by their paths."""
    for path, facts in model_graph(small_config(**decoder)).facts.items():
        split = next((axis for axis, names in SPLIT.items() if names.search(path)), None)
        contracted = -2 if path.endswith("kernel") else -1 if path.endswith("table") else None
        assert facts == ParamFacts(bool(STACKED.search(path)), split, contracted), path


@dataclass(frozen=True)
class FakeGpu:
    id: int
    process_index: int
    slice_index: int  # the node
    platform: str = "gpu"


def test_neighbours_on_fsdp_are_in_one_node_whatever_the_processes_numbers():
    """Two nodes of four GPUs, one process each, numbered in turns."""
    devices = [FakeGpu(i, process_index=i, slice_index=i % 2) for i in range(8)]
    placed = make_mesh(MeshConfig(fsdp=2, tensor=2), devices).devices
    nodes = [{device.slice_index for device in group.flat} for group in placed]
    assert nodes == [{0}, {1}]


@dataclass(frozen=True)
class FakeTpu:
    id: int
    coords: tuple[int, int, int]
    slice_index: int = 0
    process_index: int = 0
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v4"


def test_the_published_mesh_lies_on_a_cube_of_64_tpus():
    """No axes of 4 × 4 × 4 multiply to 8: one of them is cut."""
    devices = [FakeTpu(i, (i % 4, i // 4 % 4, i // 16)) for i in range(64)]
    mesh = make_mesh(MeshConfig(data=8, fsdp=8), devices)
    assert {device.id for device in mesh.devices.flat} == set(range(64))
    for group in mesh.devices[:, :, 0]:
        extent = np.ptp([device.coords for device in group], axis=0)
        assert sorted(extent) == [0, 1, 3]  # neighbours: half of a plane


def test_slices_must_share_the_rows_evenly():
    devices = [FakeTpu(i, (i % 2, i // 2 % 2, 0), slice_index=i // 4) for i in range(12)]
    with pytest.raises(ValueError, match="data=4 does not divide by the 3 TPU slices"):
        make_mesh(MeshConfig(data=4, fsdp=3), devices)


def test_one_process_reads_all_rows():
    assert host_part(make_mesh(MeshConfig(fsdp=2, tensor=2))) == (0, 1)


def test_optimizer_state_lies_with_its_weights():
    shape, mesh = jax.ShapeDtypeStruct((64, 1024), np.float32), make_mesh(MeshConfig(fsdp=8))
    tree = ({"resampler/latents": shape}, jax.ShapeDtypeStruct((), np.int32))
    lies = NamedSharding(mesh, PartitionSpec("fsdp"))
    shardings = tree_shardings(tree, {"resampler/latents": lies}, mesh)
    assert shardings[0]["resampler/latents"] == lies
    assert shardings[1].spec == PartitionSpec()


def test_rows_are_split_over_all_devices():
    batch = {"pairs": {"tokens": np.arange(16).reshape(8, 2)}}
    tokens = to_device(batch, make_mesh(MeshConfig(fsdp=4)))["pairs"]["tokens"]
    assert [shard.data.shape for shard in tokens.addressable_shards] == [(1, 2)] * 8
    np.testing.assert_array_equal(tokens, batch["pairs"]["tokens"])
