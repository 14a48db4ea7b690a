"""A converted directory against the torch original, on random inputs, layer by layer."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from flamingo_jax.convert import torch_original as original
from flamingo_jax.convert.exporting import openflamingo_tensors, to_torch
from flamingo_jax.convert.importing import Imported
from flamingo_jax.errors import need_package
from flamingo_jax.files import write_text
from flamingo_jax.generate.loading import LoadedModel
from flamingo_jax.models.params import model_graph
from flamingo_jax.models.vlm import VisionLanguageModel
from flamingo_jax.weights.model_directory import ModelDirectory
from flamingo_jax.weights.readers import to_numpy

TOLERANCE = 2e-4  # the original's own noise in float32 is a tenth of it
TEXT_LENGTH = 24
Activations = dict[str, np.ndarray]


@dataclass(frozen=True)
class Inputs:
    """Two rows of random text that refers to two images each."""

    images: np.ndarray  # (B, T, 1, H, W, 3), normalised
    tokens: np.ndarray

    @classmethod
    def draw(cls, model: LoadedModel, seed: int) -> "Inputs":
        rng = np.random.default_rng(seed)
        config = model.config
        size = config.encoder.image_size
        tokens = rng.integers(0, config.decoder.vocab_size, (2, TEXT_LENGTH)).astype(np.int32)
        tokens[:, 3] = tokens[0, 11] = tokens[1, 17] = config.image_token
        tokens[0, 20] = config.end_of_chunk_token
        images = rng.normal(size=(2, 2, 1, size, size, 3)).astype(np.float32)
        return cls(images, tokens)


def compare(model: LoadedModel, directory: ModelDirectory, source: Imported, seed: int) -> Any:
    """The certificate: greatest absolute differences by stage, in float32.

    Weights are first rounded to the directory's dtype on both sides, so that the figures say
    whether the conversion is right, not what bfloat16 loses.

    Raises:
      UserError: torch is not installed.
    """
    inputs = Inputs.draw(model, seed)
    theirs, ours = _theirs(directory, source, inputs), _ours(model, inputs)
    differences = {
        stage: {
            "max_abs_difference": float(np.abs(ours[stage] - theirs[stage]).max()),
            "max_abs_value": float(np.abs(theirs[stage]).max()),
        }
        for stage in theirs
    }
    return {
        "passed": differences["logits"]["max_abs_difference"] <= TOLERANCE,
        "tolerance": TOLERANCE,
        "seed": seed,
        "weights_dtype": model.config.dtype,
        "versions": {name: version(name) for name in ("jax", "torch", "transformers")},
        "stages": differences,
    }


def write_certificate(directory: ModelDirectory, certificate: Any) -> None:
    write_text(directory.folder / "certificate.json", json.dumps(certificate, indent=2) + "\n")


def _ours(model: LoadedModel, inputs: Inputs) -> Activations:
    """The layers one by one, not scanned; the logits as the whole model gives them."""
    params = {path: value.astype(jnp.float32) for path, value in model.params.items()}
    config = dataclasses.replace(model.config, dtype="float32")
    run = jax.jit(lambda p, *batch: _stages(model_graph(config).merge(p), *batch))
    stages = run(params, inputs.images, inputs.tokens)
    return {stage: np.asarray(value) for stage, value in stages.items()}


def _stages(
    model: VisionLanguageModel, pictures: jax.Array, tokens: jax.Array
) -> dict[str, jax.Array]:
    features = model.encode([pictures])
    vectors = model.connect(features)
    x_ND, text, images = model.read(vectors, [tokens], [jnp.ones_like(tokens)])
    entering: list[jax.Array] = []
    layers = model.layers.unstacked()
    last_ND, _ = model.layers.run(
        x_ND, text, images, layers=layers, watch=lambda _, x: entering.append(x)
    )
    outputs = [text.layout.split(x)[0] for x in (*entering, last_ND)]
    return {
        "vision": rearrange(features[0], "b t f p d -> (b t f) p d"),
        "resampler": vectors[0],
        "embedding": outputs[0],
        **{f"layer {number}": x for number, x in enumerate(outputs[1:])},
        "logits": model(pictures, tokens),
    }


def _theirs(directory: ModelDirectory, source: Imported, inputs: Inputs) -> Activations:
    torch = need_package("torch", "torch")
    config = directory.config

    def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        dtype = getattr(torch, config.dtype)
        return {n: to_torch(np.array(a)).to(dtype).float() for n, a in arrays.items()}

    joining = source.components.adapter
    if not joining:  # drawn at import: the original of these weights is what was exported
        makers = openflamingo_tensors(directory, whole=False)
        joining = {n: make() for n, make in makers.items() if "gated" in n or "perceiver" in n}
    weights = original.Weights(tensors(joining))
    images = torch.from_numpy(rearrange(inputs.images, "b t 1 h w c -> (b t) c h w").copy())
    tokens = torch.from_numpy(inputs.tokens).long()
    with torch.no_grad():
        vision = tensors(source.components.vision)
        patches = _vision(source, vision, images)
        latents = original.resample(weights.below("perceiver"), patches, config.connector.num_heads)
        media = latents.unflatten(0, (len(tokens), -1))
        text_time = (tokens == config.image_token).cumsum(-1)

        def before(layer: int, x: Any) -> Any:
            if (layer + 1) % config.fusion.interval:
                return x
            name = f"lang_encoder.{source.family.layers}.{layer}.gated_cross_attn_layer"
            heads = config.fusion.num_heads
            return original.gated_cross_attention(weights.below(name), x, media, text_time, heads)

        language = tensors(source.components.language)
        run = _mosaic_gpt if source.family.name == "mosaic_gpt" else _transformers
        stages = {"vision": patches, "resampler": media, **run(source, language, tokens, before)}
    return {stage: to_numpy(value) for stage, value in stages.items()}


def _vision(source: Imported, vision: dict[str, Any], images: Any) -> Any:
    config = source.config.encoder
    if source.vision_names == "openclip":
        quick = config.activation == "quick_gelu"
        return original.openclip_patches(original.Weights(vision), images, config.num_heads, quick)
    import transformers

    from flamingo_jax.convert.clip_config import to_hf_config

    facts = {k: v for k, v in to_hf_config(config).items() if k != "architectures"}
    kind = (
        transformers.CLIPVisionModelWithProjection
        if config.projection_width
        else transformers.CLIPVisionModel
    )
    model = kind(transformers.CLIPVisionConfig(**facts)).eval()
    _load(model, vision, prefix="vision_model.")
    return model(images, output_hidden_states=True).hidden_states[-1][:, 1:]


def _load(model: Any, tensors: dict[str, Any], prefix: str = "") -> None:
    """Strictly, under whichever names this version of transformers has in memory."""
    names = set(model.state_dict())
    if not names & tensors.keys():
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    if "embed_out.weight" in tensors and "embed_out.weight" not in names:
        tensors["lm_head.weight"] = tensors.pop("embed_out.weight")
    tied = {"lm_head.weight"} - tensors.keys()
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    model.tie_weights()
    if set(missing) - tied or unexpected:
        raise RuntimeError(f"{type(model).__name__}: missing {missing}, unexpected {unexpected}")


def _transformers(
    source: Imported, tensors: dict[str, Any], tokens: Any, before: Callable[[int, Any], Any]
) -> dict[str, Any]:
    import transformers

    facts = {k: v for k, v in source.language_config.items() if k not in ("torch_dtype", "dtype")}
    config = transformers.AutoConfig.for_model(**facts)
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager"
    ).eval()
    _load(model, tensors)
    stages: dict[str, Any] = {}

    def hook(number: int, layer: Any) -> None:
        def enter(module: Any, args: tuple, kwargs: dict) -> Any:
            if args:
                stages.setdefault("embedding", args[0])
                return (before(number, args[0]), *args[1:]), kwargs
            stages.setdefault("embedding", kwargs["hidden_states"])
            return args, {**kwargs, "hidden_states": before(number, kwargs["hidden_states"])}

        def leave(module: Any, args: tuple, output: Any) -> None:
            stages[f"layer {number}"] = output[0] if isinstance(output, tuple) else output

        layer.register_forward_pre_hook(enter, with_kwargs=True)
        layer.register_forward_hook(leave)

    for number, layer in enumerate(model.get_submodule(source.family.layers)):
        hook(number, layer)
    stages["logits"] = model(tokens, use_cache=False).logits
    return stages


def _mosaic_gpt(
    source: Imported, tensors: dict[str, Any], tokens: Any, before: Callable[[int, Any], Any]
) -> dict[str, Any]:
    config = source.config.decoder
    weights = original.Weights(tensors, "transformer.")
    x = weights["wte.weight"][tokens]
    stages = {"embedding": x}
    for number in range(config.num_layers):
        block = weights.below(f"blocks.{number}")
        x = before(number, x)
        x = original.mosaic_gpt_layer(block, x, config.num_heads, config.alibi_max)
        stages[f"layer {number}"] = x
    return {**stages, "logits": weights.norm("ln_f", x) @ weights["wte.weight"].T}
