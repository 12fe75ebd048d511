"""A warm process: it imports the heavy libraries once, and runs the workflow's scripts in forks of itself.

A run has some hundred jobs, and importing torch, timm, scikit-learn and matplotlib takes longer than the work of most.
`start` begins one background process with the run. A script whose first statement is `hand_over()` asks it for a
fork, in which everything is imported, and waits for the fork's exit status. Without a warm process, or if its Python or
its code differs from the script's, the script runs in its own process. The peak memory that a job in a fork reports
counts the libraries that it shares with the warm process.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import hashlib
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

_CODE = Path(__file__).parent
_FOLDER = "SAE_WARM"  # the environment variable that tells jobs where the socket lies
_ALSO = ("matplotlib.pyplot", "pandas", "pyarrow.parquet", "scipy.stats", "sklearn.cluster", "sklearn.linear_model")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

_process: subprocess.Popen[bytes] | None = None  # kept, since the pipe to it closes with the object


def start() -> None:
    """Starts the warm process in the background; it ends with this process, however this one ends."""
    if not hasattr(os, "fork"):
        return
    try:
        os.environ[_FOLDER] = folder = tempfile.mkdtemp(prefix="sae-warm-")
    except OSError:  # a full disk
        return
    # No pool of threads would survive a fork, and no started CUDA; NVML tells of GPUs without starting it.
    environment = os.environ | dict.fromkeys(_THREADS, "1") | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    global _process
    _process = subprocess.Popen(
        [sys.executable, "-m", "sae.warm", folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=_CODE.parent,
        env=environment,
        start_new_session=True,  # Ctrl-C is for the scripts; a fork ends with the script that it runs
    )


def hand_over(wait: float = 0) -> None:
    """Lets the warm process run this script, and exits as the script did; returns where there is no warm process.

    The script ends with Snakemake, even if that is killed: nothing may write results beside the next run.

    Args:
        wait: seconds to wait for a warm process that still imports: for scripts that would import as much themselves.
    """
    _end_with_parent(signal.SIGKILL)
    folder = os.environ.pop(_FOLDER, None)
    if folder is None:
        return
    request = {"env": dict(os.environ), "cwd": str(Path.cwd()), "argv": sys.argv, "path": sys.path}
    message, path = json.dumps(request).encode(), f"{folder}/{_fingerprint()}"
    until = time.monotonic() + wait
    while Path(folder).exists() and not Path(path).exists() and time.monotonic() < until:
        time.sleep(0.1)
    try:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(path)
        socket.send_fds(connection, [len(message).to_bytes(4)], [0, 1, 2])
        connection.sendall(message)
        accepted = connection.recv(1)
    except OSError:
        return
    if not accepted:  # there is no fork
        return
    status = int(connection.recv(4) or -signal.SIGKILL)
    if status < 0:
        hint = (
            "; the system may be out of memory: run fewer jobs at once (--cores)" if -status == signal.SIGKILL else ""
        )
        print(f"error: ended by signal {-status}{hint}", file=sys.stderr, flush=True)
    os._exit(status if status >= 0 else 128 - status)


def _fingerprint() -> str:
    """Returns a name for this Python and this code."""
    files = [(str(path), path.stat().st_mtime_ns) for path in sorted(_CODE.rglob("*.py"))]
    return hashlib.sha256(repr((sys.executable, sys.version, files)).encode()).hexdigest()[:8]


def _end_with_parent(number: signal.Signals) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG: the signal to get when the parent ends


def _import_all() -> None:
    names = [path.relative_to(_CODE.parent).with_suffix("").parts for path in sorted(_CODE.rglob("*.py"))]
    for name in [*(".".join(parts) for parts in names if parts[-1] != "__init__"), *_ALSO]:
        with suppress(Exception):  # a script that needs it reports the error
            import_module(name)


def _compile_all() -> None:
    """Trains a tiny SAE, for which numba compiles or loads the kernels: forks have them then."""
    import numpy as np
    from tqdm import tqdm

    from sae.training import TrainConfig, train

    tqdm.monitor_interval = 0  # a thread would not survive the forks
    tokens = np.random.default_rng(0).standard_normal((256, 16), np.float32)
    train(tokens, TrainConfig(k=2, latents=32, batch=64), device="cpu")


def _serve(path: str, forks: dict[socket.socket, int]) -> dict[str, Any] | None:
    """Forks at each request; returns the request in the fork, and None in the warm process once its parent has ended.

    Args:
        path: of the socket.
        forks: the running forks, by the connection to the script that each of them runs; kept up to date.
    """
    woken, wake = socket.socketpair()  # `woken` has something to read when a fork has ended
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    while True:
        ready = select.select([sys.stdin, listener, woken, *forks], [], [])[0]
        if sys.stdin in ready:  # nobody writes to it: its end is the parent's end
            return None
        if woken in ready:
            woken.recv(4096)
            for connection, fork in list(forks.items()):
                ended, status = os.waitpid(fork, os.WNOHANG)
                if ended:
                    with suppress(OSError):
                        connection.send(str(os.waitstatus_to_exitcode(status)).encode())
                    connection.close()
                    del forks[connection]
        for connection in forks.keys() & set(ready):  # the script was killed
            _kill(forks[connection])
        if listener in ready:
            connection = listener.accept()[0]
            size, descriptors, *_ = socket.recv_fds(connection, 4, 3)
            message = connection.recv(int.from_bytes(size), socket.MSG_WAITALL)
            try:
                fork = os.fork()
            except OSError:  # too little memory: the script runs by itself
                connection.close()
            else:
                if fork == 0:
                    signal.set_wakeup_fd(-1)
                    for opened in (listener, woken, wake, connection, *forks):
                        opened.close()
                    for number, descriptor in enumerate(descriptors):
                        os.dup2(descriptor, number)
                    return json.loads(message)
                forks[connection] = fork
                with suppress(OSError):  # the script was killed; the next turn sees that
                    connection.send(b"+")
            for descriptor in descriptors:
                os.close(descriptor)


def _kill(fork: int) -> None:
    with suppress(OSError):  # it has ended already
        os.killpg(fork, signal.SIGKILL)


def _run(request: dict[str, Any]) -> NoReturn:
    """Runs a script in this fork, as `python script` would in a process of its own, and exits."""
    os.setpgid(0, 0)  # so that the script's children can be ended with it
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    _end_with_parent(signal.SIGKILL)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv, sys.path[:] = request["argv"], request["path"]
    import numpy as np
    import torch
    from threadpoolctl import threadpool_limits

    # Without a seed, no two forks draw the same random numbers: as in processes of their own.
    torch.seed()
    np.random.seed()
    random.seed()
    threads = int(os.environ["OMP_NUM_THREADS"])  # Snakemake sets it to the rule's threads
    threadpool_limits(threads)
    torch.set_num_threads(threads)
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__file__ = sys.argv[0]
    status = 0
    try:
        exec(compile(Path(sys.argv[0]).read_bytes(), sys.argv[0], "exec"), main.__dict__)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if status and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    # Python's own end takes everything apart that was imported: the fork would copy all these pages.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    _end_with_parent(signal.SIGTERM)
    warm, folder, request = os.getpid(), sys.argv[1], None
    forks: dict[socket.socket, int] = {}
    try:
        name = _fingerprint()
        _import_all()
        with suppress(Exception):
            _compile_all()
        gc.freeze()  # forks share these objects as long as no collection touches them
        request = _serve(f"{folder}/{name}", forks)
    finally:
        if os.getpid() == warm:
            for fork in forks.values():
                _kill(fork)
            shutil.rmtree(folder, ignore_errors=True)
    if request is not None:
        _run(request)
