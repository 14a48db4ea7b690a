import json
import os
import pickle
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest

from flamingo_jax.data import stores
from flamingo_jax.data.records import BadRecordError
from flamingo_jax.data.sources import Sequences
from flamingo_jax.data.stores import expand, open_store
from flamingo_jax.data.tar_index import build_tar_index, split_name
from flamingo_jax.errors import UserError
from flamingo_jax.text.documents import Text

from .corpora import pair_samples, write_pairs, write_tar


def records(store):
    return [
        store.record(shard, index)
        for shard, size in enumerate(store.sizes)
        for index in range(size)
    ]


def test_patterns(tmp_path):
    for name in ("a-08.tar", "a-09.tar", "a-10.tar", "b.tar"):
        (tmp_path / name).touch()
    names = [Path(path).name for path in expand(f"{tmp_path}/a-{{08..10}}.tar")]
    assert names == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert len(expand(f"{tmp_path}/{{a-08,b}}.tar")) == 2
    assert len(expand(f"{tmp_path}/*.tar")) == 4
    with pytest.raises(UserError, match=r"a-11.tar' does not exist"):
        expand(f"{tmp_path}/a-{{10..11}}.tar")
    with pytest.raises(UserError, match="no file matches"):
        expand(f"{tmp_path}/c*.tar")


def test_tars_are_read_at_random(tmp_path):
    store = open_store(write_pairs(tmp_path, shards=3, per_shard=5))
    assert store.sizes.tolist() == [5, 5, 5]
    samples = pair_samples(0, 15)
    for record in reversed(records(store)):
        assert dict(record.fields) == samples[record.key]
    assert Path(store.record(2, 0).shard).name == "pairs-0002.tar"


def test_an_index_is_built_once_and_again_when_the_tar_changes(tmp_path, monkeypatch):
    pattern = write_pairs(tmp_path, shards=1, per_shard=5)
    open_store(pattern)
    built = []
    monkeypatch.setattr(
        stores, "build_tar_index", lambda path: built.append(path) or build_tar_index(path)
    )
    open_store(pattern)
    assert not built
    write_pairs(tmp_path, shards=1, per_shard=7)
    assert open_store(pattern).sizes.tolist() == [7]
    assert len(built) == 1


def test_indices_can_be_kept_elsewhere(tmp_path):
    pattern = write_pairs(tmp_path, shards=2, per_shard=3)
    before = set(tmp_path.iterdir())
    open_store(pattern, str(tmp_path / "cache"))
    assert {path.name for path in set(tmp_path.iterdir()) - before} == {"cache"}
    assert len(list((tmp_path / "cache").iterdir())) == 2
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be kept.*options\.index_dir"):
        open_store(pattern, str(tmp_path / "file" / "cache"))


def test_an_index_that_two_hosts_build_at_the_same_time(tmp_path, monkeypatch):
    pattern = write_pairs(tmp_path, shards=1, per_shard=5)
    save = np.save

    def slow_save(file, array):
        save(file, array)
        monkeypatch.setattr(np, "save", save)
        assert open_store(pattern).sizes.tolist() == [5]  # the other host, meanwhile

    monkeypatch.setattr(np, "save", slow_save)
    assert open_store(pattern).sizes.tolist() == [5]
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".npy", ".tar"]


def test_an_index_that_another_host_has_mapped_is_not_replaced(tmp_path, monkeypatch):
    pattern = write_pairs(tmp_path, shards=1, per_shard=5)

    def slow_build(path):
        monkeypatch.setattr(stores, "build_tar_index", build_tar_index)
        open_store(pattern)  # the other host, meanwhile
        made.append(next(tmp_path.glob(".*.npy")).stat().st_ino)
        return build_tar_index(path)

    made = []
    monkeypatch.setattr(stores, "build_tar_index", slow_build)
    open_store(pattern)
    assert made == [next(tmp_path.glob(".*.npy")).stat().st_ino]


def test_few_shards_are_open_and_none_is_pickled(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "MAX_OPEN", 2)
    store = open_store(write_pairs(tmp_path, shards=5, per_shard=3))
    before = len(os.listdir("/proc/self/fd"))
    first = records(store)
    assert len(os.listdir("/proc/self/fd")) - before <= 2 * 2  # a tar and its index
    copy = pickle.loads(pickle.dumps(store))
    assert [r.fields for r in records(copy)] == [r.fields for r in first]
    assert len(pickle.dumps(store)) < 2000


