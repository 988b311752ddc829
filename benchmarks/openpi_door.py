"""Round trip of the openpi door with a policy that costs nothing: what the network, the checks and the processes take.

    python3 -m benchmarks.openpi_door [--n 4000] [--check]

Three processes on loopback, as in use: the unmodified `openpi-client` (pip install --no-deps openpi-client==0.1.2 dm-tree), the
door, and the engine with a constant policy.  Back to back, and paced at 50 requests per second, where processors go to sleep in
between.
One table on the screen, one JSON under benchmarks/results/<device>/.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import RESULTS, ROOT, Record, Section, now_utc, slug, write_record
from edgewam.core import plugins
from edgewam.core.artifacts import file_digest
from edgewam.core.records import CAMERAS
from edgewam.profiles.contract import TimingContract
from edgewam.profiles.machine import read_machine
from edgewam.profiles.measure import Timing
from edgewam.profiles.report import table
from edgewam.robot_bridge.robot import RobotSpec
from edgewam.robot_bridge.serving import server
from edgewam.robot_bridge.serving.access import Address
from edgewam.robot_bridge.serving.door import DoorOptions
from edgewam.robot_bridge.serving.session import SessionSettings

POLICY = "edgewam.robot_bridge.policy.constant_policy"
SIZES = {"3 x 128x160": (128, 160, 3), "3 x 480x640": (480, 640, 3)}
PACED_HZ = 50.0
WARMUP = 300
P50_LIMIT_MS, P99_LIMIT_MS = 1.0, 3.0  # for the first size, back to back
UNLIMITED = SessionSettings(requests_per_s=1e6, burst=1e6, total_requests_per_s=1e6)


def spec_of(size: str) -> RobotSpec:
    """The ALOHA robot with three cameras of one size."""
    spec: RobotSpec = plugins.load("robot", "aloha_sim").SPEC
    return dataclasses.replace(spec, camera_shapes=dict.fromkeys(CAMERAS, SIZES[size]))


def serve(size: str) -> None:
    """Serve on a free port, which is printed, until the standard input closes."""
    import threading

    options = DoorOptions(on_ready=lambda address: print(address.port, flush=True))

    def watch() -> None:
        sys.stdin.read()
        options.quit.set()

    threading.Thread(target=watch, daemon=True).start()
    spec = spec_of(size)
    arguments = {"target": [0.0] * spec.num_joints}
    server.serve("openpi", Address(), options, POLICY, arguments, spec, spec.prompts[0], session=UNLIMITED)


@contextmanager
def client_of(size: str) -> Iterator[Any]:
    """The unmodified client of a server of its own."""
    from openpi_client.websocket_client_policy import WebsocketClientPolicy

    command = [sys.executable, "-m", "benchmarks.openpi_door", "--serve", size]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdin is not None and process.stdout is not None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # how 0.1.2 connects is outdated for websockets 17
            client = WebsocketClientPolicy("127.0.0.1", int(process.stdout.readline()))
        try:
            yield client
        finally:
            client._ws.close()
            process.stdin.close()


def measure(size: str, n: int, hz: float | None) -> dict[str, Timing]:
    """Round trips and their parts: the door with the engine, the engine's process with its wake-ups, the policy."""
    rng, shape = np.random.default_rng(0), SIZES[size]
    looks = [
        {"images": {name: rng.integers(0, 256, shape, np.uint8) for name in CAMERAS}, "state": np.zeros(14, np.float32)}
        for _ in range(4)
    ]
    samples: dict[str, list[float]] = {"round_trip": [], "door_and_engine": [], "link": [], "policy": []}
    with client_of(size) as client:
        due = time.perf_counter()
        for i in range(WARMUP + n):
            if hz is not None:
                due += 1 / hz
                time.sleep(max(0.0, due - time.perf_counter()))
            begin = time.perf_counter()
            result = client.infer(looks[i % len(looks)])
            round_trip_ms = (time.perf_counter() - begin) * 1e3
            if i >= WARMUP:
                timing = result["server_timing"]
                parts = (round_trip_ms, timing["infer_ms"], timing["link_ms"], timing["engine_ms"])
                for values, part in zip(samples.values(), parts, strict=True):
                    values.append(part)
    return {name: Timing.from_samples(values) for name, values in samples.items()}


def section(size: str, n: int, hz: float | None) -> Section:
    """One row of the table with its contract."""
    timings = measure(size, n, hz)
    pace = "back to back" if hz is None else f"paced at {hz:g} per second"
    contract = TimingContract.here(
        engine="constant policy", precision="none", steps=0, shapes=dict.fromkeys(CAMERAS, SIZES[size]),
        stages=("client", "door", "link", "policy"), host_copies=True, threads=1, warmup=WARMUP, n=n,
        notes=f"openpi-client 0.1.2 on loopback, {pace}",
    )  # fmt: skip
    return Section(contract, {"load_1min": read_machine().load_1min}, timings)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit status 1 when `--check` is given and a limit does not hold."""
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks.openpi_door", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--n", type=int, default=4000, help="requests back to back; a quarter of it paced, a tenth of it large")
    parser.add_argument("--check", action="store_true", help=f"fail above p50 {P50_LIMIT_MS} ms or p99 {P99_LIMIT_MS} ms")
    parser.add_argument("--out", type=Path, help="folder of the JSON (default: benchmarks/results/<device>)")
    parser.add_argument("--serve", choices=SIZES, help=argparse.SUPPRESS)
    a = parser.parse_args(argv)
    if a.serve:
        serve(a.serve)
        return 0
    small, large = SIZES
    begin, started = time.perf_counter(), now_utc()
    sections = {
        f"{small}, back to back": section(small, a.n, None),
        f"{small}, paced": section(small, max(1, a.n // 4), PACED_HZ),
        f"{large}, back to back": section(large, max(1, a.n // 10), None),
    }
    rows = [["openpi door", "p50 ms", "p99", "max", "of it door and engine p50", "link", "policy", "n"]]
    for name, found in sections.items():
        t = found.timings
        trip = t["round_trip"]
        parts = [f"{t[part].p50_ms:.3f}" for part in ("door_and_engine", "link", "policy")]
        rows.append([name, f"{trip.p50_ms:.3f}", f"{trip.p99_ms:.3f}", f"{trip.max_ms:.2f}", *parts, str(trip.n)])
    print(table(rows))
    cpu = read_machine().cpu
    sources = sorted((ROOT / "edgewam" / "robot_bridge" / "serving").glob("*.py"))
    sources += [ROOT / "edgewam" / "robot_bridge" / "doors" / "openpi.py", Path(__file__)]
    key = hashlib.sha256("".join(map(file_digest, sources)).encode()).hexdigest()
    wall_s = time.perf_counter() - begin
    print(
        write_record(a.out or RESULTS / slug(cpu), Record("openpi_door", key, "ok", cpu, started, wall_s, {"n": a.n}, sections))
    )
    trip = sections[f"{small}, back to back"].timings["round_trip"]
    holds = trip.p50_ms <= P50_LIMIT_MS and trip.p99_ms <= P99_LIMIT_MS
    print(f"p50 <= {P50_LIMIT_MS} ms and p99 <= {P99_LIMIT_MS} ms: {'yes' if holds else 'NO'}")
    return 1 if a.check and not holds else 0


if __name__ == "__main__":
    sys.exit(main())
