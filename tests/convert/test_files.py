"""Layouts of files that are read, and bad ones that are refused with one clear line."""

import errno
import json
import pickle
import shutil
import warnings

import numpy as np
import pytest

from flamingo_jax.convert.__main__ import main
from flamingo_jax.errors import UserError
from flamingo_jax.text.special_tokens import resize_rows
from flamingo_jax.text.tokenizer import grow_tokenizer, load_transformers_tokenizer
from flamingo_jax.weights import writers
from flamingo_jax.weights.model_directory import open_directory
from flamingo_jax.weights.readers import read_directory, read_file, read_safetensors, read_torch
from flamingo_jax.weights.writers import Entry, write_safetensors
from tests.convert import goldens, torch_models
from tests.convert.test_round_trip import same_weights

torch = pytest.importorskip("torch")


@pytest.fixture
def run(backbones, tmp_path):
    """Import with some of the flags replaced, into a directory that must not stay half-written."""

    def run(out="out", **flags):
        flags = {"lm": backbones / "lm", "vision": backbones / "vision"} | flags
        args = [f"--{k.replace('_', '-')}={v}" for k, v in flags.items() if v is not None]
        main(["convert", "import", *args, f"--out={tmp_path / out}"])
        return tmp_path / out

    yield run
    assert not list(tmp_path.glob(".*")), "something half-written was left behind"


@pytest.fixture
def lm(backbones, tmp_path):
    """A copy of the language model's directory, to be spoilt."""
    return shutil.copytree(backbones / "lm", tmp_path / "lm")


def rewrite(folder, change):
    file = folder / "model.safetensors"
    tensors = {n: np.array(t) for n, t in read_safetensors(file).items()}
    change(tensors)
    entries = {n: Entry(t.shape, t.dtype, lambda t=t: [t]) for n, t in tensors.items()}
    write_safetensors(file, entries)


def refused(run, match, **flags):
    with pytest.raises(UserError, match=match):
        run(**flags)


