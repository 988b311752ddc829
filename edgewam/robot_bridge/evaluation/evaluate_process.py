"""An evaluation worker: one robot and one policy in a process of their own; a seed per line in, an episode per line out."""

from __future__ import annotations

import json
import signal
import sys

from edgewam.core import plugins
from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.evaluation.lockstep import LockstepSettings, run_episode
from edgewam.robot_bridge.policy import open_policy
from edgewam.robot_bridge.processes.child import explain, private_stdout
from edgewam.robot_bridge.robot import Simulator


def main() -> int:
    """Serve seeds until standard input ends, which it also does when the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    results = private_stdout()
    try:
        config = json.loads(sys.stdin.readline())
        robot = plugins.load("robot", config["robot"]).make(**config["robot_options"])
        if not isinstance(robot, Simulator):
            raise EdgewamError(f"Robot '{config['robot']}' is no simulator, so it cannot be evaluated in lockstep.")
        try:
            policy = open_policy(config["policy"]["factory"], config["policy"]["args"], config["ablate"])
            settings = LockstepSettings(**config["settings"])
            for line in sys.stdin:
                episode = run_episode(robot, policy, int(line), config["prompt"], settings)
                print(json.dumps({"episode": episode.to_json()}), file=results)
        finally:
            robot.close()
    except EdgewamError as error:
        print(json.dumps({"error": str(error)}), file=results)
        return 1
    except Exception as error:
        print(json.dumps({"error": explain(error)}), file=results)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
