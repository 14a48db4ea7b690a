"""Importing a PyTorch checkpoint and loading it, time and memory, beside PyTorch's own loading.

The checkpoint is a file of float16 zeros in the shapes of OpenFlamingo-9B (`--size` shrinks them),
sparse on the disk and small in no other way. Ours: `convert import` once, then at each start
`flamingo_jax.load` onto a mesh of all devices (on CPU: four made of the host's memory). PyTorch, as
the original does it: the module in `--dtype`, `torch.load`, `load_state_dict`, and `to(device)`; no
time is spent on random weights that the checkpoint then replaces. Each runs in a process of its
own. Memory is the growth of what is not a file's pages; of a CPU's devices, the copies are counted.

    python -m benchmarks.conversion --size 9b --dtype bfloat16 --json figures.json
"""

import contextlib
import io
import json
import math
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.measuring import Peak, in_own_process
from flamingo_jax.errors import UserError

DEVICES = 4
# Divisor of every width; layers of the language model and of the vision encoder.
SIZES = {"small": (4, 32, 24), "9b": (1, 32, 24), "tiny": (16, 4, 2)}
VOCABULARY, NEW_TOKENS, INTERVAL = 50_280, 3, 4
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Phase:
    """What a process measured of itself; bytes."""

    seconds: float
    grown: int
    on_devices: int = 0


def checkpoint_facts(size: str) -> dict[str, Any]:
    """Returns the configs of both backbones and the token ids, as `import --config` reads them."""
    scale, layers, vision_layers = SIZES[size]
    return {
        "lm_config": {
            "model_type": "mpt",
            "d_model": 4096 // scale,
            "n_heads": 32,
            "n_layers": layers,
            "vocab_size": VOCABULARY,
            "no_bias": True,
            "attn_config": {"alibi": True},
        },
        "clip_config": {
            "embed_dim": 768 // scale,
            "quick_gelu": True,
            "vision_cfg": {
                "image_size": 224,
                "layers": vision_layers,
                "width": 1024 // scale,
                "patch_size": 14,
                "head_width": 64 // scale,
            },
        },
        "cross_attn_every_n_layers": INTERVAL,
        "vocab_size_after_resize": VOCABULARY,
        "eoc_token_id": VOCABULARY - 3,
        "media_token_id": VOCABULARY - 2,
        "pad_token_id": VOCABULARY - 1,
    }


def checkpoint_shapes(facts: dict[str, Any]) -> Shapes:
    """Returns every tensor of the original's `state_dict()`."""
    from flamingo_jax.convert import clip_config
    from flamingo_jax.convert.families import family_of
    from flamingo_jax.convert.openflamingo import all_rows
    from flamingo_jax.models.fusion.gated_cross_attention import GatedCrossAttentionConfig
    from flamingo_jax.models.params import model_graph
    from flamingo_jax.models.vlm import ModelConfig
    from flamingo_jax.weights.views import make_plan, torch_shapes

    family = family_of(facts["lm_config"])
    base = family.decoder(facts["lm_config"])
    rows = {"vocab_size": VOCABULARY - NEW_TOKENS, "num_new_tokens": 2, "num_pad_tokens": 1}
    config = ModelConfig(
        encoder=clip_config.openclip_config(facts["clip_config"]),
        decoder=type(base)(**{**vars(base), **rows}),
        fusion=GatedCrossAttentionConfig(interval=INTERVAL),
    )
    rows = all_rows(family, config)
    return torch_shapes(make_plan(model_graph(config).shapes(), rows, config.locate))


