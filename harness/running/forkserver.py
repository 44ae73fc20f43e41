"""The fork server: what imports torch and what is registered, once for the workers of a node, and forks each its warm process.

The first worker of a node starts it; it listens on a socket that this user alone can open, and ends a second after the last
warm process. Workers share one where nothing tells them apart: same node and driver, same settings, same environment.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from filelock import FileLock

if TYPE_CHECKING:
    from harness.registry import Registry

IDLE = 1.0
"""Seconds without a warm process after which the server ends: a worker that is told to start over comes back sooner."""

SILENT = 10.0
"""Seconds that a worker has to say where to print, once it has connected: it does so at once."""

LONGEST = 64
"""Bytes of the folder for temporary files; the address of a socket has 104 on some systems."""

IMPORTS = 600
"""Seconds that importing may take: a plugin that waits for something at its import would keep server and workers for ever."""


def warm_process(settings: dict[str, Any], environment: dict[str, str]) -> socket.socket:
    """A channel to a new warm process, which prints where this process prints. It may take seconds until it says something.

    Args:
        settings: `results`, `plugins` and `commit_every`.
        environment: of the trials.

    Raises:
        OSError: if there is no safe place for the server's socket.
    """
    alike = json.dumps([sys.executable, str(Path.cwd()), _driver(), settings, environment], sort_keys=True)
    folder = socket_folder()
    address = folder / hashlib.sha256(alike.encode()).hexdigest()[:16]
    channel = socket.socket(socket.AF_UNIX)
    with FileLock(folder / "lock"):
        try:
            channel.connect(str(address))
        except (FileNotFoundError, ConnectionRefusedError):  # none yet, or one that was killed
            _start(address, settings, environment)
            channel.connect(str(address))
    socket.send_fds(channel, [b"\n"], [1, 2])
    return channel


def _driver() -> str:
    """Whose workers may share a server: those of one driver on one node. What another driver imported may be older."""
    import ray

    if not ray.is_initialized():
        return str(os.getpid())
    context = ray.get_runtime_context()
    return f"{context.get_job_id()} {context.get_node_id()}"


def socket_folder() -> Path:
    """Where this user's servers listen on this machine.

    Raises:
        PermissionError: if another user has made it or may write to it.
    """
    temporary = tempfile.gettempdir()
    folder = Path(temporary if len(os.fsencode(temporary)) <= LONGEST else "/tmp") / f"harness-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder}: must be a folder that its owner alone can open; remove it, or set TMPDIR")
    return folder


def _start(address: Path, settings: dict[str, Any], environment: dict[str, str]) -> None:
    """Starts a server. Whoever connects before it has imported everything waits in line."""
    _clear(address.parent)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen(socket.SOMAXCONN)
        descriptor = listener.fileno()
        command = [sys.executable, "-m", "harness.running.forkserver", str(descriptor), json.dumps(settings)]
        # It returns at once and goes on in the background: Ray kills the children of a worker that ends.
        subprocess.run(command, pass_fds=[descriptor], stdin=subprocess.DEVNULL, env=environment, check=True)


def _clear(folder: Path) -> None:
    """Takes away the addresses at which nobody listens any more: servers that were killed have left them."""
    for address in (path for path in folder.iterdir() if path.name != "lock"):
        with socket.socket(socket.AF_UNIX) as caller:
            caller.setblocking(False)
            try:
                caller.connect(str(address))
            except ConnectionRefusedError:
                address.unlink(missing_ok=True)
            except OSError:
                continue  # so many workers wait there that it takes no more


class ForkServer:
    """Forks a warm process for each worker that connects.

    Args:
        listener: where they connect.
        settings: as of `warm_process`.
        registry: what is registered, imported.
    """

    def __init__(self, listener: socket.socket, settings: dict[str, Any], registry: Registry) -> None:
        self.listener, self.settings, self.registry = listener, settings, registry
        self.children: set[int] = set()

    def serve(self) -> None:
        """Forks until nobody has needed a warm process for a while."""
        used = time.monotonic()
        while self.children or time.monotonic() - used < IDLE or not self._leave():
            if self._asked(0.2):
                self._fork()
            if self.children:
                used = time.monotonic()
                self.children = {pid for pid in self.children if os.waitpid(pid, os.WNOHANG) == (0, 0)}

    def _asked(self, seconds: float) -> bool:
        """Whether a worker connects within some seconds."""
        return bool(select.select([self.listener], [], [], seconds)[0])

    def _leave(self) -> bool:
        """Takes the address away, unless a worker has connected: they do so under the same lock, and none is turned away."""
        address = Path(self.listener.getsockname())
        if not address.exists():  # the folder was cleared away, and the lock would make it again, for others to open
            return not self._asked(0.0)
        with FileLock(address.with_name("lock")):
            if self._asked(0.0):
                return False
            address.unlink(missing_ok=True)
            return True

    def _fork(self) -> None:
        channel, _ = self.listener.accept()
        outputs: list[int] = []
        with channel, contextlib.suppress(OSError):  # a worker that is gone
            channel.settimeout(SILENT)
            _, outputs, _, _ = socket.recv_fds(channel, 1, 2)
            if len(outputs) == 2 and (pid := os.fork()) == 0:
                self.listener.close()
                channel.setblocking(True)
                self._become_warm(channel, outputs)
            elif len(outputs) == 2:
                self.children.add(pid)
        for descriptor in outputs:
            os.close(descriptor)

    def _become_warm(self, channel: socket.socket, outputs: list[int]) -> NoReturn:
        """Serves a worker to its end, in a process of its own."""
        from harness.running.warm import Warm

        try:
            for descriptor, output in zip(outputs, (1, 2), strict=True):
                os.dup2(descriptor, output)
                os.close(descriptor)
            Warm(channel, self.settings, self.registry).serve()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)  # as in `main`


def _imported(settings: dict[str, Any]) -> Registry:
    """What is registered, and with it everything that a trial needs. The first optimizer of a process imports much of torch."""
    import torch

    from harness.recording.environment import environment
    from harness.registry import Registry
    from harness.running import warm  # noqa: F401  # the warm processes' own
    from harness.training import federation, loop, ranks, together, trial  # noqa: F401  # a trial's: all of them run the same

    registry = Registry(settings["plugins"])
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    environment()
    registry.preload()
    gc.collect()
    gc.freeze()  # what is there now is never collected: a collection in a child would copy the pages it touches
    return registry


def main() -> None:
    """Serves at the socket whose descriptor is the first argument, in the background."""
    if os.fork():
        os._exit(0)
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settings = json.loads(sys.argv[2])
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        signal.alarm(IMPORTS)
        registry = _imported(settings)
        signal.alarm(0)
        ForkServer(listener, settings, registry).serve()
    os._exit(0)  # nothing is left to clean up, and libraries complain about objects that a frozen collector kept


if __name__ == "__main__":
    main()