def test_sharded_safetensors_and_torch_files_are_the_same_model(run, lm, tmp_path):
    tensors = {n: torch.tensor(np.array(t)) for n, t in read_directory(lm).items()}
    whole = run("whole", lm=lm)
    names = sorted(tensors)
    parts = {"a": names[::2], "b": names[1::2]}
    for suffix, save in (("bin", torch.save), ("safetensors", _save_safetensors)):
        for old in (*lm.glob("*.safetensors"), *lm.glob("*.json.bin")):
            old.unlink()
        stem = "pytorch_model" if suffix == "bin" else "model"
        index = {}
        for part, members in parts.items():
            save({n: tensors[n] for n in members}, lm / f"{stem}-{part}.{suffix}")
            index |= dict.fromkeys(members, f"{stem}-{part}.{suffix}")
        (lm / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": index}))
        same_weights(whole, run(suffix, lm=lm))
    (lm / "model-b.safetensors").unlink()
    refused(run, r"lacks model-b\.safetensors", lm=lm)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("content", ["{}", '{"weight_map": "model"}'])
def test_an_index_that_names_no_files(tmp_path, name, content):
    index = tmp_path / f"{name}.index.json"
    index.write_text(content)
    with pytest.raises(UserError, match=f"{index} has no weight_map, expected"):
        read_directory(tmp_path)


def _save_safetensors(tensors, path):
    arrays = {n: t.numpy() for n, t in tensors.items()}
    entries = {n: Entry(a.shape, a.dtype, lambda a=a: [a]) for n, a in arrays.items()}
    write_safetensors(path, entries)


def test_both_key_styles_of_checkpoints(run, tmp_path):
    model = run("model")
    main(["convert", "export", f"--dir={model}", "--to=openflamingo", f"--out={tmp_path / 'of'}"])
    plain = tmp_path / "of" / "checkpoint.pt"
    state = torch.load(plain, weights_only=True)
    listed = {}
    for name, tensor in state.items():
        head, found, tail = name.partition(".gated_cross_attn_layer.")
        if found:
            layer = head.rsplit(".", 1)[1]
            name = f"lang_encoder.gated_cross_attn_layers.{layer}.{tail}"
        listed[f"module.{name}"] = tensor
    torch.save({"epoch": 0, "model_state_dict": listed}, tmp_path / "listed.pt")
    first = run("first", openflamingo=plain)
    same_weights(first, run("second", openflamingo=tmp_path / "listed.pt"))
    same_weights(model, first)
    refused(run, "--interval is 3, but", openflamingo=plain, interval=3)
    del state["perceiver.norm.bias"]
    torch.save(state, tmp_path / "short.pt")
    short = tmp_path / "short.pt"
    refused(run, r"missing 1 tensor: perceiver\.norm\.bias", openflamingo=short)


def test_clip_files_of_openclip_and_openai(run, tmp_path):
    """Bare, with a prefix beside a text tower, or in training's wrapper."""
    components = goldens.load("mpt").imported.components
    visual = {n: torch.tensor(np.array(t)) for n, t in components.vision.items()}
    torch.save(visual, tmp_path / "bare.pt")
    both = {f"visual.{n}": t for n, t in visual.items()} | {
        "logit_scale": torch.zeros(()),
        "transformer.resblocks.0.ln_1.weight": torch.zeros(3),
        "token_embedding.weight": torch.zeros(3, 3),
    }
    torch.save(both, tmp_path / "both.pt")
    wrapped = {"state_dict": {f"module.{n}": t for n, t in both.items()}}
    torch.save(wrapped, tmp_path / "wrapped.pt")
    bare = run("bare", vision=tmp_path / "bare.pt")
    same_weights(bare, run("both", vision=tmp_path / "both.pt"))
    same_weights(bare, run("wrapped", vision=tmp_path / "wrapped.pt"))
    torch.save(both | {"audio.weight": torch.zeros(1)}, tmp_path / "odd.pt")
    refused(run, r"unknown in a CLIP: audio\.weight", vision=tmp_path / "odd.pt")
    torch.save({"x": torch.zeros(1)}, tmp_path / "none.pt")
    refused(run, "no CLIP vision tower", vision=tmp_path / "none.pt")


def test_openais_torchscript_files(run, tmp_path):
    components = goldens.load("mpt").imported.components
    top = torch.nn.Module()
    for name, array in components.vision.items():
        *modules, last = f"visual.{name}".split(".")
        module = top
        for part in modules:
            if not hasattr(module, part):
                module.add_module(part, torch.nn.Module())
            module = getattr(module, part)
        module.register_parameter(last, torch.nn.Parameter(torch.tensor(np.array(array))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(top).save(tmp_path / "openai.pt")
    torch.save(top.visual.state_dict(), tmp_path / "bare.pt")
    bare = run("bare", vision=tmp_path / "bare.pt")
    same_weights(bare, run("openai", vision=tmp_path / "openai.pt"))


def test_missing_extra_and_misshapen_tensors_are_all_named(run, lm):
    def change(tensors):
        del tensors["transformer.norm_f.weight"]
        del tensors["transformer.blocks.1.norm_1.weight"]
        tensors["transformer.extra"] = np.zeros(3, np.float32)
        name = "transformer.blocks.0.attn.Wqkv.weight"
        tensors[name] = tensors[name][:-1]

    rewrite(lm, change)
    with pytest.raises(UserError) as error:
        run(lm=lm)
    message = str(error.value)
    assert "missing 2 tensors: transformer.blocks.1.norm_1.weight, transformer.norm_f.w" in message
    assert "unexpected 1 tensor: transformer.extra" in message
    assert "blocks.0.attn.Wqkv.weight has shape [143, 48], expected [144, 48]" in message
    assert "\n" not in message


def test_unknown_family_and_unsupported_settings(run, lm):
    config = json.loads((lm / "config.json").read_text())
    (lm / "config.json").write_text(json.dumps(config | {"model_type": "bloom"}))
    refused(run, r"'bloom'.*known: gpt_neox, llama, mosaic_gpt, mpt, opt", lm=lm)
    (lm / "config.json").write_text(json.dumps(config | {"logit_scale": 0.5}))
    refused(run, "logit_scale = 0.5, but only None", lm=lm)
    (lm / "config.json").write_text(json.dumps({**config, "n_heads": None}))
    refused(run, "lacks n_heads", lm=lm)
    (lm / "config.json").write_text("{")
    refused(run, "not valid JSON", lm=lm)
    refused(run, "given: --lm; expected either", lm=lm, vision=None)


def test_truncated_files(run, lm, tmp_path):
    file = lm / "model.safetensors"
    content = file.read_bytes()
    for length in (len(content) - 4, 100, 4):
        file.write_bytes(content[:length])
        refused(run, "is truncated: it has", lm=lm)
    checkpoint = tmp_path / "checkpoint.pt"
    torch.save({"x": torch.zeros(1000)}, checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-900])
    refused(run, "may be truncated", openflamingo=checkpoint)


class Harmful:
    def __reduce__(self):
        return (print, ("this must never be run",))


def test_pickles_with_more_than_tensors_are_refused(run, tmp_path, capsys):
    torch.save({"x": torch.zeros(1), "y": Harmful()}, tmp_path / "zip.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps({"y": Harmful()}))
    for name in ("zip.pt", "bare.pt"):
        refused(run, "was refused: it holds more than tensors", openflamingo=tmp_path / name)
    assert "never" not in capsys.readouterr().out


def test_tokenizer_of_another_vocabulary(run, tmp_path):
    for size in (60, 3000):
        torch_models.save_tokenizer(tmp_path / str(size), size)
        folder = tmp_path / str(size)
        refused(run, f"has {size} tokens but the language model has 56", tokenizer=folder)
    refused(run, "no tokenizer that can be read", tokenizer=tmp_path)


def test_full_disk(run, monkeypatch):
    monkeypatch.setattr(
        writers.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0)
    )
    refused(run, "no room on the disk for .* GB are needed, 0.00 GB are free")
    monkeypatch.undo()

    def write(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("flamingo_jax.weights.model_directory.write_safetensors", write)
    refused(run, "no room on the disk")


def test_existing_output_is_kept(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    refused(run, "exists already: choose another --out")
    with pytest.raises(UserError, match="is no model directory"):
        open_directory(tmp_path / "out")


@pytest.mark.parametrize(
    ("out", "reason"), [("file/out", "File exists"), ("file/a/out", "Not a directory")]
)
def test_output_that_cannot_be_made(tmp_path, out, reason):
    (tmp_path / "file").touch()
    match = f"writing {tmp_path / out} failed .*{reason}.*choose another --out"
    with pytest.raises(UserError, match=match), writers.new_directory(tmp_path / out, 0):
        pass


def test_a_half_copied_directory(run):
    out = run()
    shard = next(out.glob("weights-*.safetensors"))
    shard.unlink()
    with pytest.raises(UserError, match=f"lacks {shard.name}, named in weights.index.json: copy"):
        open_directory(out)


def test_bfloat16_tensors_are_read_exactly(tmp_path):
    tensor = torch.randn(5, 3).bfloat16()
    torch.save({"x": tensor}, tmp_path / "x.pt")
    array = read_torch(tmp_path / "x.pt")["x"]
    assert array.dtype == "bfloat16"
    assert np.array_equal(array.astype(np.float32), tensor.float().numpy())
    with pytest.raises(UserError, match="does not exist"):
        read_file(tmp_path / "y.pt")


def test_tokenizers_grow_as_in_openflamingo(tmp_path):
    torch_models.save_tokenizer(tmp_path)
    tokenizer = load_transformers_tokenizer(tmp_path)
    ids = grow_tokenizer(tokenizer)
    assert (ids.end_of_chunk, ids.image, ids.pad, ids.vocabulary) == (50, 51, 52, 53)
    assert tokenizer("w3<image>w4<|endofchunk|>").input_ids == [3, 51, 4, 50]
    assert grow_tokenizer(tokenizer) == ids
    tokenizer = load_transformers_tokenizer(tmp_path)
    tokenizer.pad_token = "w1"
    assert (grow_tokenizer(tokenizer).pad, len(tokenizer)) == (1, 52)


def test_token_rows_shrink_and_grow():
    table = np.arange(12, dtype=np.float32).reshape(6, 2)
    assert np.shares_memory(resize_rows(table, 4), table)
    grown = resize_rows(table, 9)
    assert np.array_equal(grown[:6], table)
    assert np.array_equal(grown, resize_rows(table, 9))
    assert 0 < np.abs(grown[6:]).max() < 0.1
