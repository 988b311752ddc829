"""A LeRobot v3.0 dataset as other recorders write it: AV1, several chunks and files, doubles, no names, no `huggingface` entry.

Written with pyarrow and PyAV only, independently of the package's writer.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.data.robotwin import encode, number_features, rows, video_feature


def write_v3(path, episodes, fps=20, per_file=2, files_per_chunk=1, state_key="observation.state", action_key="action"):
    """`per_file` episodes in each data and video file, `files_per_chunk` files in each directory; returns the path."""
    path = Path(path)
    tasks = list(dict.fromkeys(episode.task for episode in episodes))
    listed, first = [], 0
    for begin in range(0, len(episodes), per_file):
        number = begin // per_file
        place = {"chunk_index": number // files_per_chunk, "file_index": number % files_per_chunk}
        group = episodes[begin : begin + per_file]
        tables, start = [], 0
        for offset, episode in enumerate(group):
            index = begin + offset
            task = tasks.index(episode.task)
            tables.append(rows(episode, index, first, task, fps, state_key, action_key, "float64"))
            row = {"episode_index": index, "tasks": [episode.task], "length": len(episode), "dataset_from_index": first}
            row |= {f"data/{name}": value for name, value in place.items()}
            for camera in episode.images:
                key = f"observation.images.{camera}"
                row |= {f"videos/{key}/{name}": value for name, value in place.items()}
                row |= {f"videos/{key}/from_timestamp": start / fps, f"videos/{key}/to_timestamp": (start + len(episode)) / fps}
            row |= {"stats/action/mean": episode.actions.mean(0).tolist(), "dataset_to_index": first + len(episode)}
            listed.append(row)
            first, start = first + len(episode), start + len(episode)
        name = "chunk-{chunk_index:03d}/file-{file_index:03d}".format(**place)
        file = path / f"data/{name}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables(tables), file)
        for camera in group[0].images:
            frames = np.concatenate([episode.images[camera] for episode in group])
            options = {"g": "16", "crf": "5", "preset": "10"}
            encode(path / f"videos/observation.images.{camera}/{name}.mp4", frames, fps, "libsvtav1", options=options)
    meta = path / "meta/episodes/chunk-000"
    meta.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(listed), meta / "file-000.parquet")
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks)})
    pq.write_table(table, path / "meta/tasks.parquet")
    features = {f"observation.images.{camera}": video_feature(f, fps, "av1") for camera, f in episodes[0].images.items()}
    info = {
        "codebase_version": "v3.0", "robot_type": "other", "total_episodes": len(episodes), "total_frames": first,
        "total_tasks": len(tasks), "chunks_size": 1000, "fps": float(fps), "splits": {"train": f"0:{len(episodes)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": features | number_features(episodes[0], state_key, action_key, "float64", names=False),
    }  # fmt: skip
    (path / "meta/info.json").write_text(json.dumps(info))
    return path
