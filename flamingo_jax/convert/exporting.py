"""From a model directory back to torch files, under the names they came with."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from flamingo_jax.convert import clip, clip_config
from flamingo_jax.convert import openflamingo as of
from flamingo_jax.convert.families import FAMILIES
from flamingo_jax.convert.family import Family
from flamingo_jax.convert.openflamingo_names import aliases, wrap
from flamingo_jax.errors import UserError, need_package
from flamingo_jax.weights.model_directory import ModelDirectory
from flamingo_jax.weights.views import NameTable, export, make_plan, torch_shapes
from flamingo_jax.weights.writers import Entry, new_directory, write_safetensors

Makers = dict[str, Callable[[], np.ndarray]]


def family_named(name: str) -> Family:
    """Returns a family. UserError: none, since the model was trained from nothing."""
    for family in FAMILIES:
        if family.name == name:
            return family
    raise UserError(
        "this model did not come from a torch model, so it has no torch form: only directories "
        "made by `convert import`, or trained from one, can be exported and verified"
    )


def openflamingo_tensors(directory: ModelDirectory, whole: bool) -> Makers:
    """Returns makers of what OpenFlamingo saves: its own modules and the token rows.

    `whole`: of its state dict.

    An untied head is included, which OpenFlamingo itself forgets: the scores of its new tokens
    would be drawn anew at each start.
    """
    family = family_named(directory.origin.family)
    config = directory.config
    makers = _makers(directory, of.all_rows(family, config), "")
    embedding, head = wrap(family, family.embedding), wrap(family, family.head)
    for name, buffer in family.computed(config.decoder).items():
        makers[wrap(family, name)] = partial(np.asarray, buffer)
    if config.decoder.tie_head and family.repeats_tied_head:
        makers[head] = makers[embedding]
    if not whole:
        return {
            name: make
            for name, make in makers.items()
            if name.startswith("perceiver.")
            or name in (embedding, head)
            or (
                any(word in name for word in ("gated_cross_attn_layer", "embed", "inv_freq"))
                and not name.startswith("vision_encoder.")
            )
        }
    return makers | {a: make for name, make in makers.items() for a in aliases(family, name)}


def _makers(directory: ModelDirectory, rows: NameTable, prefix: str) -> Makers:
    shapes = {p: leaf for p, leaf in directory.leaves.items() if p.startswith(prefix)}
    plan = make_plan(shapes, rows, directory.config.locate)
    arrays = {path: leaf.views[0] for path, leaf in shapes.items()}
    return export(plan, arrays, jnp.dtype(directory.config.dtype))


def to_torch(array: np.ndarray) -> Any:
    import torch

    if array.dtype == jnp.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def export_openflamingo(directory: ModelDirectory, out: Path, whole: bool = False) -> None:
    """Writes `out`/checkpoint.pt, a state dict for OpenFlamingo's `load_state_dict`, and the
    tokenizer.

    Raises:
      UserError: `out` exists, the disk has no room, or torch is not installed.
    """
    torch = need_package("torch", "torch")
    state: dict[Callable[[], np.ndarray], Any] = {}
    named = {}
    for name, make in openflamingo_tensors(directory, whole).items():
        # The same maker under two names is one tensor, which torch stores once.
        if make not in state:
            state[make] = to_torch(make())
        named[name] = state[make]
    size = sum(t.numel() * t.element_size() for t in state.values())
    with new_directory(out, size) as folder:
        torch.save(named, folder / "checkpoint.pt")
        _copy_tokenizer(directory, folder / "tokenizer")


def export_hf(directory: ModelDirectory, out: Path) -> None:
    """Writes `out`/language_model and `out`/vision as transformers reads them, tensor by tensor.

    Raises:
      UserError: `out` exists, or the disk has no room.
    """
    config, family = directory.config, family_named(directory.origin.family)
    language_rows = of.language_rows(family, config.decoder)
    vision_config = clip_config.to_hf_config(config.encoder)
    components = {
        "language_model": ("decoder/", language_rows, directory.origin.language_config),
        "vision": ("vision/", clip.hf_rows(config.encoder), vision_config),
    }
    dtype = jnp.dtype(config.dtype)
    entries = {}
    for component, (prefix, rows, _) in components.items():
        shapes = {p: leaf for p, leaf in directory.leaves.items() if p.startswith(prefix)}
        sizes = torch_shapes(make_plan(shapes, rows, config.locate))
        entries[component] = {
            name: Entry(sizes[name], dtype, partial(_one_piece, make))
            for name, make in _makers(directory, rows, prefix).items()
        }
    size = sum(entry.nbytes for own in entries.values() for entry in own.values())
    with new_directory(out, size) as folder:
        for component, (_, _, facts) in components.items():
            (folder / component).mkdir()
            write_safetensors(folder / component / "model.safetensors", entries[component])
            facts = {**facts, "torch_dtype": config.dtype}
            (folder / component / "config.json").write_text(json.dumps(facts, indent=2) + "\n")
        _copy_tokenizer(directory, folder / "language_model")


def _one_piece(make: Callable[[], np.ndarray]) -> list[np.ndarray]:
    return [make()]


def _copy_tokenizer(directory: ModelDirectory, target: Path) -> None:
    source = directory.folder / "tokenizer"
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
