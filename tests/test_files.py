import pytest

from flamingo_jax.errors import UserError
from flamingo_jax.files import replaced, write_text


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "made" / "a.txt"
    for text in ("first", "ïäü"):
        write_text(path, text)
        assert path.read_text("utf-8") == text
    assert list(path.parent.iterdir()) == [path]


def test_two_that_write_a_file_at_the_same_time(tmp_path):
    """On two hosts, say, with the same process ids: the last one wins, and the file is whole."""
    path, plain = tmp_path / "a.txt", tmp_path / "plain.txt"
    with replaced(path) as first:
        first.write_text("first")
        write_text(path, "second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode  # others may read it as far as umask says
    assert {*tmp_path.iterdir()} == {path, plain}


def test_what_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/a\.txt cannot be written \(Not a directory\)"):
        write_text(tmp_path / "file" / "a.txt", "text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"folder cannot be written \(Is a directory\)"):
        write_text(tmp_path / "folder", "text")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}
