"""Find the numbers of a report page again: every <data> element against the JSON inside the same page."""

from __future__ import annotations

import json
import re
from typing import Any

SCALES = {"%": 0.01, "MB": 1e6, "kB": 1e3}
DATA = re.compile(r'<data value="([^"]*)" data-path="([^"]*)" data-form="(\w+)">([^<]*)</data>')
BLOCK = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)


def inside(text: str) -> Any:
    """The JSON that the page carries."""
    (block,) = BLOCK.findall(text)
    return json.loads(block)


def at(data: Any, path: str) -> Any:
    """The value at a dotted path."""
    for key in path.split("."):
        data = data[int(key)] if isinstance(data, list) else data[key]
    return data


def check_numbers(text: str, data: Any | None = None) -> list[str]:
    """Paths of all numbers of a page, after checking that each says what the data say, to its last digit shown."""
    data = inside(text) if data is None else data
    paths = []
    for raw, path, _, shown in DATA.findall(text):
        value = at(data, path)
        assert float(raw) == value, (path, raw, value)
        number = re.match(r"-?[\d,]+(?:\.(\d+))?(?:e(-?\d+))?", shown)
        assert number is not None, (path, shown)
        unit = shown[number.end() :].strip()
        scale = SCALES.get(unit, 1.0)
        digit = 10.0 ** (int(number[2] or 0) - len(number[1] or "")) * scale
        assert abs(float(number[0].replace(",", "")) * scale - value) <= 0.5001 * digit, (path, shown, value)
        paths.append(path)
    return paths
