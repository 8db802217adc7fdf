"""A real JupyterLab and a real browser, each in an empty home, and nothing left behind."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from selenium import webdriver
from selenium.common import exceptions
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

WAIT = 60  # seconds for a page, on a slow machine
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1400,1000"
).split()
# no page may need anything but the server
ARGUMENTS.append("--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1")
# what a page says while it is being built
NOT_YET = (
    exceptions.NoSuchElementException,
    exceptions.StaleElementReferenceException,
    exceptions.ElementNotInteractableException,
    exceptions.ElementClickInterceptedException,
)


def environment(home: Path, **more: str) -> dict[str, str]:
    """An activated virtual environment of somebody whose home is empty."""
    kept = ("LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT", "OPENBLAS_NUM_THREADS")
    env = {name: os.environ[name] for name in kept if name in os.environ}
    env["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    env["HOME"] = env["USERPROFILE"] = str(home)
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        env[name] = str(home / name.lower())
    return env | more


def started_with(home: Path) -> list[psutil.Process]:
    """The processes that name the folder in their command or environment; pytest's own do not count."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
        except psutil.Error:
            continue  # it has ended, or is another user's
        if process.pid not in own and any(str(home) in word for word in words):
            found.append(process)
    return found


class Lab:
    """JupyterLab in a folder."""

    def __init__(self, folder: Path, home: Path, **env: str):
        self.home = home
        self.token = secrets.token_hex(16)
        # no --ServerApp.root_dir: to start it in the folder must be enough
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
        command += ["--ServerApp.ip=127.0.0.1", "--ServerApp.port=0"]
        command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
        self.log = home / "log.txt"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment(home, JUPYTER_TOKEN=self.token, **env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait(self) -> None:
        """Until it answers."""
        end = time.monotonic() + WAIT
        while time.monotonic() < end and self.process.poll() is None:
            for file in (self.home / "jupyter_runtime_dir").glob("jpserver-*.json"):
                text = file.read_text(encoding="utf-8")
                if text:
                    self.url = json.loads(text)["url"].rstrip("/")
                    with suppress(urllib.error.URLError):  # the file may be there before anybody listens
                        self.get("/api/status")
                        return
            time.sleep(0.1)
        raise AssertionError(f"JupyterLab did not start:\n{self.log.read_text(encoding='utf-8')}")

    def get(self, path: str):
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"token {self.token}"})
        with urllib.request.urlopen(request, timeout=WAIT) as answer:
            return json.load(answer)

    def end(self) -> None:
        """Ends it; a kernel that it leaves behind is an error, and ended too."""
        self.process.terminate()
        try:
            self.process.wait(WAIT)
        finally:
            left = started_with(self.home)
            for process in left:
                process.kill()
        assert not left, f"JupyterLab left processes behind: {left}"


@contextmanager
def lab_in(folder: Path, home: Path, **env: str):
    lab = Lab(folder, home, **env)
    try:
        lab.wait()
        yield lab
    finally:
        lab.end()


class Browser:
    """A headless browser with an empty profile."""

    def __init__(self, home: Path):
        self.home = home
        home.mkdir()
        options = webdriver.ChromeOptions()
        options.binary_location = next(path for path in map(shutil.which, BROWSERS) if path)
        for argument in (*ARGUMENTS, f"--user-data-dir={home / 'profile'}"):
            options.add_argument(argument)
        driver = webdriver.ChromeService(shutil.which("chromedriver"), env=environment(home))
        self.driver = webdriver.Chrome(options=options, service=driver)

    def until(self, condition, why: str):
        """Waits until the condition holds -> what it returned."""
        waiting = WebDriverWait(self.driver, WAIT, ignored_exceptions=NOT_YET)
        try:
            return waiting.until(lambda _: condition())
        except exceptions.TimeoutException:
            text = self.driver.find_element(By.TAG_NAME, "body").text
            raise AssertionError(f"{why}; the page says:\n{text}") from None

    def find(self, css: str, text: str = ""):
        """The first element that is seen and has the text in it."""

        def look():
            found = self.driver.find_elements(By.CSS_SELECTOR, css)
            return next((one for one in found if one.is_displayed() and text in one.text), None)

        return self.until(look, f"no {css} with {text!r} is seen")

    def click(self, css: str, text: str = "") -> None:
        self.until(lambda: self.find(css, text).click() or True, f"{css} {text!r} cannot be clicked")

    def end(self) -> None:
        self.driver.quit()
        psutil.wait_procs(started_with(self.home), timeout=10)
        left = started_with(self.home)
        for process in left:
            process.kill()
        assert not left, f"the browser left processes behind: {left}"


@contextmanager
def browser_at(home: Path):
    browser = Browser(home)
    try:
        yield browser
    finally:
        browser.end()
