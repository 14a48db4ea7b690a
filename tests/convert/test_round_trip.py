import json
import sys

import jax
import numpy as np
import pytest

import flamingo_jax
from flamingo_jax.convert.__main__ import main
from flamingo_jax.errors import UserError
from flamingo_jax.parallel import sharding
from flamingo_jax.parallel.mesh import MeshConfig, make_mesh
from flamingo_jax.weights.model_directory import open_directory
from flamingo_jax.weights.readers import read_file, read_safetensors, read_torch
from tests import golden_root
from tests.convert import goldens, torch_models
from tests.convert.goldens import unpadded


def convert(*args) -> int:
    return main(["convert", *map(str, args)])


@pytest.fixture(scope="module")
def imported(mpt, tmp_path_factory):
    """A model directory of the committed golden."""
    folder = tmp_path_factory.mktemp("imported") / "model"
    weights = mpt.folder / "model.safetensors"
    source = weights if weights.is_file() else mpt.folder
    convert(
        "import", "--state-dict", source, "--config", mpt.folder / "config.json", "--out", folder
    )
    return folder


def same_weights(a, b) -> None:
    a, b = open_directory(a), open_directory(b)
    assert a.config == b.config
    assert a.leaves.keys() == b.leaves.keys()
    for path in a.leaves:
        left, right = a.leaves[path].views[0], b.leaves[path].views[0]
        assert left.tobytes() == right.tobytes(), path


def test_loaded_directory_gives_the_golden_logits(mpt, imported):
    model = flamingo_jax.load(imported)
    arrays = {k: mpt.arrays[f"laion_{k}"] for k in ("vision_x", "lang_x", "attention_mask")}
    logits = model.logits(*unpadded(arrays))
    assert logits.dtype == np.float32
    difference = np.abs(logits - mpt.arrays["laion_logits"])
    assert difference[arrays["attention_mask"] == 1].max() < 2e-4
    tokenizer = model.processor.tokenizer
    assert tokenizer.convert_tokens_to_ids("<image>") == model.config.image_token


def test_excess_marks_are_an_error_unless_asked_for(mpt, imported):
    arrays = {k: mpt.arrays[f"excess_{k}"] for k in ("vision_x", "lang_x", "attention_mask")}
    inputs = unpadded(arrays)
    with pytest.raises(ValueError, match="3 <image> tokens but 2 images"):
        flamingo_jax.load(imported).logits(*inputs)
    logits = flamingo_jax.load(imported, compat="openflamingo").logits(*inputs)
    difference = np.abs(logits - mpt.arrays["excess_logits"])
    assert difference[arrays["attention_mask"] == 1].max() < 2e-4


def test_on_a_mesh_each_device_holds_its_shard(imported, monkeypatch):
    monkeypatch.setattr(sharding, "SMALLEST_SHARDED", 2**11)  # a layer's matrices are larger
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    whole, sharded = flamingo_jax.load(imported), flamingo_jax.load(imported, mesh)
    split = 0
    for path, value in whole.params.items():
        assert np.array_equal(value, sharded.params[path]), path
        shard = sharded.params[path].addressable_shards[0].data
        split += shard.size * 4 == value.size
    assert split > 10
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 1, 1, 56, 56, 3), dtype=np.uint8)
    tokens = rng.integers(0, 480, (8, 6))
    tokens[:, 1] = whole.config.image_token
    with jax.set_mesh(mesh):
        ours = np.asarray(sharded.logits(images, tokens, np.ones_like(tokens)))
    assert np.abs(ours - whole.logits(images, tokens, np.ones_like(tokens))).max() < 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_through_both_exports_and_back_bitwise(backbones, tmp_path, dtype):
    convert(
        *("import", "--lm", backbones / "lm", "--vision", backbones / "vision"),
        *("--interval", 2, "--dtype", dtype, "--out", tmp_path / "first"),
    )
    convert("export", "--dir", tmp_path / "first", "--to", "openflamingo", "--out", tmp_path / "of")
    convert("export", "--dir", tmp_path / "first", "--to", "hf", "--out", tmp_path / "hf")
    convert(
        *("import", "--lm", tmp_path / "hf" / "language_model", "--vision"),
        *(tmp_path / "hf" / "vision", "--openflamingo", tmp_path / "of" / "checkpoint.pt"),
        *("--dtype", dtype, "--out", tmp_path / "second"),
    )
    same_weights(tmp_path / "first", tmp_path / "second")


def test_whole_export_has_exactly_the_golden_names(mpt, imported, tmp_path):
    pytest.importorskip("torch")
    out = tmp_path / "of"
    convert("export", "--dir", imported, "--to", "openflamingo", "--whole", "--out", out)
    state = read_torch(out / "checkpoint.pt")
    weights = mpt.folder / "model.safetensors"
    files = [weights] if weights.is_file() else sorted(mpt.folder.glob("*.safetensors"))
    original = {n: t for file in files for n, t in read_safetensors(file).items()}
    aliases = json.loads((mpt.folder / "config.json").read_text())["aliases"]
    assert state.keys() == original.keys() | aliases.keys()
    for name, tensor in state.items():
        expected = original[aliases.get(name, name)].astype(np.float32)
        assert np.array_equal(tensor, expected), name
    convert(
        "import",
        *("--state-dict", out / "checkpoint.pt"),
        *("--config", mpt.folder / "config.json", "--tokenizer", mpt.folder / "tokenizer"),
        *("--out", tmp_path / "second"),
    )
    same_weights(imported, tmp_path / "second")


