"""The ros2 door in a process of its own, for tests: `python -m ... DOMAIN ARM`; `clear`, `stopped?` and `quit` on stdin."""

import sys
import threading

import numpy as np

from edgewam.robot_bridge.doors import ros2
from edgewam.robot_bridge.serving.access import Address
from edgewam.robot_bridge.serving.door import DoorOptions
from edgewam.robot_bridge.serving.handler import Answer
from tests.robot_bridge import fakes
from tests.robot_bridge.doors.engines import HORIZON, NotedEngine, session

WANTED_STEP = 0.2  # rad per tick: more than three times what the robot may do


class Greedy(NotedEngine):
    """Wants joint 0 to go up for ever and faster than it may; the image's first pixel is what joint 1 is to be, in percent."""

    def infer(self, observation):
        """Rows that run away from the state."""
        actions = np.tile(observation.state, (HORIZON, 1))
        actions[:, 0] += WANTED_STEP * np.arange(HORIZON)
        actions[:, 1] = observation.images["cam_high"][0, 0, 0] / 100
        return Answer(actions, observation.tick, {})


def main(domain, arm):
    """Serve until told to quit."""
    handler = session(Greedy())
    extra = {"domain": domain, "arm": arm, "robot": fakes.ROBOT}
    options = DoorOptions(on_ready=lambda address: print("ready", flush=True), extra=extra)
    thread = threading.Thread(target=ros2.serve, args=(handler, Address(), options))
    thread.start()
    for line in sys.stdin:
        if line == "clear\n":
            handler.clear_stop()
        if line == "stopped?\n":
            print(handler.is_stopped, flush=True)
        if line == "quit\n":
            break
    options.quit.set()
    thread.join()
    print("ended", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
