"""Processes that write into a store, to be killed: `python -m support.writers`, commanded by JSON lines on stdin.

Each line forks a child (so that its start costs next to nothing) that adds runs: {"folder": "...", "ids": ["a", ...]}.
With "at" the child raises "signal" against itself at that moment of the first run: "written" (its files are, nothing is
in place yet), "placed" (the files are in place, the database knows nothing), "stored" (the database has it).
The child's process id is printed; {"wait": PID} waits for its end and prints its exit status (minus a signal's number).
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent.parent


class Writers:
    """A context manager: children forked on demand; all are dead at the end."""

    def __enter__(self) -> Writers:
        found = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(found)}
        self._pids: list[int] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.writers"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        assert self._answer() == "ready"
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)
            self.wait(pid)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()

    def start(self, folder: Path, ids: list[str], at: str = "", raised: str = "") -> int:
        """The process id of a child that adds these runs."""
        self._ask({"folder": str(folder), "ids": ids, "at": at, "signal": raised})
        pid = int(self._answer())
        self._pids.append(pid)
        return pid

    def wait(self, pid: int) -> int:
        """The child's exit status, once it has ended."""
        self._ask({"wait": pid})
        self._pids.remove(pid)
        return int(self._answer())

    def _ask(self, command: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def main() -> None:
    from edgewatt.results import store  # noqa: F401  imported once, for all children
    from support.example_run import example_run

    run = example_run(0, repeats=1)
    print("ready", flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        if "wait" in command:
            print(os.waitstatus_to_exitcode(os.waitpid(command["wait"], 0)[1]), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            _write(run, **command)
        print(pid, flush=True)


def _write(run: Any, folder: str, ids: list[str], at: str, signal: str) -> None:
    from edgewatt.results import writing
    from edgewatt.results.store import Store

    try:
        if at == "written":
            _interrupted(writing, "put_in_place", signal, before=True)
        elif at == "placed":
            _interrupted(writing, "put_in_place", signal, before=False)
        elif at == "stored":
            _interrupted(writing, "_let_go", signal, before=True)
        store = Store(folder)
        for id in ids:
            store.add(dataclasses.replace(run, id=id))
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def _interrupted(module: Any, name: str, raised: str, before: bool) -> None:
    """The function, with a signal raised before or after its first call."""
    function: Callable[..., None] = getattr(module, name)

    def called(*args: Any) -> None:
        setattr(module, name, function)
        if not before:
            function(*args)
        os.kill(os.getpid(), signal.Signals[raised])
        if before:
            function(*args)

    setattr(module, name, called)


if __name__ == "__main__":
    main()