def test_golden_names_of_an_exported_checkpoint(golden, tmp_path):
    if not golden.whole:
        pytest.skip("the checkpoint is not at hand")
    convert(
        *("import", "--state-dict", golden.folder / "model.safetensors"),
        *("--config", golden.folder / "config.json", "--out", tmp_path / "model"),
    )
    out = tmp_path / "of"
    convert("export", "--dir", tmp_path / "model", "--to", "openflamingo", "--out", out)
    ours = read_torch(out / "checkpoint.pt")
    theirs = {
        name.removeprefix("module."): tensor
        for name, tensor in read_file(golden.folder / "checkpoint_0.pt").items()
    }
    # The original forgets LLaMA's untied head, whose new rows it then draws anew.
    llama = golden.imported.family.name == "llama"
    forgotten = {"lang_encoder.lm_head.weight"} if llama else set()
    assert ours.keys() == theirs.keys() | forgotten
    assert all(ours[name].shape == theirs[name].shape for name in theirs)
    frequencies = [name for name in theirs if name.endswith("inv_freq")]
    assert all(np.allclose(ours[n], theirs[n], rtol=1e-6) for n in frequencies)


def test_transformers_reads_the_hf_export(backbones, tmp_path):
    import torch
    import transformers

    convert(
        *("import", "--lm", backbones / "lm", "--vision", backbones / "vision"),
        *("--out", tmp_path / "model"),
    )
    convert("export", "--dir", tmp_path / "model", "--to", "hf", "--out", tmp_path / "hf")
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf" / "language_model", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    original = transformers.AutoModelForCausalLM.from_pretrained(backbones / "lm")
    tokens = torch.tensor(torch_models.random_tokens()).long()
    with torch.no_grad():
        ours, theirs = model(tokens).logits, original(tokens).logits
    assert torch.allclose(ours, theirs[..., : ours.shape[-1]], atol=1e-6)
    _, report = transformers.CLIPVisionModelWithProjection.from_pretrained(
        tmp_path / "hf" / "vision", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_bare_clip_tower(backbones, tmp_path):
    import transformers

    torch_models.save_vision(tmp_path / "vision", projected=False)
    convert(
        *("import", "--lm", backbones / "lm", "--vision", tmp_path / "vision"),
        *("--out", tmp_path / "model"),
    )
    convert("export", "--dir", tmp_path / "model", "--to", "hf", "--out", tmp_path / "hf")
    _, report = transformers.CLIPVisionModel.from_pretrained(
        tmp_path / "hf" / "vision", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


@pytest.mark.parametrize("source", ["original", "backbones"])
def test_verify_writes_a_certificate(imported, backbones, tmp_path, source, capsys):
    pytest.importorskip("torch")
    folder = imported
    if source == "backbones":
        folder = tmp_path / "model"
        convert(
            *("import", "--lm", backbones / "lm", "--vision", backbones / "vision"),
            *("--interval", 2, "--dtype", "bfloat16", "--out", folder),
        )
    assert convert("verify", "--dir", folder) == 0
    printed = capsys.readouterr().out
    certificate = json.loads((folder / "certificate.json").read_text())
    assert certificate["passed"]
    assert certificate["stages"]["logits"]["max_abs_difference"] < 2e-4
    assert all(stage in printed for stage in certificate["stages"])
    assert "layer 1" in certificate["stages"]


def test_verify_fails_on_wrong_weights(imported, tmp_path):
    pytest.importorskip("torch")
    folder = tmp_path / "model"
    folder.mkdir()
    for file in imported.iterdir():
        (folder / file.name).symlink_to(file)
    weights = next(imported.glob("weights-*.safetensors"))
    content = bytearray(weights.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    at = start + header["decoder/norm/scale"]["data_offsets"][0]
    content[at : at + 4] = np.float32(3).tobytes()
    (folder / weights.name).unlink()
    (folder / weights.name).write_bytes(content)
    (folder / "certificate.json").unlink(missing_ok=True)
    assert convert("verify", "--dir", folder) == 1
    assert not json.loads((folder / "certificate.json").read_text())["passed"]


def test_without_torch_the_extra_is_named(imported, backbones, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "checkpoint.pt").touch()
    lm, vision, out = backbones / "lm", backbones / "vision", tmp_path / "out"
    joined = ("--lm", lm, "--vision", vision, "--openflamingo", tmp_path / "checkpoint.pt")
    for command in (
        ("import", *joined, "--out", out),
        ("export", "--dir", imported, "--to", "openflamingo", "--out", out),
        ("verify", "--dir", imported),
    ):
        with pytest.raises(UserError, match=r"needs torch, .* 'flamingo-jax\[torch\]'"):
            convert(*command)
    assert not out.exists()


def test_verify_misses_torch_before_it_reads_weights(imported, monkeypatch):
    def read(*_):
        pytest.fail("weights were read")

    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr("flamingo_jax.convert.__main__.read_source", read)
    monkeypatch.setattr("flamingo_jax.generate.loading.load", read)
    with pytest.raises(UserError, match="needs torch"):
        convert("verify", "--dir", imported)


def test_the_committed_part_is_of_the_whole_case(mpt):
    folder = golden_root.COMMITTED / goldens.FOLDER / "mpt"
    with np.load(folder / "golden.npz") as arrays:
        same = arrays["mmc4_loss"] == mpt.arrays["mmc4_loss"]
    if not same:
        pytest.skip("FLAMINGO_GOLDEN names other cases than those of which a part is committed")
    committed = {
        n: t
        for file in sorted(folder.glob("*.safetensors"))
        for n, t in read_safetensors(file).items()
    }
    original = mpt.imported.components.adapter
    assert all(np.array_equal(committed[n], tensor) for n, tensor in original.items())
