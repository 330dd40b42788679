"""Results that several people work on: a file that one of them replaces stays readable and writable for the others."""

import os
import stat

import pytest

from sdpo_bench.system.files import atomic_write


@pytest.fixture
def strict():
    """The umask of somebody who shares nothing."""
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.parametrize("mode", [0o664, 0o644, 0o660])
def test_a_replaced_file_keeps_its_mode(tmp_path, strict, mode):
    path = tmp_path / "eval.parquet"
    path.write_bytes(b"old")
    path.chmod(mode)
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new" and stat.S_IMODE(path.stat().st_mode) == mode


def test_a_new_file_has_the_mode_that_its_maker_wants(tmp_path, strict):
    atomic_write(tmp_path / "new", b"x")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600


def test_a_file_that_nobody_could_read_is_readable_again(tmp_path):
    (tmp_path / "status").write_bytes(b"old")
    (tmp_path / "status").chmod(0)
    atomic_write(tmp_path / "status", b"new")
    assert stat.S_IMODE((tmp_path / "status").stat().st_mode) == 0o600


@pytest.mark.skipif(not hasattr(os, "chown") or os.getuid() != 0, reason="only root can give files away")
def test_a_replaced_file_keeps_its_group(tmp_path):
    path = tmp_path / "eval.parquet"
    path.write_bytes(b"old")
    os.chown(path, -1, 12345)
    atomic_write(path, b"new")
    assert path.stat().st_gid == 12345
