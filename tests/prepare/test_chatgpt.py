import base64
import json

import numpy as np
import pytest

from flamingo_jax.data.images import decode_image
from flamingo_jax.data.sources import Mmc4
from flamingo_jax.data.stores import open_store
from flamingo_jax.errors import UserError
from flamingo_jax.prepare.commands import main
from flamingo_jax.prepare.retrieval import Pool
from flamingo_jax.similarity.clip import load_clip
from flamingo_jax.text.template import render
from tests.clip_models import save_clip
from tests.data.corpora import damaged_pairs, pair_samples, picture, write_tar

from .conftest import prepare

IMAGES = 20


@pytest.fixture(scope="module")
def pool(clip_directory, tmp_path_factory):
    """(directory of embeddings, the embeddings of its pictures in order)."""
    folder = tmp_path_factory.mktemp("pool")
    write_tar(folder / "0.tar", pair_samples(0, 8))
    write_tar(folder / "1.tar", damaged_pairs(2) | pair_samples(8, IMAGES - 8))
    flags = ("--shards", f"{folder}/*.tar", "--clip", clip_directory, "--batch-size", 8)
    survival = prepare("embed", *flags, "--out", folder / "pool")
    assert (survival["documents"], survival["kept"]) == (IMAGES + 2, IMAGES)
    clip = load_clip(clip_directory)
    return folder / "pool", clip.encode_images(
        [decode_image(picture(n), 28) for n in range(IMAGES)]
    )


def build(folder, pool, clip_directory, replies: list[str], *flags) -> tuple[dict, list]:
    """(survival counts, records written). A reply that begins with a brace is a line as it is."""
    lines = [r if r[0] == "{" else json.dumps({"reply": r}) for r in replies]
    (folder / "replies.jsonl").write_text("\n".join(lines) + "\n")
    survival = prepare(
        *("chatgpt", "--replies", folder / "replies.jsonl", "--pool", pool[0]),
        *("--clip", clip_directory, "--batch-size", 8, "--out", folder / "out", *flags),
    )
    if not survival["kept"]:
        return survival, []
    store = open_store(f"{folder}/out/*.tar")
    return survival, [store.record(0, index) for index in range(int(store.sizes[0]))]


REPLY = "dax [IMAGE: wug toma] zorp fep [IMAGE: fep a b] toma [IMAGE: wug toma]"


def test_images_are_the_nearest_and_none_is_used_twice(pool, clip_directory, tmp_path):
    clip = load_clip(clip_directory)
    flags = ("--context", 0, "--min-similarity", -1, "--candidates", 3)
    _, (record,) = build(tmp_path, pool, clip_directory, [REPLY], *flags)
    first, second = np.argsort(-pool[1] @ clip.encode_texts(["wug toma", "fep a b"]).T, axis=0).T
    expected = [first[0], next(n for n in second if n != first[0])]
    expected.append(next(n for n in first if n not in expected))
    entries = json.loads(record.fields["json"])["image_map"]
    assert list(entries) == ["_!_IMAGE1_!_", "_!_IMAGE2_!_", "_!_IMAGE3_!_"]
    found = [base64.b64decode(entry["base64_image"]) for entry in entries.values()]
    assert found == [picture(int(n)) for n in expected]
    document = Mmc4(shards="").parse(record)
    assert document.images == tuple(found)
    assert render(document.parts) == (
        "dax<image>zorp fep<|endofchunk|><image>toma<|endofchunk|><image>"
    )


def test_the_text_around_re_ranks_the_candidates(pool, clip_directory, tmp_path):
    clip = load_clip(clip_directory)
    described = pool[1] @ clip.encode_texts(["wug toma"])[0]
    nearest = np.argsort(-described)[:6]

    def best(text: str) -> int:
        return int(nearest[(pool[1] @ clip.encode_texts([text])[0])[nearest].argmax()])

    text = next(t for t in "abcdefghijklmnopqrstuvwxyz" if best(t) != nearest[0])
    flags = ("--context", 1, "--min-similarity", -1, "--candidates", 6, "--min-images", 1)
    reply = f"dax [IMAGE: wug toma] {text}"
    _, (record,) = build(tmp_path, pool, clip_directory, [reply], *flags)
    entry = json.loads(record.fields["json"])["image_map"]["_!_IMAGE1_!_"]
    assert base64.b64decode(entry["base64_image"]) == picture(best(text))
    assert entry["similarity"] == pytest.approx(described[best(text)], abs=1e-4)


def test_what_becomes_of_bad_replies(pool, clip_directory, tmp_path):
    empty = ["[IMAGE: ] dax [IMAGE: wug]", "[IMAGE: a][IMAGE: b]"]
    replies = [REPLY, "{", "no image here", *empty, '{"key": 3}', REPLY + "\ud83d"]
    survival, (record,) = build(tmp_path, pool, clip_directory, replies, "--min-similarity", -1)
    assert record.key == "replies/0"
    assert survival["dropped"] == {
        "damaged record": 3,
        "too few images described": 1,
        "empty text or description": 2,
    }


def test_descriptions_without_a_similar_image(pool, clip_directory, tmp_path):
    survival, records = build(tmp_path, pool, clip_directory, [REPLY], "--min-similarity", 2)
    assert survival["images_dropped"] == {"no similar image": 3}
    assert survival["dropped"] == {"too few similar images": 1}
    assert not records


def test_another_clip_than_the_pools_is_refused(pool, tmp_path):
    save_clip(tmp_path / "other", activation="gelu")
    with pytest.raises(UserError, match="embedded by another CLIP"):
        build(tmp_path, pool, tmp_path / "other", [REPLY])


def test_candidates_are_the_best_of_all_shards(pool):
    texts = np.random.default_rng(0).normal(size=(7, 16)).astype(np.float32)
    fingerprint = str(np.load(pool[0] / "00000-of-00002.npz")["fingerprint"])
    found = Pool(str(pool[0])).candidates(texts, fingerprint, 5)
    scores = texts @ pool[1].astype(np.float16).astype(np.float32).T
    flat = [[p.record if p.shard == 0 else 8 + p.record - 2 for p in row] for row in found]
    np.testing.assert_array_equal(flat, np.argsort(-scores, axis=1)[:, :5])


def test_prompts_are_rendered_from_the_users_template(tmp_path, capsys):
    (tmp_path / "template.txt").write_text("Write about $topic for $$5, in $style.")
    values = tmp_path / "values.jsonl"
    values.write_text(
        '{"topic": "tea", "style": "verse"}\n{"topic": "rain", "style": "prose", "key": "r"}'
    )
    command = ["prepare", "chatgpt-prompts", "--template", str(tmp_path / "template.txt")]
    command += ["--values", str(values), "--out", str(tmp_path / "prompts.jsonl")]
    assert main(command) == 0
    found = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert found == [
        {"key": "1", "prompt": "Write about tea for $5, in verse."},
        {"key": "r", "prompt": "Write about rain for $5, in prose."},
    ]
    values.write_text('{"topic": "tea"}')
    with pytest.raises(UserError, match="line 1 lacks 'style'"):
        main(command)
    values.write_text("{")
    with pytest.raises(UserError, match="line 1, with"):
        main(command)


def test_a_pattern_needs_one_group(tmp_path):
    flags = ("--replies", "x", "--pool", "x", "--clip", "x", "--out", tmp_path)
    for pattern in ("[IMAGE]", "(a)(b)", "("):
        with pytest.raises(UserError, match="--image-pattern"):
            prepare("chatgpt", *flags, "--image-pattern", pattern)
