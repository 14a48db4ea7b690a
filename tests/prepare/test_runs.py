"""However shards are made, and however often a run is killed, their bytes are the same."""

import errno
import itertools
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from flamingo_jax.errors import UserError
from flamingo_jax.prepare import job as jobs
from flamingo_jax.prepare.commands import in_part, main
from flamingo_jax.prepare.img2dataset import Img2dataset
from flamingo_jax.prepare.job import Job
from flamingo_jax.prepare.runners import by_processes
from flamingo_jax.prepare.writers import ArrayRecords
from tests.data.corpora import write_pairs

from .corpora import write_mmc4

pytestmark = pytest.mark.filterwarnings("default")  # TFDS and Beam are noisy


@dataclass(frozen=True, kw_only=True)
class Dying(Img2dataset):
    """Kills its process in the middle of shard 2, as long as a file is there."""

    deadly: str

    def samples(self, unit, tally):
        for number, sample in enumerate(super().samples(unit, tally)):
            if "0002" in unit.path and number == 5 and os.path.exists(self.deadly):
                os.kill(os.getpid(), signal.SIGKILL)
            yield sample


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def command(shards: str, out: Path, *more: str) -> int:
    return main(["prepare", "img2dataset", "--shards", shards, "--out", str(out), *more])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(shards, what one process makes of them)."""
    folder = tmp_path_factory.mktemp("pairs")
    shards = write_pairs(folder, shards=4)
    assert command(shards, folder / "out") == 0
    return shards, contents(folder / "out")


def test_a_killed_run_goes_on_with_the_same_bytes(made, tmp_path):
    shards, expected = made
    deadly = tmp_path / "deadly"
    deadly.touch()
    job = Job(Dying(shards=shards, deadly=str(deadly)), tmp_path / "out", ())
    job = Job(job.preparation, job.out, tuple(job.preparation.units()))
    job.begin()
    with pytest.raises(UserError, match="a worker was killed"):
        by_processes(job, job.todo(), 2)
    left = contents(tmp_path / "out")
    assert 2 in job.todo()
    assert any(name.endswith(".tmp") for name in left)  # what was being written
    finished = {index: job.target(index).stat().st_mtime_ns for index in {0, 1, 3} - {*job.todo()}}
    deadly.unlink()
    by_processes(job, job.todo(), 0)
    job.finish()
    found = contents(tmp_path / "out")
    assert found.keys() == expected.keys()
    differ = {name for name in found if found[name] != expected[name]}
    assert differ <= {"settings.json"}  # Dying has a setting more
    for index, time in finished.items():
        assert job.target(index).stat().st_mtime_ns == time


@dataclass(frozen=True, kw_only=True)
class Full(Img2dataset):
    """Finds the disk full."""

    def samples(self, unit, tally):
        yield from itertools.islice(super().samples(unit, tally), 3)
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_says_what_to_do_and_leaves_nothing(made, tmp_path):
    preparation = Full(shards=made[0])
    job = Job(preparation, tmp_path / "out", tuple(preparation.units()))
    job.begin()
    with pytest.raises(UserError, match=r"No space left on device; run the same command again"):
        by_processes(job, job.todo(), 0)
    assert contents(tmp_path / "out").keys() == {"settings.json"}


def test_a_finished_shard_is_not_made_again(made, tmp_path, monkeypatch):
    shards, expected = made
    assert command(shards, tmp_path / "out") == 0
    (tmp_path / "out/corpus-train.array_record-00001-of-00004").unlink()
    made_again = []
    make = jobs.Job.make
    monkeypatch.setattr(
        Job, "make", lambda job, index: made_again.append(index) or make(job, index)
    )
    assert command(shards, tmp_path / "out") == 0
    assert made_again == [1]
    assert contents(tmp_path / "out") == expected


def test_beam_makes_the_same_bytes(made, tmp_path):
    pytest.importorskip("apache_beam")
    shards, expected = made
    flags = ("--beam", "--", "--runner=DirectRunner", "--direct_num_workers=1")
    assert command(shards, tmp_path / "out", *flags) == 0
    assert contents(tmp_path / "out") == expected


def test_without_beam_the_extra_is_named(made, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"flamingo-jax\[beam\]"):
        command(made[0], tmp_path / "out", "--beam")


def test_parts_of_a_job_array(made, tmp_path, capsys):
    shards, expected = made
    assert command(shards, tmp_path / "out", "--part", "1/2") == 0
    assert "2 of 4 shards are there" in capsys.readouterr().out
    assert not (tmp_path / "out/survival.json").exists()
    assert command(shards, tmp_path / "out", "--part", "0/2") == 0
    assert contents(tmp_path / "out") == expected
    assert "documents kept" in capsys.readouterr().out
    with pytest.raises(UserError, match="K from 0 to N - 1"):
        in_part(0, "2/2")


def test_parts_that_begin_and_end_at_the_same_time(made, tmp_path, monkeypatch):
    """Whatever one of them does, another one does while it is being done."""
    shards, expected = made
    preparation = Img2dataset(shards=shards)
    job = Job(preparation, tmp_path / "out", tuple(preparation.units()))

    def meanwhile(kind, name, other):
        real = getattr(kind, name)

        def slow(*args):
            done = real(*args)
            monkeypatch.setattr(kind, name, real)
            other()
            return done

        monkeypatch.setattr(kind, name, slow)

    def make_and_finish():
        by_processes(job, job.todo(), 0)
        job.finish()

    meanwhile(Path, "write_text", job.begin)
    job.begin()
    meanwhile(ArrayRecords, "write", make_and_finish)
    job.make(0)
    meanwhile(Path, "write_text", job.finish)
    job.finish()
    assert contents(tmp_path / "out") == expected


def test_other_settings_need_another_directory(made, tmp_path):
    shards, _ = made
    assert command(shards, tmp_path / "out") == 0
    with pytest.raises(UserError, match=r"other settings \(min_side\)"):
        command(shards, tmp_path / "out", "--min-side", "3")
    with pytest.raises(UserError, match="goes with --beam only"):
        command(shards, tmp_path / "out", "--", "--runner=DirectRunner")
    with pytest.raises(UserError, match="--workers is -1"):
        command(shards, tmp_path / "out", "--workers", "-1")


def test_a_directory_that_cannot_be_written(made, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        command(made[0], tmp_path / "file/out")


def test_a_directory_of_images_that_is_not_there(tmp_path):
    for corpus, shards in (("mmc4", "--shards"), ("obelics", "--parquet")):
        with pytest.raises(UserError, match="--images=nowhere is no directory"):
            main(["prepare", corpus, shards, "*", "--images=nowhere", "--out", str(tmp_path)])


def test_the_table_of_the_docs(tmp_path, capsys):
    shards, images = write_mmc4(tmp_path / "example")
    flags = ["--shards", shards, "--images", images, "--min-image-bytes", "0"]
    assert main(["prepare", "mmc4", *flags, "--out", str(tmp_path / "out")]) == 0
    table = capsys.readouterr().out.split("\nwrote")[0]
    assert table in (Path(__file__).parents[2] / "docs/preparing.md").read_text()
