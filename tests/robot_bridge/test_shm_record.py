"""Records in shared memory: whole or nothing, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np

from edgewam.robot_bridge.records.shm_record import SharedRecord

LAYOUT = np.dtype([("number", "<i8"), ("values", "<f4", (50,))])


def filled(record, number):
    value = record.blank()
    value["number"], value["values"] = number, number
    return value


def test_a_value_is_read_back_once_per_version():
    record = SharedRecord(LAYOUT)
    assert record.read() is None
    record.write(filled(record, 7))
    version, value = record.read()
    assert value["number"] == 7 and (value["values"] == 7).all()
    assert record.read(version) is None
    record.write(filled(record, 8))
    record.write(filled(record, 9))
    assert record.read(version)[1]["number"] == 9, "the latest value wins"
    assert record.torn == 0
    record.close()


def test_a_value_keeps_its_content_when_the_record_is_written_again():
    record = SharedRecord(LAYOUT)
    record.write(filled(record, 1))
    _, first = record.read()
    record.write(filled(record, 2))
    assert first["number"] == 1
    record.close()


def test_a_writer_killed_in_the_middle_is_seen_and_a_new_writer_recovers():
    record = SharedRecord(LAYOUT)
    record.write(filled(record, 1))
    version, _ = record.read()
    record._header["sequence"][0] += 1  # what a writer does first
    record._payload[:30] = 255
    assert record.read(version) is None and record.torn == 1
    successor = SharedRecord(LAYOUT, os.dup(record.fd))
    successor.write(filled(successor, 2))
    assert record.read(version)[1]["number"] == 2
    successor.close()
    record.close()


def test_damaged_bytes_fail_their_crc():
    record = SharedRecord(LAYOUT)
    record.write(filled(record, 1))
    record._payload[20] ^= 1
    assert record.read() is None and record.torn == 1
    record.close()


def test_old_bytes_under_a_new_sequence_number_fail_their_crc():
    """What a reader on a weakly ordered processor may see: the number has arrived, the payload has not."""
    record = SharedRecord(LAYOUT)
    record.write(filled(record, 1))
    record._header["sequence"][0] += 2
    assert record.read() is None and record.torn == 1
    record.close()


def test_a_writer_process_killed_in_the_middle_of_a_write_is_repaired_by_the_process_that_takes_its_place():
    record = SharedRecord(LAYOUT)
    code = """
import os, signal, sys, zlib
import numpy as np
from edgewam.robot_bridge.records import shm_record
record = shm_record.SharedRecord(np.dtype([("number", "<i8"), ("values", "<f4", (50,))]), int(sys.argv[1]))
value = record.blank()
value["number"] = int(sys.argv[2])
value["values"] = int(sys.argv[2])
if sys.argv[3] == "dies":  # the sequence number is odd and the payload written, its checksum is not
    shm_record.zlib.crc32 = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
record.write(value)
"""

    def write(number, how):
        command = [sys.executable, "-c", code, str(record.fd), str(number), how]
        return subprocess.run(command, pass_fds=[record.fd], check=False).returncode

    assert write(1, "lives") == 0
    version, value = record.read()
    assert value["number"] == 1
    assert write(2, "dies") == -9
    assert record._header["sequence"][0] % 2 == 1
    assert record.read(version) is None and record.torn == 1
    assert write(3, "lives") == 0
    newer, value = record.read(version)
    assert value["number"] == 3 and newer % 2 == 0 and newer > version
    record.close()


def test_a_reader_in_another_process_never_sees_a_mixture():
    record = SharedRecord(np.dtype([("number", "<i8"), ("values", "<i8", (2000,))]))
    code = f"""
import numpy as np
from edgewam.robot_bridge.records.shm_record import SharedRecord
record = SharedRecord(np.dtype([("number", "<i8"), ("values", "<i8", (2000,))]), {record.fd})
value = record.blank()
for number in range(1, 20_001):
    value["number"] = number
    value["values"] = number
    record.write(value)
"""
    writer = subprocess.Popen([sys.executable, "-c", code], pass_fds=[record.fd])
    seen, last = 0, 0
    while last < 20_000:
        newest = record.read()
        if newest is not None:
            number = int(newest[1]["number"])
            assert (newest[1]["values"] == number).all() and number >= last
            seen += number > last
            last = number
        elif writer.poll() is not None:
            assert writer.returncode == 0
    assert writer.wait() == 0 and seen > 1
    record.close()


def test_nothing_has_a_name_in_the_file_system():
    before = set(os.listdir("/dev/shm"))
    record = SharedRecord(LAYOUT)
    record.write(filled(record, 1))
    assert set(os.listdir("/dev/shm")) <= before
    record.close()
    record.close()
