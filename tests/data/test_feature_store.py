import os
import shutil

import numpy as np
import pytest

from flamingo_jax.data.feature_store import ENTRY, INDEX, RECORDS, FeatureStore

SHAPE = 3, 4
BYTES = 4 * 12


def array(number: int) -> np.ndarray:
    return np.full(SHAPE, number, np.float32)


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def opened(folder, max_bytes: int = 10**6) -> FeatureStore:
    return FeatureStore(folder / "weights", BYTES, max_bytes)


def found(store: FeatureStore, number: int) -> np.ndarray | None:
    out = np.full(SHAPE, np.nan, np.float32)
    return out if store.read(key(number), out) else None


@pytest.fixture
def folder(tmp_path):
    """A store with the arrays 0 to 4."""
    store = opened(tmp_path)
    for number in range(5):
        store.write(key(number), array(number))
    store.close()
    return tmp_path


def files(folder, kind):
    return sorted((folder / "weights").glob(f"*{kind}"))


def assert_holds(store: FeatureStore, numbers) -> None:
    for number in numbers:
        np.testing.assert_array_equal(found(store, number), array(number))


def test_arrays_are_found_by_the_writer_and_by_later_readers(folder):
    store = opened(folder)
    assert len(store) == 5
    assert_holds(store, range(5))
    assert found(store, 5) is None
    store.write(key(5), array(5))
    assert_holds(store, range(6))
    assert_holds(opened(folder), range(6))


def test_a_key_is_kept_once(folder):
    store = opened(folder)
    store.write(key(2), array(9))
    assert_holds(store, [2])
    assert len(files(folder, RECORDS)) == 1  # nothing was written


def test_what_a_kill_left_half_written_is_absent(folder):
    (index,) = files(folder, INDEX)
    (records,) = files(folder, RECORDS)
    os.truncate(index, 4 * ENTRY.size + 7)
    os.truncate(records, 4 * BYTES + 5)
    store = opened(folder)
    assert_holds(store, range(4))
    assert found(store, 4) is None
    store.write(key(4), array(4))  # in a shard of its own, so that places stay what they are
    assert_holds(opened(folder), range(5))


@pytest.mark.parametrize("where", [0, BYTES - 1])
def test_a_damaged_array_is_absent_and_can_be_written_again(folder, where):
    (records,) = files(folder, RECORDS)
    data = bytearray(records.read_bytes())
    data[2 * BYTES + where] ^= 1
    records.write_bytes(data)
    store = opened(folder)
    assert found(store, 2) is None
    assert_holds(store, [0, 1, 3, 4])
    store.write(key(2), array(2))
    assert_holds(opened(folder), range(5))


def test_a_damaged_entry_of_the_index_is_left_out(folder):
    (index,) = files(folder, INDEX)
    data = bytearray(index.read_bytes())
    data[ENTRY.size + 3] ^= 1
    index.write_bytes(data)
    store = opened(folder)
    assert len(store) == 4
    assert_holds(store, [0, 2, 3, 4])


def test_records_that_are_gone_are_absent(folder):
    files(folder, RECORDS)[0].unlink()
    assert found(opened(folder), 0) is None


def test_the_bound_counts_everything_beside_it(folder, capsys):
    other = FeatureStore(folder / "other weights", BYTES, max_bytes=7 * BYTES)
    for number in range(4):
        other.write(key(number), array(number))
    assert len(other) == 2
    assert_holds(other, range(2))
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 1
    assert "takes no more images: it has reached config.data.vision_cache_gib" in notes[0]


def test_a_folder_that_takes_no_more_stops_only_the_writing(folder, capsys):
    store = opened(folder)
    assert_holds(store, range(5))
    shutil.rmtree(folder)
    for number in (7, 8):
        store.write(key(number), array(number))
    assert found(store, 7) is None
    assert_holds(store, range(5))  # what is open is still there
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 1
    assert "takes no more images: it cannot be written (No such file or directory)" in notes[0]
