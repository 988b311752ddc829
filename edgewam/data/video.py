"""H.264 in mp4 through PyAV: encode one episode, join episodes without re-encoding, decode frames by number.

A key frame at every second frame makes any frame at most one prediction away; there are no B frames, so that a packet
is a frame and joining is copying packets.  4:4:4 keeps the colour of objects that are a few pixels wide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from edgewam.core.errors import ArtifactError, require
from edgewam.data.schema import ENCODER, PIX_FMT, Images

GROUP_OF_PICTURES = 2
QUALITY = 15  # x264 constant rate factor: 38..50 dB on the simulator's pictures; x264's default is 23, lower is better
SEEK_GAP = 2  # frames; beyond them a seek past a key frame is cheaper than decoding (H.264 and AV1, 48 to 640 pixels wide)
# a stream's duration may lack or repeat its last frame, and time bases round
_RATE_SLACK_FRAMES, _RATE_SLACK = 1.5, 0.01


def encode_video(path: Path, frames: Images, fps: int) -> None:
    """Write uint8 [T, H, W, 3] RGB as an mp4 of T frames at `fps`."""
    av = require("av", extra="train")
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(ENCODER, rate=fps)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], PIX_FMT
        # one thread: frame threads reorder work between runs and take the core that renders the next episode
        stream.codec_context.thread_count = 1
        group = str(GROUP_OF_PICTURES)
        # with its macroblock tree x264 165 (AVX-512) encodes 1 small clip in 150 differently; groups of two gain nothing by it
        params = {"crf": str(QUALITY), "preset": "veryfast", "x264-params": "mbtree=0"}
        stream.options = params | {"g": group, "bf": "0", "sc_threshold": "0"}
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def codec_header(path: Path) -> bytes:
    """The stream's out-of-band parameter sets; only streams with equal headers may share a file."""
    with open_video(path) as container:
        return bytes(container.streams.video[0].codec_context.extradata or b"")


def join_videos(path: Path, sources: Sequence[Path], fps: int) -> list[int]:
    """Copy the packets of `sources`, in order, into one mp4 and return the first frame number of each."""
    av = require("av", extra="train")
    starts: list[int] = []
    position = 0
    with av.open(str(path), "w", format="mp4") as output:
        target = None
        for source in sources:
            starts.append(position)
            with open_video(source) as container:
                stream = container.streams.video[0]
                target = target or output.add_stream_from_template(stream)
                for packet in container.demux(stream):
                    if packet.size == 0:  # the demuxer's end marker
                        continue
                    packet.time_base = Fraction(1, fps)
                    packet.pts = packet.dts = position
                    packet.duration = 1
                    packet.stream = target
                    output.mux(packet)
                    position += 1
    return starts


def open_video(path: Path) -> Any:
    """An open PyAV container with at least one video stream.

    Raises:
        ArtifactError: the file is missing, truncated or no video.
    """
    av = require("av", extra="train")
    if not path.is_file():
        raise ArtifactError(f"Video '{path}' is missing. Copy the dataset again or collect it again.")
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError, UnicodeDecodeError) as error:  # the last where damaged tags are no text
        raise ArtifactError(
            f"Video '{path}' cannot be opened ({error}): it is truncated or no video. Copy or collect the dataset again."
        ) from error
    if not container.streams.video:
        container.close()
        raise ArtifactError(
            f"Video '{path}' has no video stream: it is truncated or no video. Copy or collect the dataset again."
        )
    return container


def num_video_frames(path: Path, fps: int) -> int:
    """Frames that the file's index declares (a truncated mp4 has no index and is refused).

    Raises:
        ArtifactError: missing, truncated, no video, or of another rate than `fps`.
    """
    with open_video(path) as container:
        stream = container.streams.video[0]
        count = int(stream.frames) or sum(packet.size > 0 for packet in container.demux(stream))  # fragmented files do not say
        seconds = float(stream.duration * stream.time_base) if stream.duration else count / fps
    if abs(seconds * fps - count) > max(_RATE_SLACK_FRAMES, _RATE_SLACK * count):
        raise ArtifactError(
            f"Video '{path}' shows {count} frames in {seconds:.2f} s ({count / seconds:.1f} a second), the dataset has {fps} "
            "steps a second. Encode the video again at the dataset's rate."
        )
    return count


