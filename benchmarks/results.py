"""One JSON file per result: what was run, under which key, how it ended, and its sections with their timing contracts.

Files lie in `benchmarks/results/<device>/<job>.json`.  From a lent machine few files come back, so there all records of a run
are written to one more file, `$OUT/records.json`, which is collected here later.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgewam.core.artifacts import write_json
from edgewam.core.errors import EdgewamError
from edgewam.profiles.contract import TimingContract
from edgewam.profiles.measure import Timing

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FORMAT = 1
Status = Literal["ok", "failed", "timeout"]


@dataclass(frozen=True)
class Section:
    """One part of a result: the conditions, plain numbers and timings, all with their unit in the name."""

    contract: TimingContract
    figures: Mapping[str, float | int | str | bool | None] = field(default_factory=dict)
    timings: Mapping[str, Timing] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form."""
        timings = {name: timing.to_json() for name, timing in self.timings.items()}
        return {"contract": self.contract.to_json(), "figures": dict(self.figures), "timings": timings}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Section:
        """Inverse of `to_json`."""
        timings = {name: Timing.from_json(timing) for name, timing in data["timings"].items()}
        return Section(TimingContract.from_json(data["contract"]), dict(data["figures"]), timings)


@dataclass(frozen=True)
class Record:
    """How one run of a job ended.  `key` stands for the code and parameters that made it; a failure keeps what it had."""

    job: str
    key: str
    status: Status
    device: str
    started_utc: str
    wall_s: float
    params: Mapping[str, Any] = field(default_factory=dict)
    sections: Mapping[str, Section] = field(default_factory=dict)
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return data | {"format": FORMAT, "sections": {name: section.to_json() for name, section in self.sections.items()}}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Record:
        """Inverse of `to_json`.

        Raises:
            EdgewamError: another format, a missing or unknown field, or an `ok` without sections.
        """
        if data.get("format") != FORMAT:
            raise EdgewamError(f"This result has format {data.get('format')}; this version reads {FORMAT}. Run the job again.")
        try:
            sections = {name: Section.from_json(section) for name, section in data["sections"].items()}
            record = Record(**{**{k: v for k, v in data.items() if k != "format"}, "sections": sections})
        except (TypeError, KeyError, AttributeError) as error:
            raise EdgewamError(f"This is no benchmark result: {error}. Run the job again.") from error
        if record.status not in ("ok", "failed", "timeout") or (record.status == "ok") == bool(record.error):
            raise EdgewamError(f"Result of '{record.job}' has status '{record.status}' and error {record.error!r}.")
        if record.status == "ok" and not record.sections:
            raise EdgewamError(f"Result of '{record.job}' is ok but holds nothing.")
        return record


def slug(device: str) -> str:
    """Folder name of a device: lower-case words joined by dashes."""
    return "-".join(re.findall(r"[a-z0-9]+", device.lower())) or "unknown"


def output_folder(device: str) -> Path:
    """Where new results go: the device's folder."""
    return RESULTS / slug(device)


def bundle_path() -> Path | None:
    """Where all records of a run go together: into `$OUT`, where it is set (a lent machine)."""
    return Path(os.environ["OUT"]) / "records.json" if os.environ.get("OUT") else None


def write_record(folder: Path, record: Record) -> Path:
    """Write one result whole or not at all; returns its path."""
    path = folder / f"{record.job}.json"
    write_json(path, record.to_json())
    return path


def write_bundle(path: Path, records: Sequence[Record]) -> None:
    """Write several results into one file, whole or not at all."""
    write_json(path, {"format": FORMAT, "records": [record.to_json() for record in records]})


def read_record(path: Path) -> Record:
    """Read one result; EdgewamError names the file and what is wrong with it."""
    try:
        return Record.from_json(json.loads(path.read_text()))
    except (OSError, ValueError, EdgewamError) as error:
        raise EdgewamError(f"Cannot read result '{path}': {error}") from error


def recorded(job: str, key: str, folders: list[Path]) -> Record | None:
    """The finished result of a job for exactly this key, from the first folder that has it; failures do not count."""
    for folder in folders:
        path = folder / f"{job}.json"
        if path.exists():
            try:
                record = read_record(path)
            except EdgewamError:
                continue  # an unreadable result is measured again, which replaces it
            if record.key == key and record.status == "ok":
                return record
    return None


def collect(folder: Path) -> list[Path]:
    """Copy checked results from `folder` (what came back from a lent machine) into the folders of their devices.

    Raises:
        EdgewamError: no results there, or one that cannot be read.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise EdgewamError(f"No results in '{folder}'. Give the folder that holds the .json files of a run.")
    records = [record for path in paths for record in _read_all(path)]
    return [write_record(RESULTS / slug(record.device), record) for record in records]


def _read_all(path: Path) -> list[Record]:
    try:
        data = json.loads(path.read_text())
        return [Record.from_json(each) for each in data.get("records", [data])]
    except (OSError, ValueError, TypeError, AttributeError, EdgewamError) as error:
        raise EdgewamError(f"Cannot read result '{path}': {error}") from error


def now_utc() -> str:
    """The time as 2026-01-31T12:00:00Z."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
