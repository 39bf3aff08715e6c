"""Memory that a container may still take, where it has a limit of its own; knows control groups of version 2 alone."""

from pathlib import Path


def free_bytes(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """Bytes that this process's control groups still allow it, what files take of their share not counted; None without limits.

    Args:
        root: where control groups are mounted.
        own: the file that names the process's.
    """
    try:
        names = [line.removeprefix("0::").strip("/") for line in own.read_text().splitlines() if line.startswith("0::")]
    except OSError:  # no Linux, or none that says so
        return None
    found = []
    for name in names:
        folder = root / name
        # A container sees its own group as the root, whatever the file calls it.
        for group in (folder, *(parent for parent in folder.parents if parent.is_relative_to(root))):
            free = _free(group)
            if free is not None:
                found.append(free)
    return min(found, default=None)


def _free(group: Path) -> int | None:
    """What one group allows; None where it has no limit."""
    try:
        limit, used = (group / "memory.max").read_text().strip(), int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return None if limit == "max" else max(0, int(limit) - used + int(stat.get("inactive_file", 0)))
    except (OSError, ValueError):
        return None