@pytest.mark.parametrize("damaged", [0, 7, 29])
def test_a_damaged_header_costs_one_file(tmp_path, caplog, damaged):
    path = write_tar(tmp_path / "pairs.tar", pair_samples(0, 10))
    with tarfile.open(path) as tar:
        member = tar.getmembers()[damaged]
    data = bytearray(path.read_bytes())
    data[member.offset + 100 : member.offset + 140] = b"\xff" * 40
    path.write_bytes(data)
    index = build_tar_index(str(path))
    assert len(index) == 29
    assert re.search(
        rf"pairs.tar is damaged; lost: \d+ bytes at {member.offset}$", caplog.text, re.M
    )
    whole = [record for record in records(open_store(str(path))) if len(record.fields) == 3]
    assert len(whole) == 9


def test_a_cut_tar_keeps_what_is_there(tmp_path, caplog):
    path = write_tar(tmp_path / "pairs.tar", pair_samples(0, 10))
    with tarfile.open(path) as tar:
        member = tar.getmembers()[24]  # a .jpg
    os.truncate(path, member.offset_data + 100)
    assert len(build_tar_index(str(path))) == 24
    assert "000008.jpg, which the end of the file cuts off" in caplog.text


def test_tars_put_together_by_cat_are_whole(tmp_path, caplog):
    parts = [write_tar(tmp_path / f"{n}", pair_samples(5 * n, 5)) for n in range(2)]
    both = tmp_path / "both.tar"
    both.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert len(records(open_store(str(both)))) == 10
    assert not caplog.text


def test_files_that_are_no_tars_are_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"hello" * 500)
    with pytest.raises(UserError, match="is it a tar file"):
        open_store(str(tmp_path / "a.tar"))
    (tmp_path / "a.zip").touch()
    with pytest.raises(UserError, match=r"end in \.zip; expected \.tar, \.jsonl"):
        open_store(str(tmp_path / "a.zip"))


def test_a_tar_that_shrank_gives_bad_records(tmp_path):
    path = write_tar(tmp_path / "pairs.tar", pair_samples(0, 10))
    store = open_store(str(path))
    store.record(0, 0)
    os.truncate(path, 4000)
    with pytest.raises(BadRecordError, match="shorter since it was indexed"):
        store.record(0, 9)


def test_sample_names_are_webdatasets():
    assert split_name("a/b.seg.JPG") == ("a/b", "seg.jpg")
    assert split_name("./a.b/c.txt") == ("./a.b/c", "txt")


def test_long_names_and_directories(tmp_path):
    samples = {f"{'d' * 90}/{'n' * 90}{n}": {"txt": b"x"} for n in range(3)}
    path = write_tar(tmp_path / "long.tar", samples)
    with tarfile.open(path, "a") as tar:
        tar.add(tmp_path, "directory", recursive=False)
    assert [record.key for record in records(open_store(str(path)))] == list(samples)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_names_that_are_not_utf8(tmp_path, monkeypatch, caplog, form):
    monkeypatch.setattr(tarfile.TarFile, "format", form)
    names = ("caf\udce9", "caf\udce8", "café")  # the first two in Latin-1
    path = write_tar(tmp_path / "a.tar", {name: {"txt": b"x", "jpg": b"y"} for name in names})
    found = records(open_store(str(path)))
    assert [record.key for record in found] == ["caf\\xe9", "caf\\xe8", "café"]
    assert all(record.fields == {"txt": b"x", "jpg": b"y"} for record in found)
    with tarfile.open(path) as tar:
        os.truncate(path, tar.getmembers()[3].offset_data)
    build_tar_index(str(path))
    assert r"caf\xe8.jpg, which the end of the file cuts off" in caplog.text


def test_a_directory_of_json_lines(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"n": 0}\n\n{"n": 1}\r\n')
    (tmp_path / "b.jsonl").write_bytes(b'{"n": 2}')
    found = records(open_store(str(tmp_path)))
    assert [json.loads(record.fields["json"])["n"] for record in found] == [0, 1, 2]
    assert {record.root for record in found} == {str(tmp_path)}
    (tmp_path / "c.jsonl").touch()
    with pytest.raises(UserError, match=r"c\.jsonl has no lines"):
        open_store(str(tmp_path))


def test_json_lines_named_without_a_directory(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": "0.jpg", "text": "dax"}))
    (tmp_path / "0.jpg").write_bytes(b"picture")
    monkeypatch.chdir(tmp_path)
    record = open_store("a.jsonl").record(0, 0)
    assert Sequences(shards="a.jsonl").parse(record).parts == (b"picture", Text("dax"))
