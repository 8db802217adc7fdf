"""A contender's process: reads a job on each line of stdin, answers with one line of JSON.

Started by plan.py: python worker.py file:Class '{"setup": ...}'
"""

import json
import sys
from importlib import import_module


def main(contender: str, setup: str) -> None:
    module, name = contender.split(":")
    ready = getattr(import_module(module), name)(**json.loads(setup))
    for line in sys.stdin:
        job = json.loads(line)
        task = getattr(ready, job.pop("task"))
        print(json.dumps(task(**job)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
