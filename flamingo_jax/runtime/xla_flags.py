"""XLA flags as presets: `XLA_FLAGS=$(python -m flamingo_jax.runtime.xla_flags fsdp)`.

XLA ends a process that gives it a flag it does not know, so a test tries every one of them.
"""

from collections.abc import Sequence

from flamingo_jax.errors import UserError

MIB = 2**20
OVERLAP = {
    # Start gathering the next weights while this layer computes.
    "xla_gpu_enable_latency_hiding_scheduler": "true",
}
PRESETS: dict[str, dict[str, str]] = {
    "data_parallel": {
        **OVERLAP,
        # One reduction of many gradients, not many small ones.
        "xla_gpu_all_reduce_combine_threshold_bytes": str(256 * MIB),
    },
    "fsdp": {
        **OVERLAP,
        # A layer's weights in few messages; more would hold several layers at a time.
        "xla_gpu_all_gather_combine_threshold_bytes": str(64 * MIB),
        "xla_gpu_reduce_scatter_combine_threshold_bytes": str(64 * MIB),
        # Gather layer i + 1 during layer i, which needs the memory of one more layer.
        "xla_gpu_enable_while_loop_double_buffering": "true",
    },
    "memory": {
        # Nothing ahead of time: the least memory.
        "xla_gpu_enable_latency_hiding_scheduler": "false",
        "xla_gpu_all_gather_combine_threshold_bytes": "0",
        "xla_gpu_reduce_scatter_combine_threshold_bytes": "0",
    },
    "deterministic": {
        # The same bits in every run; scatters and some matmuls are slower.
        "xla_gpu_deterministic_ops": "true",
    },
    "cpu_training": {
        # oneDNN's matmuls: attention's small ones take half the time. Decoding is slower with them,
        # and programs with them cannot be kept on disk.
        "xla_cpu_use_onednn": "true",
        "xla_cpu_experimental_onednn_fusion_type": "individual_dot",
    },
}


def xla_flags(preset: str) -> str:
    """Returns the value of XLA_FLAGS. UserError: no such preset."""
    if preset not in PRESETS:
        raise UserError(f"no XLA flag preset {preset!r}; there are: {', '.join(PRESETS)}")
    return " ".join(f"--{name}={value}" for name, value in PRESETS[preset].items())


def main(argv: Sequence[str]) -> None:
    if len(argv) != 2:
        raise UserError(f"one preset is expected: {', '.join(PRESETS)}")
    print(xla_flags(argv[1]))


if __name__ == "__main__":
    from flamingo_jax import cli

    cli.run(main)
