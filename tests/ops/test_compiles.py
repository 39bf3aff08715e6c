"""Every kernel compiles for the GPUs it is meant for, with Triton's own ptxas, on a machine that has none."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.ops.compiling import CASES, FLOAT8, SHARED, SLOW

ROOT = Path(__file__).parents[2]
KERNELS = {
    "_maxima_kernel",
    "_code_kernel",
    "_best_spans_kernel",
    "_best_keys_kernel",
    "_one_per_block_kernel",
    "_count_kernel",
    "_page_masses",
    "_row_factors",
    "_mean_mass",
    "_attend_kernel",
    "_merge_kernel",
    "_write_kernel",
    "_copy_kernel",
    "_rotate_kernel",
}
HOPPER = {"_masses_kernel"}
"""Kernels in a language for one kind of GPU."""


def compiled(capability: int, cases: list[str], folder: Path) -> list[dict[str, Any]]:
    """One entry for each kernel that the cases launch; nothing comes from a cache of an earlier run."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON_", "REATTENTION_"))}
    env |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "TRITON_CACHE_DIR": str(folder)}
    command = [sys.executable, "-W", "ignore", "-m", "tests.ops.compiling", str(capability), *cases]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(entries: list[dict[str, Any]], capability: int, cases: list[str]) -> None:
    errors = [f"{entry['case']}: {entry['error']}" for entry in entries if "error" in entry]
    assert not errors, f"for capability {capability}:\n" + "\n".join(errors)
    assert {entry["case"] for entry in entries} == set(cases)
    large = [entry for entry in entries if entry["shared"] > SHARED[capability]]
    assert not large, f"more shared memory than the {SHARED[capability]:,} bytes of capability {capability}: {large}"


@pytest.mark.parametrize("capability", SHARED)
def test_every_kernel_compiles(capability: int, tmp_path: Path) -> None:
    entries = compiled(capability, list(CASES), tmp_path)
    check(entries, capability, list(CASES))
    assert {entry["kernel"] for entry in entries} == KERNELS | (HOPPER if capability == 90 else set())


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED)
def test_every_kernel_compiles_in_every_type_and_shape(capability: int, tmp_path: Path) -> None:
    cases = list(SLOW | FLOAT8) if capability >= 89 else list(SLOW)
    check(compiled(capability, cases, tmp_path), capability, cases)


def test_a_kernel_that_does_not_compile_is_seen(tmp_path: Path) -> None:
    [entry] = compiled(90, ["broken"], tmp_path)
    assert "undefined is not defined" in entry["error"]
