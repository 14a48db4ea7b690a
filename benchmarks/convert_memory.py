"""Peak host memory of importing and of loading a model shaped like OpenFlamingo-9B.

Dummy torch files of zeros with the true shapes (sparse on disk: `--scale` shrinks widths, 1 is the
real size), imported to a model directory and then loaded onto a mesh. Prints for each the growth of
anonymous memory over the start, the largest parameter, and on how many devices it was loaded.

    python benchmarks/convert_memory.py --scale 4
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

DEVICES = 4


def anonymous_bytes() -> int:
    """Memory of this process that is not a file's pages (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Peak:
    """Highest anonymous memory while inside, sampled every few milliseconds."""

    def __enter__(self) -> "Peak":
        self.start = self.highest = anonymous_bytes()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.is_set():
            self.highest = max(self.highest, anonymous_bytes())
            time.sleep(0.005)

    def __exit__(self, *error: object) -> None:
        self.done.set()
        self.thread.join()


def sparse_safetensors(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Float16 zeros that take no room on the disk."""
    import math

    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        offsets = [offset, offset + size]
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": offsets}
        offset += size
    encoded = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + offset)


def write_dummies(folder: Path, scale: int) -> None:
    from flamingo_jax.conversion.families import family_of
    from flamingo_jax.conversion.openflamingo import all_rows
    from flamingo_jax.conversion.weights import make_plan, torch_shapes
    from flamingo_jax.models.cross_attention import CrossAttentionConfig
    from flamingo_jax.models.flamingo import FlamingoConfig
    from flamingo_jax.models.params import flamingo_graph
    from flamingo_jax.models.vision import VisionConfig

    language = {
        "model_type": "mpt",
        "d_model": 4096 // scale,
        "n_heads": 32,
        "n_layers": 32,
        "vocab_size": 50_280,
        "no_bias": True,
        "attn_config": {"alibi": True},
    }
    vision = {
        "embed_dim": 768 // scale,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": 224,
            "layers": 24,
            "width": 1024 // scale,
            "patch_size": 14,
            "head_width": 64 // scale,
        },
    }
    facts = {
        "lm_config": language,
        "clip_config": vision,
        "cross_attn_every_n_layers": 4,
        "vocab_size_after_resize": 50_280,
        "eoc_token_id": 50_277,
        "media_token_id": 50_278,
        "pad_token_id": 50_279,
    }
    (folder / "config.json").write_text(json.dumps(facts))
    family = family_of(language)
    base = family.decoder(language)
    decoder = {**vars(base), "vocab_size": 50_277, "num_new_tokens": 2, "num_pad_tokens": 1}
    config = FlamingoConfig(
        vision=VisionConfig(
            width=1024 // scale,
            num_layers=24,
            num_heads=16,
            activation="quick_gelu",
            projection_width=768 // scale,
        ),
        decoder=type(base)(**decoder),
        cross_attention=CrossAttentionConfig(interval=4),
    )
    shapes = flamingo_graph(config).shapes()
    sparse_safetensors(
        folder / "model.safetensors",
        torch_shapes(make_plan(shapes, config, all_rows(family, config))),
    )


def measure(folder: Path, phase: str) -> None:
    import jax

    from flamingo_jax.convert import main
    from flamingo_jax.model_directory import load, open_directory
    from flamingo_jax.training.sharding import MeshConfig, make_mesh

    jax.devices()
    started = time.perf_counter()
    with Peak() as peak:
        if phase == "import":
            flags = [f"--state-dict={folder / 'model.safetensors'}", "--dtype=bfloat16"]
            flags += [f"--config={folder / 'config.json'}", f"--out={folder / 'model'}"]
            main(["convert", "import", *flags])
            device_bytes = 0
        else:
            mesh = make_mesh(MeshConfig(data=1, fsdp=DEVICES))
            model = load(folder / "model", mesh)
            device_bytes = sum(
                shard.data.nbytes for p in model.params.values() for shard in p.addressable_shards
            )
    leaves = open_directory(folder / "model").leaves.values()
    largest = max(leaf.views[0].nbytes for leaf in leaves)
    grown = peak.highest - peak.start - device_bytes
    print(
        f"{phase}: {time.perf_counter() - started:.0f} s, host memory beside "
        f"{device_bytes / 1e9:.2f} GB of device copies grew by {grown / 1e6:.0f} MB = "
        f"{grown / largest:.2f} × the largest parameter ({largest / 1e6:.0f} MB)"
    )


def main_benchmark() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=int, default=4, help="divides every width")
    parser.add_argument("--phase", choices=("import", "load"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.phase:
        measure(args.folder, args.phase)
        return
    with tempfile.TemporaryDirectory() as name:
        write_dummies(Path(name), args.scale)
        # Devices of a CPU are host memory, which is why their copies are counted apart.
        flags = f"--xla_force_host_platform_device_count={DEVICES}"
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        for phase in ("import", "load"):
            command = [sys.executable, __file__, "--phase", phase, "--folder", name]
            subprocess.run(command, check=True, env=environment)


if __name__ == "__main__":
    main_benchmark()