def write_checkpoint(path: Path, shapes: Shapes) -> None:
    """Float16 zeros that take no room in memory or on the disk. In a process of its own."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        tensors = {name: torch.empty(shape, dtype=torch.float16) for name, shape in shapes.items()}
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(tensors, path)


def our_import(folder: Path, dtype: str) -> Phase:
    import torch  # noqa: F401  (its own memory is not the import's)

    from flamingo_jax.convert.__main__ import main

    flags = [f"--state-dict={folder / 'checkpoint.pt'}", f"--config={folder / 'config.json'}"]
    flags += [f"--dtype={dtype}", f"--out={folder / 'model'}"]
    start = time.perf_counter()
    with Peak() as peak, contextlib.redirect_stdout(io.StringIO()):
        main(["convert", "import", *flags])
    return Phase(time.perf_counter() - start, peak.grown)


def our_load(folder: Path, device: str) -> Phase:
    if device == "cpu":
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"
    import jax

    from flamingo_jax.generate.loading import load
    from flamingo_jax.parallel.mesh import MeshConfig, make_mesh

    mesh = make_mesh(MeshConfig(data=1, fsdp=-1))
    start = time.perf_counter()
    with Peak() as peak:
        params = jax.block_until_ready(load(folder / "model", mesh).params)
    seconds = time.perf_counter() - start
    shards = [shard.data for value in params.values() for shard in value.addressable_shards]
    return Phase(seconds, peak.grown, sum(shard.nbytes for shard in shards))


def torch_load(folder: Path, device: str, dtype: str, shapes: Shapes) -> Phase:
    """Loads the original's way."""
    import torch

    def owner(root: Any, path: Sequence[str]) -> Any:
        for part in path:
            if part not in dict(root.named_children()):
                root.add_module(part, torch.nn.Module())
            root = root.get_submodule(part)
        return root

    torch.zeros(1, device=device)
    start = time.perf_counter()
    with Peak() as peak:
        module = torch.nn.Module()
        for name, shape in shapes.items():
            *path, last = name.split(".")
            parameter = torch.nn.Parameter(torch.zeros(shape, dtype=getattr(torch, dtype)))
            owner(module, path).register_parameter(last, parameter)
        state = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
        module.load_state_dict(state)
        module.to(device)
        if device == "cuda":
            torch.cuda.synchronize()
    return Phase(time.perf_counter() - start, peak.grown)


def largest_parameter(folder: Path) -> int:
    from flamingo_jax.weights.model_directory import open_directory

    return max(leaf.views[0].nbytes for leaf in open_directory(folder).leaves.values())


def free_bytes() -> int:
    """Returns the memory that can be had without swapping (Linux)."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    (free,) = (int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return free * 1024


def add_rows(table: report.Report, folder: Path, args: Any, shapes: Shapes) -> None:
    imported = in_own_process(our_import, folder, args.dtype)
    loaded = in_own_process(our_load, folder, args.device)
    largest = largest_parameter(folder / "model")
    tensors = sum(math.prod(shape) for shape in shapes.values())
    needed = tensors * (2 + (4 if args.dtype == "float32" else 2))
    peer, device = None, report.torch_device(args.device)
    if device is None:
        table.note(report.no_torch(args.device))
    elif needed > free_bytes():
        free = free_bytes() / 1e9
        table.note(f"peer not run: it needs {needed / 1e9:.1f} GB of memory, {free:.1f} are free")
    else:
        peer = in_own_process(torch_load, folder, device, args.dtype, shapes)
    table.add("parameters", tensors / 1e6, unit="million")
    table.add("import_seconds", imported.seconds)
    table.add("import_peak_memory", imported.grown / 1e6, unit="MB")
    table.add("import_memory_of_largest_parameter", imported.grown / largest)
    table.add("load_seconds", loaded.seconds, peer and peer.seconds)
    table.add("load_peak_memory", loaded.grown / 1e6, peer and peer.grown / 1e6, unit="MB")
    # Of a CPU, the devices' copies are host memory as well.
    beside = loaded.grown - (loaded.on_devices if args.device == "cpu" else 0)
    table.add("load_memory_beside_devices", beside / 1e6, unit="MB")
    table.add("load_memory_of_largest_parameter", beside / largest)


def main(argv: Sequence[str]) -> None:
    parser = report.parser(__doc__, tuple(SIZES))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--folder", type=Path, help="for the files; default: a temporary one")
    args = report.parse(parser, argv)
    if report.torch_device("cpu") is None:
        raise UserError("PyTorch is not installed: pip install 'flamingo-jax[torch]'")
    facts = checkpoint_facts(args.size)
    shapes = checkpoint_shapes(facts)
    table = report.Report("conversion", args)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(facts))
        in_own_process(write_checkpoint, folder / "checkpoint.pt", shapes)
        add_rows(table, folder, args, shapes)
    table.write()


if __name__ == "__main__":
    report.run(main)
