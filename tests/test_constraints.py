""".github/constraints.txt: an exact version of every package that pyproject.toml names, within its bounds."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from project import ROOT

LINES = (ROOT / ".github" / "constraints.txt").read_text(encoding="utf-8").splitlines()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

named = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
REQUIREMENTS = [line for line in named if not line.startswith("fer-lightning")]


def test_every_line_is_an_exact_version_that_any_build_has():
    """A version such as 2.11.0+cpu, a path or an address would install on some machines only."""
    pins = [line for line in LINES if not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)] == []
    names = [canonicalize_name(line.partition("==")[0]) for line in pins]
    assert len(set(names)) == len(names)
    # The CUDA build of torch pins these itself, others do not have them.
    assert [name for name in names if name.startswith(("nvidia", "cuda", "triton", "fer-lightning"))] == []


@pytest.mark.parametrize("line", REQUIREMENTS)
def test_a_requirement_is_pinned_within_its_bounds(line):
    pinned = {canonicalize_name(name): version for name, _, version in (pin.partition("==") for pin in LINES)}
    requirement = Requirement(line)
    version = pinned.get(canonicalize_name(requirement.name))
    assert version, f"{requirement.name} is not in constraints.txt; CONTRIBUTING.md says how to make it anew"
    assert requirement.specifier.contains(Version(version), prereleases=True)
