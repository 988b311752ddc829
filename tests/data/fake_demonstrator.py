"""A demonstrator that needs no simulator, and a script that collects with it and is killed at a chosen moment.

Seeds divisible by 3 fail.  Run as: python -m tests.data.fake_demonstrator OUT NUM_EPISODES MOMENT
"""

import os
import signal
import sys

from edgewam.data import collect as collecting
from edgewam.data import episode_store, lerobot_v3
from tests.data.synthetic import SCHEMA, episode

KEEPS = [seed for seed in range(10, 40) if seed % 3]


class FakeDemonstrator:
    schema, task, style = SCHEMA, "reach", "plain"

    def __init__(self):
        self.recorded = []

    def record(self, seed):
        self.recorded.append(seed)
        return None if seed % 3 == 0 else episode(5 + seed % 4, seed)

    def close(self):
        self.recorded.append("closed")


def collect_with_fake(out, num_episodes, demonstrator=None, **options):
    """`collect` from seed 10 with the fake in place of the simulator."""
    original = collecting.open_demonstrator

    def opened(robot, task, style, noise_rad, policy=None):
        made = demonstrator or FakeDemonstrator()
        made.style = style or made.style
        return made

    collecting.open_demonstrator = opened
    try:
        return collecting.collect(out, num_episodes, 10, robot="fake_arm", **options)
    finally:
        collecting.open_demonstrator = original


def kill_at(module, name, count, before):
    """Make the `count`-th call of a function end this process with SIGKILL, before or after it has done its work."""
    original, calls = getattr(module, name), []

    def deadly(*arguments, **options):
        calls.append(1)
        if len(calls) == count and before:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*arguments, **options)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(module, name, deadly)


# kept seeds are 10, 11, 13, 14; one episode encodes three videos and takes one np.savez
MOMENTS = {
    "while encoding the third episode": (episode_store, "encode_video", 8, True),
    "after the numbers of the second episode": (episode_store.np, "savez", 2, False),
    "after the facts of the second episode": (episode_store, "write_json", 3, False),
    "while joining the videos": (lerobot_v3, "join_videos", 2, False),
    "before the dataset's info": (lerobot_v3, "write_json", 2, True),
    "before the parts are removed": (episode_store.shutil, "rmtree", 10**6, True),
}

if __name__ == "__main__":
    out, num_episodes, moment = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    if moment == "before the parts are removed":
        episode_store.EpisodeStore.remove = lambda self: os.kill(os.getpid(), signal.SIGKILL)
    else:
        kill_at(*MOMENTS[moment])
    collect_with_fake(out, num_episodes)