def decode_frames(path: Path, numbers: Sequence[int], fps: int) -> Images:
    """Frames by their number in the file, in the order asked for, repeats allowed: uint8 [n, H, W, 3] RGB.

    Raises:
        ArtifactError: the file is damaged or has no such frame.
    """
    found: dict[int, Images] = {}
    av = require("av", extra="train")
    try:
        with open_video(path) as container:
            stream = container.streams.video[0]
            decoder: Iterator[tuple[int, Any]] = iter(())
            position, frame = None, None
            for number in sorted(set(int(n) for n in numbers)):
                if position is None or (number > position + SEEK_GAP and _key_frame(stream, number, fps) > position):
                    decoder, position = _from(container, stream, number, fps), None
                while position is None or position < number:
                    position, frame = next(decoder, (number + 1, None))
                if frame is None or position != number:
                    raise ArtifactError(f"Video '{path}' has no frame {number}. Copy or collect the dataset again.")
                found[number] = frame.to_ndarray(format="rgb24")
    except av.FFmpegError as error:
        raise ArtifactError(f"Video '{path}' is damaged ({error}). Copy or collect the dataset again.") from error
    return np.stack([found[int(n)] for n in numbers])


def check_frames(path: Path, count: int, fps: int) -> None:
    """Decode a whole video, without turning it into pictures.

    Raises:
        ArtifactError: the file is damaged, or its frames are not numbers 0 to `count` - 1 (or more) at `fps`.
    """
    av = require("av", extra="train")
    expected = 0
    try:
        with open_video(path) as container:
            for number, _ in _numbered_frames(container, container.streams.video[0], fps):
                if number != expected:
                    raise ArtifactError(
                        f"Video '{path}' has a frame at {number / fps:.3f} s where {expected / fps:.3f} s was due: frames were "
                        "dropped or its rate varies. Encode it again at a constant rate."
                    )
                expected += 1
    except av.FFmpegError as error:
        raise ArtifactError(f"Video '{path}' is damaged ({error}). Copy or collect the dataset again.") from error
    if expected < count:
        raise ArtifactError(f"Video '{path}' decodes to {expected} frames of {count}. Copy or collect the dataset again.")


def _key_frame(stream: Any, number: int, fps: int) -> int:
    """Number of the key frame that a seek to frame `number` would go back to (by file order, which display order follows)."""
    entries = getattr(stream, "index_entries", None)  # a newer PyAV's; without it every far frame is sought
    return number if entries is None else int(entries.search_timestamp(round(number / fps / stream.time_base), backward=True))


def _from(container: Any, stream: Any, number: int, fps: int) -> Iterator[tuple[int, Any]]:
    """(number, frame) from a key frame at or before `number` on."""
    container.seek(round(number / fps / stream.time_base), stream=stream, backward=True)
    frames = _numbered_frames(container, stream, fps)
    first = next(frames, None)
    if first is not None and first[0] > number:  # a group that shows frames before its key frame: go through the file
        container.seek(0, stream=stream, backward=True)
        frames = _numbered_frames(container, stream, fps)
        first = next(frames, None)
    return frames if first is None else chain([first], frames)


def _numbered_frames(container: Any, stream: Any, fps: int) -> Iterator[tuple[int, Any]]:
    for frame in container.decode(stream):
        if frame.is_corrupt:  # decoders paint over what they cannot read and go on
            raise ArtifactError(f"Video '{container.name}' is damaged at {frame.time:.2f} s. Copy or collect the dataset again.")
        yield round(float(frame.pts * stream.time_base) * fps), frame
