"""Run by `make wheel` where the wheel was unpacked: everything is imported from there, and nothing else lies there."""

import importlib
import sys
from pathlib import Path

outside = Path(sys.argv[1]).resolve()
for name in (
    "reattention_core.engine",
    "reattention_kernels",
    "langchain_reattention",
    "llama_index.llms.reattention",
    "llama_index.indices.reattention",
):
    found = Path(str(importlib.import_module(name).__file__)).resolve()
    assert outside in found.parents, f"{name} came from {found}"
packages = {path.name for path in outside.iterdir() if path.is_dir() and not path.name.endswith(".dist-info")} - {"bin"}
expected = {"reattention_core", "reattention_kernels", "reattention_bench", "langchain_reattention", "llama_index"}
assert packages == expected, packages
assert (outside / "bin" / "reattention").exists()
assert (outside / "reattention_core" / "view" / "page.html.j2").exists()
