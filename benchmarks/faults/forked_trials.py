"""The service whose trials of artifacts are forked from a process that has imported the libraries already.

    python -m benchmarks.faults.forked_trials ARTIFACT …       as `python -m service ARTIFACT …`

A trial takes seconds of processor time to import what it needs, whatever it is to load; for hundreds of them that is
most of the time. Here everything is imported once, then one fork waits for trials and each trial is a fork of it: the
same code under the same limits (`service/artifacts/trial.py`), in a process of its own that is ended like any other.
The service itself goes on in the first process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import runpy
import signal
import socket
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import service.service
from service.artifacts import trial
from service.errors import StartError


def be_template(listener: socket.socket, parent: int) -> NoReturn:
    """Fork a trial for every connection; each says its process id first, then what a trial says.

    Args:
        listener: accepts the connections.
        parent: descriptor to read; it ends with the process that serves, and this one with it.
    """
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            connection.sendall(f"{os.getpid()}\n".encode())
            os.dup2(connection.fileno(), 0)
            os.dup2(connection.fileno(), 1)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            try:
                trial.main()
            finally:
                os._exit(1)
        connection.close()


def _end_with_parent(parent: int) -> None:
    os.read(parent, 1)
    os._exit(0)


def _fork_template(place: str) -> int:
    """Start the template, which listens at ``place``; returns its process id."""
    import peft  # noqa: F401 - imported for the forks, as the next lines are
    from transformers import AutoTokenizer, Qwen3ForCausalLM, Qwen3Model, T5ForConditionalGeneration  # noqa: F401

    import service.artifacts.loading  # noqa: F401

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place)
    listener.listen()
    parent, own = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(own)
        be_template(listener, parent)
    os.close(parent)
    listener.close()
    return pid


async def try_out(place: str, folder: Path, limits: trial.Limits) -> str:
    """As `service.artifacts.trial.try_out`."""
    reader, writer = await asyncio.open_unix_connection(place, limit=1 << 24)
    pid = int(await reader.readline())
    ended = False
    try:
        writer.write(json.dumps({"folder": str(folder.absolute()), **asdict(limits)}).encode())
        writer.write_eof()
        async with asyncio.timeout(limits.seconds):
            output = await reader.read()
        ended = True
    except TimeoutError:
        raise StartError(
            f"artifact {folder.name} takes longer than {limits.seconds:g} s to load (ANYO_LOAD_SECONDS)"
        ) from None
    finally:
        if not ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        writer.close()
    return trial._version(folder, limits, 1, output[-trial.LARGEST_ANSWER :])


def main() -> None:
    """Start the template, then serve."""
    with tempfile.TemporaryDirectory(prefix="anyo-template-") as folder:
        place = str(Path(folder) / "socket")
        template = _fork_template(place)

        async def forked(artifact: Path, limits: trial.Limits) -> str:
            return await try_out(place, artifact, limits)

        setattr(service.service, "try_out", forked)  # noqa: B010  (the name is not exported)
        try:
            runpy.run_module("service", run_name="__main__", alter_sys=True)
        finally:
            os.kill(template, signal.SIGKILL)


if __name__ == "__main__":
    main()
