"""A link from the documentation to a file of the repository: it must exist, and on the site it is the file's name.

The pages are read in the repository as well, where such links lead somewhere.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page's text with such links replaced.

    Raises:
        PluginError: a file is not there.
    """

    def name(found: "re.Match[str]") -> str:
        text, path = found.groups()
        if not (ROOT / path).exists():
            raise PluginError(f"{page.file.src_path} links to {path}, which is not there")
        return text if Path(path).stem in text or path.startswith("tests/") else f"{text} (`{path}`)"

    return LINK.sub(name, markdown)
