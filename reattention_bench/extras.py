"""Optional libraries, with the exact command that installs a missing one; knows none of them."""

from importlib import import_module
from typing import Any


def need(module: str, package: str, extra: str | None) -> Any:
    """An optional module.

    Args:
        module: to import.
        package: that brings it.
        extra: of this library that brings the package; None where it must be installed by itself.

    Raises:
        ImportError: it is not installed; the message is what to do.
    """
    try:
        return import_module(module)
    except ImportError as error:
        # Its metadata asks for packages that are not used here.
        command = f"pip install 'reattention[{extra}]'" if extra else f"pip install --no-deps {package}"
        raise ImportError(f"this needs the package {package}, which cannot be imported ({error}): {command}") from error
