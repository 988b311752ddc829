"""A LeRobot v2.1 dataset in RoboTwin's layout, written with pyarrow and PyAV only, independently of the package's writer.

`write_v21` takes any episodes; `robotwin` makes small ones with RoboTwin's key names.
"""

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from edgewam.data.dataset import Dataset
from edgewam.data.schema import Episode

CAMERAS = ("cam_high", "cam_left_wrist", "cam_right_wrist")
STATE_KEY, ACTION_KEY = "observation.state.default", "action.default"
TASKS = ("Put the bottle into the bin.", "Stack the blocks.")


def picture(height, width, step, seed):
    """A smooth ramp and a block that moves by two pixels every step: each frame is unlike its neighbours."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows * 4, columns * 3, np.full_like(rows, 40 + 7 * seed % 150)], -1).clip(0, 255).astype(np.uint8)
    left = 2 * step % (width - 8)
    image[height // 4 : 3 * height // 4, left : left + 8] = (230, 120, 40)
    return image


def small_episode(length, seed=0, size=(24, 32), cameras=CAMERAS, state_dim=14, action_dim=14, task=None):
    """Slow sines, actions one step ahead of states, a block that moves through every picture."""
    time = np.arange(length + 1)[:, None] / 9.0
    joints = np.sin(time + np.arange(max(state_dim, action_dim)) * 0.4 + seed).astype(np.float32)
    images = {
        camera: np.stack([picture(*size, step, 3 * seed + place) for step in range(length)])
        for place, camera in enumerate(cameras)
    }
    return Episode(joints[:-1, :state_dim], joints[1:, :action_dim], images, task or TASKS[seed % len(TASKS)])


def encode(path, frames, fps, codec="libx264", pix_fmt="yuv420p", options=None):
    """An mp4 as other recorders write it: 4:2:0, long groups, B frames where the codec has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pix_fmt
        stream.codec_context.thread_count = 1
        stream.options = {"crf": "20", "preset": "veryfast"} if options is None else options
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def video_feature(frames, fps, codec="h264"):
    """Entry of info.json for a camera."""
    height, width = frames.shape[1:3]
    info = {
        "video.height": height, "video.width": width, "video.codec": codec, "video.pix_fmt": "yuv420p",
        "video.is_depth_map": False, "video.fps": fps, "video.channels": 3, "has_audio": False,
    }  # fmt: skip
    return {"dtype": "video", "shape": [height, width, 3], "names": ["height", "width", "channels"], "info": info}


def number_features(episode, state_key, action_key, dtype="float32", names=True):
    """Entries of info.json for everything that is no camera."""
    features = {}
    for key, values in ((state_key, episode.states), (action_key, episode.actions)):
        features[key] = {"dtype": dtype, "shape": [values.shape[1]]}
        if names:
            features[key]["names"] = {"motors": [f"joint_{number}" for number in range(values.shape[1])]}
    features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    for name in ("frame_index", "episode_index", "index", "task_index"):
        features[name] = {"dtype": "int64", "shape": [1], "names": None}
    return features


def rows(episode, number, first, task_index, fps, state_key, action_key, dtype="float32"):
    """One episode's columns, vectors as lists of one length."""
    steps = np.arange(len(episode), dtype=np.int64)
    number_type = pa.float64() if dtype == "float64" else pa.float32()
    vectors = {
        key: pa.FixedSizeListArray.from_arrays(pa.array(values.astype(dtype).ravel(), number_type), values.shape[1])
        for key, values in ((state_key, episode.states), (action_key, episode.actions))
    }
    same = {"episode_index": number, "task_index": task_index}
    return pa.table(
        vectors
        | {"timestamp": pa.array((steps / fps).astype(np.float32)), "frame_index": pa.array(steps)}
        | {"index": pa.array(steps + first)}
        | {name: pa.array(np.full(len(steps), value, np.int64)) for name, value in same.items()}
    )


def statistics(values):
    """One feature's entry of episodes_stats.jsonl."""
    found = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    return {name: np.atleast_1d(value).tolist() for name, value in found.items()} | {"count": [len(values)]}


def image_statistics(frames):
    """The same for pictures: per channel in 0..1, shaped [3, 1, 1]."""
    pixels = frames.reshape(-1, 3) / 255.0
    return {name: np.reshape(value, (3, 1, 1)).tolist() for name, value in list(statistics(pixels).items())[:4]} | {
        "count": [len(frames)]
    }


def write_v21(path, episodes, fps=25, chunks_size=1000, state_key=STATE_KEY, action_key=ACTION_KEY, prefix="observation.images."):
    """Write the dataset and return its path."""
    path = Path(path)
    (path / "meta").mkdir(parents=True)
    tasks = list(dict.fromkeys(episode.task for episode in episodes))
    listed, stats, first = [], [], 0
    for number, episode in enumerate(episodes):
        place = {"episode_chunk": number // chunks_size, "episode_index": number}
        file = path / "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet".format(**place)
        file.parent.mkdir(parents=True, exist_ok=True)
        table = rows(episode, number, first, tasks.index(episode.task), fps, state_key, action_key)
        pq.write_table(table, file)
        for camera, frames in episode.images.items():
            template = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
            encode(path / template.format(video_key=prefix + camera, **place), frames, fps)
        listed.append({"episode_index": number, "tasks": [episode.task], "length": len(episode)})
        columns = {state_key: episode.states, action_key: episode.actions}
        columns |= {name: table[name].to_numpy() for name in ("timestamp", "frame_index", "episode_index", "index", "task_index")}
        found = {name: statistics(values) for name, values in columns.items()}
        found |= {prefix + camera: image_statistics(frames) for camera, frames in episode.images.items()}
        stats.append({"episode_index": number, "stats": found})
        first += len(episode)
    features = {prefix + camera: video_feature(frames, fps) for camera, frames in episodes[0].images.items()}
    info = {
        "codebase_version": "v2.1", "robot_type": "aloha", "total_episodes": len(episodes), "total_frames": first,
        "total_tasks": len(tasks), "total_videos": len(episodes) * len(episodes[0].images),
        "total_chunks": -(-len(episodes) // chunks_size), "chunks_size": chunks_size, "fps": fps,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": features | number_features(episodes[0], state_key, action_key),
    }  # fmt: skip
    (path / "meta/info.json").write_text(json.dumps(info, indent=4))
    write_lines(path / "meta/tasks.jsonl", [{"task_index": index, "task": task} for index, task in enumerate(tasks)])
    write_lines(path / "meta/episodes.jsonl", listed)
    write_lines(path / "meta/episodes_stats.jsonl", stats)
    return path


def write_lines(path, found):
    """A JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in found))


def robotwin(path, lengths=(40, 46, 52), fps=25, **shape):
    """A small dataset in RoboTwin's layout: three cameras, 14 joints, two tasks; `shape` as in `small_episode`."""
    write_v21(path, [small_episode(length, seed, **shape) for seed, length in enumerate(lengths)], fps)
    return Dataset.open(path)
