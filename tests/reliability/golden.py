"""A corpus of the format as it is now, as it was written when that was new, kept in `golden`: it must open for ever.

`python -m tests.reliability.golden` wrote it. It is written anew only together with a new version of the format, under
another name, so that the old one stays.
"""

import shutil
from pathlib import Path

from reattention_core.store import Store
from reattention_core.store.manifest import VERSION
from tests.reliability.shelf import Made, made, save

ROOT = Path(__file__).parent / "golden" / f"version-{VERSION}"


def content() -> Made:
    """What is in it."""
    return made("golden", (40, 20))


def main() -> None:
    """Write it."""
    shutil.rmtree(ROOT, ignore_errors=True)
    save(Store(ROOT), "c", content())
    (ROOT / ".lock").unlink()


if __name__ == "__main__":
    main()
