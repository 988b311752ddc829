"""Requirement specifiers against versions, and what an installed distribution asks for."""

import pytest

from edgewam.core.errors import EdgewamError
from edgewam.profiles.extras import requirements
from edgewam.profiles.versions import installed, satisfies

YES = [
    ("2.13.0+cpu", ">=2.11,<2.15"), ("1.24", ">=1.24"), ("1.24.0", "==1.24"), ("0.47.3", "==0.47.*"), ("2.4.6", ""),
    ("1.7.1.116", "==1.7.1.*"), ("3.9.1", "<3.10"), ("1.4.2", "~=1.4"), ("1.4.5", "~=1.4.2"), ("10.13.3.9", ">=10.13,<10.14"),
    ("3.8.0", "!=3.9.*"), ("2.0rc1", ">=2"),
]  # fmt: skip
NO = [
    ("2.10.1", ">=2.11,<2.15"), ("2.15.0", "<2.15"), ("0.48.0", "==0.47.*"), ("3.10.0", "<3.10"), ("4.0.0", "==3.8.1"),
    ("1.5.0", "~=1.4.2"), ("2.0", "~=1.4"), ("3.9.2", "!=3.9.*"), ("1.24.1", "==1.24"),
]  # fmt: skip


@pytest.mark.parametrize(("version", "specifier"), YES)
def test_a_version_inside_is_accepted(version, specifier):
    assert satisfies(version, specifier)


@pytest.mark.parametrize(("version", "specifier"), NO)
def test_a_version_outside_is_refused(version, specifier):
    assert not satisfies(version, specifier)


def test_an_unreadable_specifier_is_an_error():
    with pytest.raises(EdgewamError, match="'latest'"):
        satisfies("1.0", "latest")


def test_requirements_are_read_from_metadata_lines():
    lines = ["numpy>=2.1", 'no-such-package<2,>=1; extra == "kernels"', 'other; python_version < "3"']
    base, extra = requirements(lines)
    assert (base.package, base.extra, base.found, base.is_met) == ("numpy", "", installed("numpy"), True)
    assert (extra.package, extra.specifier, extra.extra, extra.found, extra.is_met) == (
        "no-such-package", "<2,>=1", "kernels", None, False,
    )  # fmt: skip


def test_our_own_requirements_are_all_understood():
    ours = requirements()
    assert {"train", "onnx", "sim", "tensorrt", "dev"} <= {item.extra for item in ours}
    assert {"numpy", "typer"} <= {item.package for item in ours if not item.extra}
    for item in ours:
        satisfies("1.0", item.specifier)  # raises on one it cannot read
