import json
import shutil

import numpy as np
import pytest
from PIL import Image

from flamingo_jax.data.images import resize_and_crop
from flamingo_jax.errors import UserError
from flamingo_jax.models.vision.clip import CLIP_MEAN, CLIP_STD
from flamingo_jax.similarity.clip import load_clip
from tests.clip_models import save_clip

torch = pytest.importorskip("torch")

TEXTS = ["dax", "a wug toma", "zorp " * 30, "fep ! x y z", ""]  # the third is cut


@pytest.fixture(scope="module", params=["quick_gelu", "gelu"])
def both(request, tmp_path_factory):
    """(torch model, its directory, ours)."""
    folder = tmp_path_factory.mktemp("clip")
    legacy = request.param == "quick_gelu"  # OpenAI's configs are of old
    model = save_clip(folder, activation=request.param, legacy_end=legacy, safe=not legacy)
    return model, folder, load_clip(folder, batch_size=2)


def pictures():
    rng = np.random.default_rng(0)
    return [
        rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((28, 28), (40, 33), (9, 70))
    ]


def unit(x):
    x = getattr(x, "pooler_output", x).detach().numpy()
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_images_are_embedded_as_transformers_does(both):
    model, _, ours = both
    pixels = np.stack(
        [np.asarray(resize_and_crop(Image.fromarray(picture), 28)) for picture in pictures()]
    )
    normalised = ((pixels / 255 - CLIP_MEAN) / CLIP_STD).transpose(0, 3, 1, 2)
    expected = unit(model.get_image_features(torch.tensor(normalised, dtype=torch.float32)))
    found = ours.encode_images(pictures())
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-6)
    as_pil = [Image.fromarray(picture) for picture in pictures()]
    np.testing.assert_array_equal(ours.encode_images(as_pil), found)


def test_texts_are_embedded_as_transformers_does(both):
    import transformers

    model, folder, ours = both
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(
        TEXTS, padding="max_length", truncation=True, max_length=12, return_tensors="pt"
    )
    expected = unit(model.get_text_features(tokens.input_ids))
    np.testing.assert_allclose(ours.encode_texts(TEXTS), expected, atol=2e-6)


def test_the_place_in_a_batch_does_not_count(both):
    _, folder, ours = both
    whole = load_clip(folder, batch_size=8)
    np.testing.assert_allclose(whole.encode_texts(TEXTS), ours.encode_texts(TEXTS), atol=1e-6)
    assert ours.encode_images([]).shape == (0, 16)
    assert whole.fingerprint == ours.fingerprint


def openclip_state(model) -> dict:
    """OpenCLIP's names and shapes of a transformers CLIP."""
    state = {k: v for k, v in model.state_dict().items() if "position_ids" not in k}
    renamed = {
        "visual.conv1.weight": state.pop("vision_model.embeddings.patch_embedding.weight"),
        "visual.class_embedding": state.pop("vision_model.embeddings.class_embedding"),
        "visual.positional_embedding": state.pop(
            "vision_model.embeddings.position_embedding.weight"
        ),
        "visual.proj": state.pop("visual_projection.weight").T,
        "text_projection": state.pop("text_projection.weight").T,
        "token_embedding.weight": state.pop("text_model.embeddings.token_embedding.weight"),
        "positional_embedding": state.pop("text_model.embeddings.position_embedding.weight"),
        "logit_scale": state.pop("logit_scale"),
    }
    words = {
        "vision_model.": "visual.",
        "text_model.": "",
        "pre_layrnorm": "ln_pre",
        "post_layernorm": "ln_post",
        "final_layer_norm": "ln_final",
        "encoder.layers": "transformer.resblocks",
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    for name in list(state):
        if "k_proj" in name or "v_proj" in name:
            continue
        fused = [state[name.replace("q_proj", f"{x}_proj")] for x in "qkv"]
        value = torch.cat(fused) if "q_proj" in name else state[name]
        new = name.replace("self_attn.q_proj.", "attn.in_proj_")
        for old, short in words.items():
            new = new.replace(old, short)
        renamed[new] = value
    return renamed


def test_openclip_names_give_the_same_model(both, tmp_path):
    model, folder, ours = both
    shutil.copytree(
        folder, tmp_path / "openclip", ignore=shutil.ignore_patterns("*model*", "config.json")
    )
    torch.save(openclip_state(model), tmp_path / "openclip/open_clip_pytorch_model.bin")
    facts = {
        "embed_dim": 16,
        "quick_gelu": ours.config.text.activation == "quick_gelu",
        "vision_cfg": {
            "image_size": 28,
            "patch_size": 14,
            "width": 32,
            "layers": 2,
            "head_width": 16,
            "mlp_ratio": 1.5,
        },
        "text_cfg": {
            "context_length": 12,
            "vocab_size": ours.config.text.vocab_size,
            "width": 24,
            "heads": 2,
            "layers": 3,
            "mlp_ratio": 40 / 24,
        },
    }
    config = tmp_path / "openclip/open_clip_config.json"
    config.write_text(json.dumps({"model_cfg": facts}))
    other = load_clip(tmp_path / "openclip", batch_size=2)
    np.testing.assert_allclose(other.encode_texts(TEXTS), ours.encode_texts(TEXTS), atol=1e-6)
    np.testing.assert_allclose(
        other.encode_images(pictures()), ours.encode_images(pictures()), atol=1e-6
    )


def test_wrong_directories_are_refused(both, tmp_path):
    model, folder, _ = both
    with pytest.raises(UserError, match="does not exist"):
        load_clip(tmp_path / "nothing")
    with pytest.raises(UserError, match="has no weights"):
        load_clip(tmp_path)
    model.vision_model.save_pretrained(tmp_path / "vision")
    with pytest.raises(UserError, match="no CLIP text tower"):
        load_clip(tmp_path / "vision")
    other = shutil.copytree(folder, tmp_path / "other")
    facts = json.loads((other / "config.json").read_text())
    facts["text_config"]["hidden_size"] = 26
    (other / "config.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=r"text tower in .* has shape"):
        load_clip(other)
    torch.save(openclip_state(model) | {"cls_emb": torch.zeros(3)}, tmp_path / "coca.pt")
    with pytest.raises(UserError, match="tensors unknown in a CLIP: cls_emb"):
        load_clip(tmp_path / "coca.pt")


def test_foreign_preprocessing_and_tokenizers_are_refused(both, tmp_path):
    _, folder, _ = both
    other = shutil.copytree(folder, tmp_path / "other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).unlink()
    with pytest.raises(UserError, match="has no tokenizer"):
        load_clip(other).encode_texts(["dax"])
    (other / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')
    with pytest.raises(UserError, match="image_mean = "):
        load_clip(other)


def test_arrays_that_are_no_pictures_are_refused(both):
    with pytest.raises(ValueError, match=r"expected uint8 \(height, width\)"):
        both[2].encode_images([np.zeros((4, 4, 3), np.float32)])
