"""Takes limits upon itself, then becomes the program that it is told: `limited_script.py LIMITS PROGRAM`."""

# Run as a script inside the sandbox, standard library alone. Where there is no `resource` (Windows), only the
# wall clock of the grader limits the program.

import ctypes
import json
import os
import signal
import subprocess
import sys

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)


def main() -> None:
    limits, program = json.loads(sys.argv[1]), sys.argv[2:]
    try:
        import resource
    except ImportError:
        sys.exit(subprocess.run(program).returncode)
    wanted = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: limits["cpu_seconds"],
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NOFILE: 256,
        resource.RLIMIT_AS: limits["memory_bytes"],
    }
    if limits["processes"] and hasattr(resource, "RLIMIT_NPROC"):
        wanted[resource.RLIMIT_NPROC] = limits["processes"]
    for what, most in wanted.items():
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(what, (most, most))
        except (ValueError, OSError):  # macOS knows no limit of the address space
            if what != resource.RLIMIT_AS:
                raise
    if sys.platform == "linux":  # it ends with the grader, and whom it leaves behind stays its child
        system = ctypes.CDLL(None)
        system.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        system.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    os.execv(program[0], program)


if __name__ == "__main__":
    main()
