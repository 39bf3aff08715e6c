"""What `make` installs can be installed by the oldest Python that the project says it takes."""

import tomllib
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OLDEST = PROJECT["requires-python"].removeprefix(">=")


def pins() -> dict[str, str]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    return dict(line.lower().replace("_", "-").split("==") for line in lines if line)


def test_pinned_versions_take_the_oldest_python() -> None:
    found, pinned = 0, pins()
    for package in distributions():
        name = package.name.lower().replace("_", "-")
        if package.version != pinned.get(name):
            continue
        found += 1
        takes = SpecifierSet(package.metadata["Requires-Python"] or "")
        assert f"{OLDEST}.0" in takes, f"{name} {package.version} takes Python {takes}"
    assert found > 100


def test_pinned_versions_suit_one_another() -> None:
    pinned = pins()
    for package in distributions():
        if package.version != pinned.get(package.name.lower().replace("_", "-")):
            continue
        for wanted in map(Requirement, package.requires or ()):
            other = pinned.get(wanted.name.lower().replace("_", "-"))
            if other is not None and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
                assert other in wanted.specifier, f"{package.name} wants {wanted}, pinned is {other}"


def test_pinned_versions_are_what_the_project_asks_for() -> None:
    pinned = pins()
    extras = [wanted for extra in PROJECT["optional-dependencies"].values() for wanted in extra]
    for wanted in map(Requirement, [*PROJECT["dependencies"], *extras]):
        assert pinned[wanted.name.lower()] in wanted.specifier, f"{wanted}: pinned is {pinned[wanted.name.lower()]}"
