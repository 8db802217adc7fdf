"""Without all that `make test-grading` installs there is nothing here to collect."""

from importlib.util import find_spec

complete = all(map(find_spec, ("nbgrader", "psutil", "distributed", "selenium")))
collect_ignore_glob = [] if complete else ["test_*.py"]
