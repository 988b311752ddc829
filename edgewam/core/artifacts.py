"""Artifact directories: `manifest.json` beside the files it lists with their digests, written whole or not at all.

A writer fills a temporary sibling and renames it, so that a killed step leaves the old artifact or none (DESIGN section 1).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from edgewam.core.errors import ArtifactError

MANIFEST = "manifest.json"
FORMAT = 1
_WEIGHTS, _WITH_MORE = "weights", ("policy", "student")  # converted again with more or less beside it, one replaces the other
_RECORDED_PACKAGES = ("edgewam", "numpy", "torch", "onnx", "onnxruntime", "safetensors", "mujoco", "av", "pyarrow")


@dataclass(frozen=True)
class Manifest:
    """What an artifact is.  `files` maps relative path -> sha256; `digest` covers kind, config and files, not the clock."""

    kind: str
    config: Mapping[str, Any] = field(default_factory=dict)
    parents: Mapping[str, str] = field(default_factory=dict)  # role -> digest of the artifact it was made from
    measured: Mapping[str, Any] = field(default_factory=dict)  # errors and times, each with its timing contract
    files: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""


def read_manifest(directory: Path | str, kind: str | None = None, verify: bool = True) -> Manifest:
    """Read and check an artifact.

    Args:
        directory: the artifact.
        kind: refuse any other kind when given.
        verify: hash every listed file (reads the whole artifact once).

    Raises:
        ArtifactError: missing, unreadable, of another kind, truncated or changed; the message says which file.
    """
    directory = Path(directory)
    path = directory / MANIFEST
    if directory.is_file():
        raise ArtifactError(
            f"'{directory}' is a file, but an artifact is a directory. If others released it, make an artifact of it with: "
            f"edgewam convert {shlex.quote(str(directory))} OUT"
        )
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        what = "does not exist" if not directory.exists() else f"has no {MANIFEST}, so it is no edgewam artifact"
        raise ArtifactError(f"'{directory}' {what}. Run the step that makes it, or give another path.") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"Cannot read '{path}': {error}. Make the artifact again.") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ArtifactError(
            f"'{path}' has format {data.get('format') if isinstance(data, dict) else '?'}; this version reads format {FORMAT}."
        )
    try:
        manifest = Manifest(**{name: data[name] for name in Manifest.__dataclass_fields__})
    except KeyError as error:
        raise ArtifactError(f"'{path}' lacks the field {error}. Make the artifact again.") from None
    if kind is not None and manifest.kind != kind:
        raise ArtifactError(f"'{directory}' is a {manifest.kind}, but a {kind} is needed here.")
    if verify:
        _verify_files(directory, manifest)
    return manifest


def _verify_files(directory: Path, manifest: Manifest) -> None:
    for name, digest in manifest.files.items():
        file = directory / name
        if not file.is_file():
            raise ArtifactError(f"'{directory}' lacks its file '{name}'. Copy it again or make the artifact again.")
        if file_digest(file) != digest:
            raise ArtifactError(
                f"'{file}' does not match its digest: it is truncated or was changed. Copy it again or make the artifact again."
            )
    if manifest.digest != _digest(manifest.kind, manifest.config, manifest.parents, manifest.files):
        raise ArtifactError(f"The manifest of '{directory}' does not match its digest: it was edited. Make the artifact again.")


def refuse_to_replace(directory: Path, kind: str) -> None:
    """Raise unless an artifact of this kind may be written here: nothing is there, an empty directory, or one of its kind.

    Long work asks this before it begins; `write_artifact` asks it in any case.

    Raises:
        ArtifactError: a file, a directory of other things, or an artifact of another kind, which would be lost.
    """
    if (directory.is_dir() and not any(directory.iterdir())) or not directory.exists():
        return
    if not directory.is_dir():
        what = "a file"
    elif not (directory / MANIFEST).exists():
        what = "a directory that is no artifact"
    else:
        found = read_manifest(directory, verify=False).kind
        if found == kind or (_WEIGHTS in (found, kind) and {found, kind} & set(_WITH_MORE)):
            return
        what = f"a {found}"
    raise ArtifactError(f"'{directory}' is {what} and is not replaced by a {kind}. Give another path, or remove it first.")


@contextmanager
def write_artifact(
    directory: Path | str,
    kind: str,
    *,
    config: Mapping[str, Any],
    parents: Mapping[str, str] | None = None,
    measured: dict[str, Any] | None = None,
) -> Iterator[Path]:
    """Yield a temporary directory to fill; on success add the manifest and put it in place of `directory` by rename.

    `measured` may be filled inside the block.  On any exception the temporary directory is removed and `directory` stays.

    Raises:
        ArtifactError: something else is there, see `refuse_to_replace`.
    """
    directory = Path(directory).absolute()  # "." has no name to put a temporary one beside
    refuse_to_replace(directory, kind)
    with replaced_directory(directory) as temporary:
        yield temporary
        files = {str(p.relative_to(temporary)): file_digest(p) for p in sorted(temporary.rglob("*")) if p.is_file()}
        parents = dict(parents or {})
        manifest = {
            "format": FORMAT,
            "kind": kind,
            "config": config,
            "parents": parents,
            "measured": measured or {},
            "files": files,
            "versions": versions(),
            "hardware": hardware(),
            "digest": _digest(kind, config, parents, files),
        }
        write_json(temporary / MANIFEST, manifest)


def keep_files(old: Path, new: Path, names: Iterable[str]) -> None:
    """Take files of an artifact over into the directory that will replace it: as hard links, or copies where none can be.

    Files that are kept are one file in both places: whoever changes one in `new` must leave it out and write it anew.
    """
    for name in names:
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link((old / name).resolve(), new / name)
        except OSError:  # another file system behind a link, or one without hard links
            shutil.copyfile(old / name, new / name)


@contextmanager
def replaced_directory(directory: Path) -> Iterator[Path]:
    """Yield an empty temporary sibling of `directory` and swap it in on success.  An older leftover is removed first."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = directory.parent / f".{directory.name}.partial"
    old = directory.parent / f".{directory.name}.old"
    if old.exists():
        # a swap was cut between its two renames: the old artifact is whole, the new one may not be
        if directory.exists():
            shutil.rmtree(old)
        else:
            os.rename(old, directory)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if directory.exists():
            os.rename(directory, old)
        os.rename(temporary, directory)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` to write and rename it into place, flushed to disk, on success."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.partial"
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Write indented JSON atomically.  NaN is refused: a measurement that is not a number is a bug."""
    with replaced_file(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")


def file_digest(path: Path) -> str:
    """sha256 of a file as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(kind: str, config: Any, parents: Any, files: Any) -> str:
    text = json.dumps([kind, config, parents, files], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a result; absent packages are left out."""
    found = {"python": sys.version.split()[0]}
    for name in _RECORDED_PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Processor name and count and the operating system, as far as Linux tells."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            name = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), name)
    except OSError:
        pass
    return {"cpu": name, "num_cpus": os.cpu_count(), "system": platform.platform()}
