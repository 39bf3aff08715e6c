"""What a container's limit leaves of the host's memory, by files as Linux writes them."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from reattention_core import cgroup, memory


def group(folder: Path, limit: str, used: int, files: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\nfile 900\ninactive_file {files}\n")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    file = tmp_path / "own"
    file.write_text("0::/system.slice/job\n")
    return file


def test_the_tightest_group_counts_and_files_in_memory_do_not(tmp_path: Path, own: Path) -> None:
    root = tmp_path / "groups"
    assert cgroup.free_bytes(root, own) is None, "nothing is mounted"
    group(root / "system.slice" / "job", "max", 700)
    assert cgroup.free_bytes(root, own) is None
    group(root / "system.slice", "1000", 700, files=200)
    assert cgroup.free_bytes(root, own) == 500
    group(root / "system.slice" / "job", "600", 500)
    assert cgroup.free_bytes(root, own) == 100
    group(root / "system.slice" / "job", "600", 700)
    assert cgroup.free_bytes(root, own) == 0
    group(tmp_path, "1", 1)
    assert cgroup.free_bytes(root / "system.slice", own) == 500, "a container sees its own group as the root"


def test_files_that_say_something_else_are_no_limit(tmp_path: Path, own: Path) -> None:
    group(tmp_path, "many", 700)
    assert cgroup.free_bytes(tmp_path, own) is None
    own.write_text("4:memory:/job\n")
    assert cgroup.free_bytes(tmp_path, own) is None
    assert cgroup.free_bytes(tmp_path, tmp_path / "missing") is None


@pytest.mark.parametrize(("allowed", "expected"), [(None, 1000), (300, 300), (5000, 1000)])
def test_the_host_has_what_is_free_and_allowed(
    monkeypatch: pytest.MonkeyPatch, allowed: int | None, expected: int
) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr(cgroup, "free_bytes", lambda: allowed)
    assert memory.free_bytes(torch.device("cpu")) == expected
