"""Takes limits upon itself, then becomes the program that it is told: `limited.py LIMITS PROGRAM ...`."""

# Run as a script inside the sandbox, standard library alone. Where there is no `resource` (Windows), only the
# wall clock of the grader limits the program.

import json
import os
import subprocess
import sys


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
    os.execv(program[0], program)


if __name__ == "__main__":
    main()
