"""Processes that start with Keras loaded: forks of one that has loaded it and nothing of the project.

Loading takes longer than most of what a stage does on a small data set.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# Reads requests from stdin, one a line, and answers each on stdout. A fork leaves the loop, runs its code and ends as any
# Python does. Keras is loaded as the project does it: without packages that it does not need. TensorFlow reads the
# environment's settings when it computes, which nothing has done before the fork.
SERVER = """
import gc, json, os, sys
gc.disable()
hidden = "jax", "matplotlib", "sklearn"
sys.modules.update(dict.fromkeys(hidden))
import keras
for name in hidden:
    del sys.modules[name]
gc.enable()
gc.freeze()
for line in sys.stdin:
    request = json.loads(line)
    if isinstance(request, int):
        pid, status = os.waitpid(request, os.WNOHANG)
        answer = os.waitstatus_to_exitcode(status) if pid else None
    else:
        code, arguments, folder, log = request
        log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        answer = os.fork()
        # By both: whichever runs first, a signal to the group that is sent after the answer reaches it.
        os.setpgid(answer, answer)
        if not answer:
            break
        os.close(log)
    print(json.dumps(answer), flush=True)
else:
    os._exit(0)
os.chdir(folder)
for number, file in enumerate((os.open(os.devnull, os.O_RDONLY), log, log)):
    os.dup2(file, number)
sys.argv[1:] = arguments
exec(code, {"__name__": "__main__"})
"""


class Forks:
    """The process that is forked. Its forks have the environment that it was started in."""

    def __init__(self, **environment: str) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-u", "-c", SERVER],
            env={**os.environ, "KERAS_BACKEND": "tensorflow", **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, request: Any) -> Any:
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        assert answer, "the process that is forked has ended"
        return json.loads(answer)

    def start(self, code: str, arguments: list[str], folder: Path, log: Path) -> "Fork":
        """Run `code` as `python -c` does, in `folder` and in a process group of its own, with stdout and stderr in `log`."""
        return Fork(self, self.ask((code, arguments, str(folder), str(log))))

    def __enter__(self) -> "Forks":
        return self

    def __exit__(self, *error: object) -> None:
        self._server.communicate()


class Fork:
    """A fork, by the methods of `subprocess.Popen`."""

    def __init__(self, forks: Forks, pid: int) -> None:
        self._forks = forks
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._forks.ask(self.pid)
        return self.returncode

    def wait(self) -> int:
        end = time.monotonic() + 300
        while (code := self.poll()) is None:
            assert time.monotonic() < end
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
