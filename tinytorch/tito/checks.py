"""The process in which the checkpoint tests meet a student's module; `grade.py` starts and reads it."""

# Run as a script in the sandbox: standard library, pytest, hypothesis. One line of JSON comes on stdin:
# {"root": folder that holds tinytorch, "name": the file's name, "source": its text}. One line of JSON a test
# leaves by what was stdout when Python began: [name, outcome, message], and at the end ["end", "", ""].

import json
import os
import sys
import tempfile
from pathlib import Path

MESSAGE_LIMIT = 500


def main() -> None:
    job = json.loads(sys.stdin.readline())
    report = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    import pytest

    outcomes: dict[str, list[str]] = {}

    class Reporter:
        def pytest_configure(self):
            from hypothesis import HealthCheck, Phase, settings

            settings.register_profile(
                "grading",
                database=None,
                deadline=None,
                derandomize=True,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            settings.load_profile("grading")

        def pytest_runtest_logreport(self, report):
            name = report.nodeid.partition("::")[2]
            if report.when == "call" or report.outcome != "passed":
                outcomes[name] = [report.outcome, _reason(report)]
            if report.when == "teardown" and name in outcomes:
                send(name, *outcomes[name])

        def pytest_collectreport(self, report):
            if report.failed:
                send("collection", "failed", _reason(report))

    def send(*line):
        report.write(json.dumps(line) + "\n")
        report.flush()

    sys.path.insert(0, job["root"])
    folder = Path(tempfile.mkdtemp())
    file = folder / job["name"]
    file.write_text(job["source"], encoding="utf-8")
    os.chdir(folder)
    arguments = [
        str(file),
        f"--rootdir={folder}",
        "-q",
        "-p",
        "no:cacheprovider",
        "--tb=line",
        "-c",
        os.devnull,
    ]
    pytest.main([*arguments, "-W", "error"], plugins=[Reporter()])
    send("end", "", "")


def _reason(report) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr or "")
    return text.strip()[:MESSAGE_LIMIT]


if __name__ == "__main__":
    main()
