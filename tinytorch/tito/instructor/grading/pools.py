"""Where students are graded: in threads of this machine, or on a Dask cluster."""

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

from tinytorch.tito.instructor.grading.setup import code_version
from tinytorch.tito.process import sandbox as sandboxes
from tinytorch.tito.project import TitoError


@contextmanager
def local_pool(jobs: int) -> Iterator[Executor]:
    """So many students at a time on this machine; each thread waits for processes of its own."""
    with ThreadPoolExecutor(jobs) as pool:
        try:
            yield pool
        except BaseException:
            sandboxes.STOP.set()  # ends what runs now
            pool.shutdown(wait=True, cancel_futures=True)
            sandboxes.STOP.clear()
            raise


@contextmanager
def dask_pool(address: str) -> Iterator[Executor]:
    """The workers of a Dask cluster that is there; TitoError if it cannot be reached or has other code."""
    from distributed import Client

    try:
        client = Client(address, timeout=20, set_as_default=False)
    except (OSError, ValueError) as error:
        raise TitoError(f"No Dask scheduler can be reached at {address} ({error}).") from None
    with client:
        versions = client.run(code_version)
        other = [worker for worker, version in versions.items() if version != code_version()]
        if other:
            raise TitoError(
                f"{len(other)} of {len(versions)} workers of {address} have another Python or another "
                f"version of tinytorch than this machine, {other[0]} among them."
            )
        pool = client.get_executor(pure=False)
        try:
            yield pool
        finally:
            pool.shutdown(wait=False)  # cancels what is not finished
