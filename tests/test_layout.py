"""The tree keeps clear of two traps: a package named `kernels`, and namespace packages with an `__init__`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "folder",
    [
        "kernels",
        "integrations",
        "integrations/llama_index",
        "integrations/llama_index/llms",
        "integrations/llama_index/indices",
        "cookbooks",
    ],
)
def test_source_roots_are_no_packages(folder: str) -> None:
    assert (ROOT / folder).is_dir()
    assert not (ROOT / folder / "__init__.py").exists()


def test_no_test_folder_is_named_kernels() -> None:
    assert not [path for path in (ROOT / "tests").rglob("kernels") if path.is_dir()]


def run(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_transformers_imports_from_the_root_beside_a_package_called_kernels(tmp_path: Path) -> None:
    """Hugging Face's own `kernels` must win over our folder of that name when the working directory is the root."""
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text("class CUDAProperties: ...\n")
    found = run(f"import sys; sys.path.append({str(tmp_path)!r}); import kernels; print(kernels.__file__)", ROOT)
    assert found.strip() == str(package / "__init__.py")


def test_llama_can_be_imported_from_the_root() -> None:
    assert "LlamaForCausalLM" in run("from transformers import LlamaForCausalLM; print(LlamaForCausalLM)", ROOT)


def test_importing_the_core_is_light() -> None:
    """Without a name being used not even torch; then no framework and no kernel, whose import compiles for a GPU.

    Triton itself cannot be looked for there: torch and transformers import it wherever it is installed.
    """
    code = """
import sys, reattention_core
for name in ("torch", "triton", "transformers"):
    assert name not in sys.modules, name
reattention_core.Engine
loaded = {name.split(".")[0] for name in sys.modules}
kernels = [name for name in sys.modules if name.startswith("reattention_kernels.") and name.endswith("_kernel")]
print(sorted(loaded & {"llama_index", "langchain_core", "pypdf", "bs4", "typer"}), kernels)
"""
    assert run(code, ROOT).strip() == "[] []"


def test_every_file_of_kernels_is_found_by_its_name() -> None:
    """The test above looks for `*_kernel`: nothing else may import Triton."""
    for path in (ROOT / "kernels").rglob("*.py"):
        imports = re.search(r"^(from|import) triton", path.read_text(), re.MULTILINE)
        assert bool(imports) == path.stem.endswith("_kernel"), path


def test_public_names_are_all_there() -> None:
    import reattention_core
    import reattention_kernels

    for module in (reattention_core, reattention_kernels):
        for name in module.__all__:
            assert getattr(module, name).__doc__, name
    assert "Engine" in reattention_core.__all__
    with pytest.raises(AttributeError, match="no attribute 'Engin'"):
        _ = reattention_core.Engin


def test_every_file_says_what_it_is() -> None:
    for root in ("reattention_core", "reattention_bench", "kernels", "integrations", "benchmarks", "cookbooks"):
        for path in (ROOT / root).rglob("*.py"):
            text = path.read_text()
            # A cookbook begins as its notebook does, with a title and what it is about.
            assert text.startswith(('"""', 'r"""', "# %% [markdown]\n# # ")), path
            assert text.count("\n") <= 350, f"{path} is too long to read in one go: split it by idea"
