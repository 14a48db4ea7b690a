"""Both sides of `benchmarks.train_step`: each builds its model, makes steps, times its parts."""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import allow_tf32
from benchmarks.train_step_rows import Data, make_batch
from flamingo_jax.train.config import TrainConfig

PARTS = ("vision", "resampler", "layers", "head_and_loss", "update")
Call = Callable[[], Any]


class Ours:
    """This project's training step, on one device."""

    def __init__(self, config: TrainConfig, data: Data):
        import jax

        from flamingo_jax.parallel.sharding import to_device
        from flamingo_jax.train.setup import set_up, shardings

        self.setup = set_up(config, jax.devices()[:1])
        self.row_parts = [stream.row_parts for stream in config.streams.values()]
        where = shardings((self.setup.state_shapes, self.setup.frozen_shapes))
        make = jax.jit(self.setup.random_state, out_shardings=where)
        self.state, self.frozen = make(jax.random.key(config.seed))
        make.clear_cache()
        self.batch = to_device(make_batch(config, data, packed=True), self.setup.mesh)

    def step(self) -> dict[str, float]:
        import jax
        import optax

        with jax.set_mesh(self.setup.mesh):
            step = self.setup.train_step
            self.state, metrics = step(self.state, self.frozen, self.batch)
        names = [*(f"loss/{stream}" for stream in self.batch), "grad_norm"]
        results = {name: float(metrics[name]) for name in names}
        moments = optax.tree.get(self.state.opt_state, "mu")
        results["moment/new_rows"] = float(np.linalg.norm(moments["decoder/embedding/new_rows"]))
        return results

    def compiled_programs(self) -> int:
        return self.setup.train_step._cache_size()

    def parts(self) -> dict[str, Call]:
        """Returns the step's parts, each alone: forward, and backward where there is a gradient."""
        import jax
        import jax.numpy as jnp
        import optax

        from flamingo_jax.train.step import encode_images

        batch, params, parts = self.batch, self.state.params, self.row_parts
        graph, frozen, optimizer = self.setup.graph, self.frozen, self.setup.optimizer

        def total(arrays):
            return sum(jnp.sum(x, dtype=jnp.float32) for x in arrays)

        def vision(frozen, params, batch):
            model = graph.merge(params, frozen)
            return [stream["features"] for stream in encode_images(model, batch).values()]

        def latents(params, frozen, patches):
            model = graph.merge(params, frozen)
            return model.connect(patches)

        def layers(params, latents, frozen, batch):
            model = graph.merge(params, frozen)
            texts = ([s[name] for s in batch.values()] for name in ("tokens", "segments"))
            return model.hidden_states(latents, *texts, parts)

        def losses(params, texts, frozen, batch):
            model = graph.merge(params, frozen)
            streams = zip(texts, batch.values(), strict=True)
            return [model.weighted_nll(x, s["tokens"], s["weights"]) for x, s in streams]

        def gradient(of, *argnums):
            return jax.jit(jax.grad(lambda *args: total(of(*args)), argnums))

        seen = jax.jit(vision)(frozen, params, batch)
        media = jax.jit(latents)(params, frozen, seen)
        texts = jax.jit(layers)(params, media, frozen, batch)

        def updated(gradients, state, params):
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        update = jax.jit(updated)
        of_new = jax.tree.map(lambda x: jnp.full_like(x, 1e-3), params)
        run_vision, run_latents = jax.jit(vision), gradient(latents, 0)
        run_layers, run_losses = gradient(layers, 0, 1), gradient(losses, 0, 1)
        calls = {
            "vision": lambda: run_vision(frozen, params, batch),
            "resampler": lambda: run_latents(params, frozen, seen),
            "layers": lambda: run_layers(params, media, frozen, batch),
            "head_and_loss": lambda: run_losses(params, texts, frozen, batch),
            "update": lambda: update(of_new, self.state.opt_state, params),
        }
        return {name: lambda f=f: jax.block_until_ready(f()) and None for name, f in calls.items()}


def write_arrays(config: TrainConfig, path: Path) -> None:
    """Writes the initial weights, as the original names them."""
    import jax

    from benchmarks.torch_flamingo import original_tensors
    from flamingo_jax.models.params import init_params

    key = jax.random.key(config.seed)
    params = jax.device_get(jax.jit(lambda: init_params(config.model, key))())
    np.savez(path, **original_tensors(config.model, params))


class Original:
    """The original's, in PyTorch.

    Another process draws the weights, so that no memory of JAX is counted as PyTorch's.
    """

    def __init__(self, config: TrainConfig, data: Data, device: str):
        import torch

        from benchmarks.torch_training import TorchTraining, to_torch

        allow_tf32(device)
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "weights.npz"
            with ProcessPoolExecutor(1, get_context("spawn")) as another:
                another.submit(write_arrays, config, path).result()
            with np.load(path) as arrays:
                self.training = TorchTraining(config.model, arrays, device)
        self.weights = {name: stream.weight for name, stream in config.streams.items()}
        batch = make_batch(config, data, packed=False)
        self.batch = {name: to_torch(rows, device) for name, rows in batch.items()}
        self.synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None

    def step(self) -> dict[str, float]:
        return self.training.step(self.batch, self.weights)

    def compiled_programs(self) -> int:
        return 0

    def parts(self) -> dict[str, Call]:
        def synchronous(run: Call) -> Call:
            def call() -> None:
                run()
                self.synchronize()

            return call

        return {name: synchronous(f) for name, f in self.training.parts(self.batch).items()}


def memory(device: str, field: str) -> int:
    """Returns the bytes of this process: VmRSS or VmHWM of the host, or the accelerator's peak."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    if device != "cpu":
        import jax

        return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def serve(side: str, config: TrainConfig, data: Data, device: str) -> None:
    """Builds one side; then each line of standard input names what is to be run and timed.

    What libraries print goes to standard error, so that every line of standard output is an answer.

    Args:
      side: "ours" or "original".
      config: of the run whose step is made.
      data: what fills its rows.
      device: "cpu", or that of JAX or PyTorch.
    """
    answers, sys.stdout = sys.stdout, sys.stderr
    import jax

    from flamingo_jax.train import setup  # noqa: F401

    if side == "original":
        import benchmarks.torch_training  # noqa: F401
    else:
        jax.devices()
    imported = memory("cpu", "VmRSS") if device == "cpu" else 0
    made = Ours(config, data) if side == "ours" else Original(config, data, device)
    parts: dict[str, Call] = {}
    for line in sys.stdin:
        name = line.strip()
        if name != "step" and not parts:
            parts = made.parts()
        start = time.perf_counter()
        results = made.step() if name == "step" else parts[name]()
        answer = {
            "seconds": time.perf_counter() - start,
            "results": results,
            "peak_bytes": memory(device, "VmHWM") - imported,
            "programs": made.compiled_programs(),
        }
        print(json.dumps(answer), file=answers, flush=True)
