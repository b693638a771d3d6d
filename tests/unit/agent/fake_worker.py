"""A symbol worker for tests: answers, or misbehaves as its first argument says.

Run as a program of its own; speaks the protocol of agent/symbolize_worker.py.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time


def main() -> None:
    mode = sys.argv[1]
    for line in sys.stdin:
        request = json.loads(line)
        if mode == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if mode == "hang":
            time.sleep(60)
        if mode == "garbage":
            print("this is not JSON", flush=True)
            continue
        if request["do"] == "resolve":
            if mode == "refuse":
                error = {
                    "kind": "NoDebugInfo",
                    "path": request["image"],
                    "detail": "no .debug_info section",
                    "remedy": "give the separate debug file with --debug-file",
                }
                print(json.dumps({"error": error}), flush=True)
            else:
                plan = {"image": request["image"], "identity": "id", "fresh": request["fresh"]}
                print(json.dumps({"plan": plan, "grown": mode == "grown"}), flush=True)
            continue
        answers = [{"frames": [["f", "a.zig", args[0], 0, False]]} for args in request["args"]]
        print(json.dumps({"answers": answers}), flush=True)


if __name__ == "__main__":
    main()
