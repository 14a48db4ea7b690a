"""Which kernel is chosen, and that kernels compute what plain attention does.

Splash attention runs on the CPU in Pallas' interpreter. cuDNN runs on GPUs alone: here its calls
are only lowered; `python -m flamingo_jax.doctor` compares their results where there is a GPU.
"""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src.cudnn import fused_attention_stablehlo
from jax.sharding import AxisType, Mesh

from flamingo_jax.models.decoder import Decoder, DecoderConfig, alibi_slopes
from flamingo_jax.models.params import abstract, model_graph
from flamingo_jax.models.text import segment_positions
from flamingo_jax.ops import attention_kernels as kernels
from flamingo_jax.ops.attention import (
    CAUSAL_BLOCKS,
    MASKED,
    SMALLEST_CAUSAL_BLOCK,
    CausalRows,
    attention,
    attention_reference,
    causal_blocks,
    causal_mask,
)
from flamingo_jax.ops.attention_kernels import Call, Device, choose, with_alibi
from flamingo_jax.schema import build
from flamingo_jax.train.config import TrainConfig
from flamingo_jax.train.kernels import attention_calls, attention_kernels, compare_attention
from flamingo_jax.train.setup import batch_shapes
from flamingo_jax.train.traced_flops import jaxpr_flops
from tests import tiny

TEXT = Call("bfloat16", 128, 256, 256, masked=True, causal=True)
VISION = Call("bfloat16", 64, 257, 257)


@pytest.fixture
def on_tpu(monkeypatch):
    monkeypatch.setattr(kernels, "device_in_force", lambda: Device("tpu"))


@pytest.fixture
def on_gpu(monkeypatch):
    monkeypatch.setattr(kernels, "device_in_force", lambda: Device("gpu"))
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91_000)


@pytest.mark.parametrize(
    ("call", "device", "wanted", "expected"),
    [
        (TEXT, Device("cpu"), "auto", "XLA"),
        (TEXT, Device("gpu"), "auto", "cuDNN"),
        (VISION, Device("gpu"), "auto", "cuDNN"),
        (TEXT, Device("gpu"), "xla", "XLA (as configured)"),
        (TEXT, Device("gpu", "cuDNN is not installed"), "auto", "XLA (cuDNN is not installed)"),
        ({"dtype": "float32"}, Device("gpu"), "auto", "XLA (float32; cuDNN takes bfloat16)"),
        (
            {"head_width": 132},
            Device("gpu"),
            "auto",
            "XLA (heads 132 wide; cuDNN takes multiples of 8 up to 128)",
        ),
        (
            {"keys": 255},
            Device("gpu"),
            "auto",
            "XLA (256 × 255 tokens with a mask; cuDNN takes even numbers)",
        ),
        (TEXT, Device("tpu"), "auto", "splash"),
        (TEXT, Device("tpu"), "xla", "XLA (as configured)"),
        ({"dtype": "float32"}, Device("tpu"), "auto", "XLA (float32; splash takes bfloat16)"),
        (
            {"queries": 32},
            Device("tpu"),
            "auto",
            "XLA (32 tokens; splash takes multiples of 128)",
        ),
        (VISION, Device("tpu"), "auto", "XLA (not causal; splash is for causal rows)"),
    ],
)
def test_every_choice(call, device, wanted, expected):
    if isinstance(call, dict):
        call = dataclasses.replace(TEXT, **call)
    assert str(choose(call, device, wanted)) == expected


@pytest.mark.parametrize(("kv_heads", "blocks"), [(4, (256,)), (2, (128,))])
def test_splash_is_as_near_to_float32_as_plain_attention(on_tpu, monkeypatch, kv_heads, blocks):
    """Outputs and gradients, with segments, ALiBi and grouped heads, in one block and in many."""
    monkeypatch.setattr(kernels, "SPLASH_BLOCKS", blocks)
    monkeypatch.setattr("flamingo_jax.train.kernels.device_in_force", lambda: Device("tpu"))
    kernel, distance, plain = compare_attention(kv_heads)
    assert str(kernel) == "splash"
    assert 0 < distance <= 1.5 * plain < 0.02


def test_alibi_as_features_is_exact_to_float32():
    slopes_H, positions = alibi_slopes(12), np.array([0, 1, 255, 256, 2047, 65_535])
    zero = jnp.zeros((1, len(positions), 12, 1), jnp.bfloat16)
    q, k = with_alibi(zero, zero, slopes_H, jnp.asarray(positions)[None])
    assert q.dtype == jnp.bfloat16
    q, k = (np.asarray(x.astype(jnp.float32), np.float64) for x in (q, k))
    bias_HS = np.einsum("hk,shk->hs", q[0, 0], k[0])
    np.testing.assert_allclose(bias_HS, np.outer(slopes_H, positions), rtol=1e-6)


