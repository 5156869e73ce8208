"""Unix sockets of ``nullsmtpd relay`` in one directory, opened and removed by several processes at a time."""

import contextlib
import fcntl
import os
import socket
import threading
from pathlib import Path

import pytest
from support import PATIENCE

from nullsmtpd.relay import unix
from nullsmtpd.relay.unix import unix_listener
from nullsmtpd.runtime.sockets import ListenError

PROCESSES = 8


@pytest.mark.parametrize("is_stale", [False, True])
def test_of_many_that_bind_at_once_one_succeeds(tmp_path: Path, *, is_stale: bool) -> None:
    """And its socket is the one in the directory, also where a crashed process has left one."""
    for number in range(50):
        path = tmp_path / f"{number}"
        if is_stale:
            with socket.socket(socket.AF_UNIX) as stale:
                stale.bind(str(path))
        begin, results = os.pipe(), os.pipe()
        children = [fork_binder(str(path), begin, results) for _ in range(PROCESSES)]
        os.close(begin[1])  # all of them read EOF
        outcomes = b""
        while len(outcomes) < PROCESSES:
            outcomes += os.read(results[0], PROCESSES)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        for child in children:
            os.kill(child, 9)
            os.waitpid(child, 0)
        for descriptor in (begin[0], *results):
            os.close(descriptor)
        assert sorted(outcomes) == sorted(b"1" + b"0" * (PROCESSES - 1))


def fork_binder(path: str, begin: tuple[int, int], results: tuple[int, int]) -> int:
    """Fork a process that binds when ``begin`` ends, writes 1 or 0 to ``results``, and then waits to be killed."""
    if child := os.fork():
        return child
    try:
        os.close(begin[1])
        os.read(begin[0], 1)
        signal_never_comes = os.pipe()
        try:
            with unix_listener(path, 10):
                os.write(results[1], b"1")
                os.read(signal_never_comes[0], 1)
        except ListenError:
            os.write(results[1], b"0")
            os.read(signal_never_comes[0], 1)
    finally:
        os._exit(1)


def test_a_socket_is_not_removed_while_another_process_holds_the_lock(tmp_path: Path) -> None:
    """That process may be binding its own socket at the path at this moment."""
    path = tmp_path / "relay"
    stack = contextlib.ExitStack()
    listener = stack.enter_context(unix_listener(str(path), 10))
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    thread = threading.Thread(target=stack.close)
    thread.start()
    thread.join(0.2)
    assert path.exists()
    os.close(descriptor)
    thread.join(PATIENCE)
    assert not path.exists()
    listener.close()


def test_the_lock_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the path and the reason; no socket is left."""
    monkeypatch.setattr(unix, "_LOCK_TIMEOUT", 0.05)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    with pytest.raises(ListenError) as caught, unix_listener(f"{tmp_path}/relay", 10):
        pass
    os.close(descriptor)
    assert caught.value.filename == f"unix:{tmp_path}/relay"
    assert caught.value.strerror == "its directory is locked by another process"
    assert list(tmp_path.iterdir()) == []