def decoder_case(**config):
    """A decoder's loss gradient over abstract bfloat16 parameters: (function, arguments)."""
    settings = {"width": 64, "num_layers": 3, "num_heads": 4, "vocab_size": 7, **config}
    graph = abstract(
        lambda: Decoder(DecoderConfig(**settings), dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    )
    tokens = jax.ShapeDtypeStruct((4, 128), jnp.int32)

    def loss(params, tokens_BL, remat):
        model = graph.merge(params)
        segments_BL = jnp.arange(128)[None] // 50 + jnp.zeros_like(tokens_BL)
        stack = dataclasses.replace(model.stack(), remat=remat)
        y, _ = stack.run(*model.read([tokens_BL], [segments_BL]))
        return y.astype(jnp.float32).sum()

    return jax.grad(loss), graph.shapes(), tokens


@pytest.fixture(scope="module")
def mesh():
    devices = np.array(jax.devices()[:8]).reshape(2, 2, 2)
    return Mesh(devices, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


@pytest.mark.parametrize("shape", [(4, 2), (2, 2)])
def test_a_mesh_computes_what_one_device_does(on_tpu, mesh, rng, shape):
    """Also with rows that the mesh does not divide: every device then has all of them."""
    rows, kv_heads = shape
    q, k, v = (
        jnp.asarray(rng.normal(size=(rows, 128, heads, 8)), jnp.bfloat16)
        for heads in (4, kv_heads, kv_heads)
    )
    segments = jnp.arange(128)[None] // jnp.arange(40, 40 + rows)[:, None]
    causal = CausalRows(segments, segments, alibi_slopes(4))

    def run(q, k, v):
        y, pull_back = jax.vjp(lambda *x: attention(*x, causal), q, k, v)
        return [y, *pull_back(y)]

    expected = jax.jit(run)(q, k, v)
    with jax.set_mesh(mesh):
        found = jax.jit(run)(q, k, v)
    for one, many in zip(expected, found, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(many))


def scan_outputs(jaxpr):
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "scan":
            yield from (var.aval for var in eqn.outvars)
        for value in eqn.params.values():
            for sub in value if isinstance(value, (list, tuple)) else (value,):
                inner = getattr(sub, "jaxpr", sub)
                if hasattr(inner, "eqns"):
                    yield from scan_outputs(inner)


def saved_per_layer(mesh, remat, **config):
    gradient, params, tokens = decoder_case(**config)
    with jax.set_mesh(mesh):
        jaxpr = jax.make_jaxpr(gradient, static_argnums=2)(params, tokens, remat)
    return [aval.shape for aval in scan_outputs(jaxpr.jaxpr)]


@pytest.mark.parametrize("remat", ["none", "dots"])
@pytest.mark.parametrize("position", ["alibi", "rotary"])
@pytest.mark.parametrize("platform", ["on_tpu", "on_gpu"])
def test_layers_save_nothing_quadratic(request, mesh, platform, position, remat):
    request.getfixturevalue(platform)
    shapes = saved_per_layer(mesh, remat, position=position)
    assert (3, 4 * 128, 64) in shapes
    assert not [shape for shape in shapes if shape.count(128) > 1]


@pytest.mark.parametrize("remat", ["none", "elementwise", "dots"])
def test_what_layers_with_plain_attention_save(mesh, remat):
    shapes = saved_per_layer(mesh, remat)
    assert (3, 4 * 128, 64) in shapes
    weights = {(3, 4, 4, len(block), block.stop) for block in causal_blocks(128)}
    assert len(weights) == 2
    assert weights & set(shapes) == (weights if remat == "none" else set())


@pytest.mark.parametrize("length", [1, 63, 64, 127, 128, 200, 257, 2048])
def test_causal_blocks_are_all_queries_in_order(length):
    blocks = causal_blocks(length)
    assert [query for block in blocks for query in block] == list(range(length))
    assert len(blocks) <= CAUSAL_BLOCKS
    assert len(blocks) == 1 or min(map(len, blocks)) >= SMALLEST_CAUSAL_BLOCK / 2


@pytest.mark.parametrize(
    ("kv_heads", "length", "alibi"), [(6, 5, True), (2, 130, True), (2, 256, False), (6, 256, True)]
)
def test_causal_blocks_compute_what_masked_attention_does(rng, kv_heads, length, alibi):
    """Outputs and gradients, of rows with several texts and padding."""
    heads = 6  # no power of two: ALiBi's slopes are no exact fractions
    q, k, v = (
        jnp.asarray(rng.normal(size=(2, length, n, 8)), jnp.float32)
        for n in (heads, kv_heads, kv_heads)
    )
    segments_BL = jnp.stack([jnp.full(length, 1), (jnp.arange(length) // (length // 3) + 1) % 4])
    positions_BL = segment_positions(segments_BL)
    slopes_H = alibi_slopes(heads) if alibi else None
    bias = None
    if alibi:
        distance_BLL = positions_BL[:, None, :] - positions_BL[:, :, None]
        bias = alibi_slopes(heads)[:, None, None] * distance_BLL[:, None]

    def run(attend):
        y, pull_back = jax.vjp(attend, q, k, v)
        return [y, *pull_back(jnp.cos(y))]

    causal = CausalRows(segments_BL, positions_BL, slopes_H)
    hidden = jnp.where(causal_mask(segments_BL), 0.0, MASKED) + (0 if bias is None else bias)
    found = run(lambda *qkv: attention(*qkv, causal))
    expected = run(lambda *qkv: attention_reference(*qkv, hidden))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6 * float(jnp.abs(theirs).max()))


def test_cudnn_is_called_forward_and_backward(on_gpu, mesh):
    gradient, params, tokens = decoder_case(position="alibi", num_kv_heads=2)
    with jax.set_mesh(mesh):
        traced = jax.jit(gradient, static_argnums=2).trace(params, tokens, "none")
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaScaleBiasSoftmax" in text
    assert "__cudnn$fmhaScaleBiasSoftmaxBackward" in text
    assert "tensor<1x128x2x16xbf16>" in text  # one device's rows and heads


def test_flops_of_kernels_are_counted(on_gpu, monkeypatch, mesh):
    x = jax.ShapeDtypeStruct((4, 128, 4, 16), jnp.bfloat16)
    rows = jnp.ones((4, 128), jnp.int32)
    causal = CausalRows(rows, rows)

    def run(x):
        return attention(x, x, x, causal)

    matmul = 2 * 4 * 4 * 128 * 128 * 16
    with jax.set_mesh(mesh):
        assert jaxpr_flops(jax.make_jaxpr(run)(x)) == 2 * matmul
        gradient = jax.make_jaxpr(jax.grad(lambda x: run(x).astype(jnp.float32).sum()))(x)
        assert jaxpr_flops(gradient) == 7 * matmul
        monkeypatch.setattr(kernels, "device_in_force", lambda: Device("tpu"))
        assert jaxpr_flops(jax.make_jaxpr(run)(x)) == 2 * matmul


def test_the_log_names_what_the_step_uses(monkeypatch):
    config = build(TrainConfig, tiny.get_config().to_dict())
    used = set()

    def recorded(call, device, wanted):
        used.add(call)
        return choose(call, device, wanted)

    monkeypatch.setattr(kernels, "choose", recorded)
    graph = model_graph(config.model)
    batch = batch_shapes(config)

    def forward(params, batch):
        model, streams = graph.merge(params), batch.values()
        vectors = model.connect(model.encode([s["images"] for s in streams]))
        texts = ([s[name] for s in streams] for name in ("tokens", "segments"))
        return model.hidden_states(vectors, *texts)

    jax.eval_shape(forward, graph.shapes(), batch)
    assert used == {call for _, call, _ in attention_calls(config)}


def test_the_log_says_why_a_kernel_is_not_the_best(monkeypatch):
    config = build(TrainConfig, tiny.get_config().to_dict())
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",), axis_types=(AxisType.Auto,))
    line = attention_kernels(config, mesh)
    assert line.startswith("attention: vision, resampler, text of")
    assert line.endswith(": XLA")
    monkeypatch.setattr("flamingo_jax.train.kernels.device_in_force", lambda: Device("gpu"))
    assert attention_kernels(config, mesh).endswith("XLA (float32; cuDNN takes bfloat16)")


def test_a_planned_mesh_decides(monkeypatch):
    """The devices of the mesh in force count, not those that are here."""
    described = SimpleNamespace(abstract_device=SimpleNamespace(platform="tpu"))
    monkeypatch.setattr(jax.sharding, "get_abstract_mesh", lambda: described)
    assert kernels.device_in_force() == Device("tpu")


def test_an_old_gpu_has_no_kernel(on_gpu, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [SimpleNamespace(compute_capability="7.5")])
    lacks = kernels._gpu_lacks.__wrapped__()
    assert str(choose(TEXT, Device("gpu", lacks))).startswith("XLA (compute capability 7.5;")
