"""Fixtures of every test, and hypothesis's profiles."""

import os
import socket
import subprocess
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from support import daemon, no_thread, start
from systemd_machine import machine

__all__ = ["daemon", "machine", "no_thread", "start"]

settings.register_profile("quick", max_examples=50, deadline=None)
settings.register_profile(
    "thorough", max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "thorough" if os.environ.get("CI") else "quick"))


@pytest.fixture(autouse=True, scope="module")
def unit_tests_start_no_process_and_use_no_network(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test in tests/unit that does, so that these remain the tests to run after every change."""
    if not request.path.is_relative_to(request.config.rootpath / "tests" / "unit"):
        yield
        return

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("a unit test starts a process or uses the network: move it out of tests/unit")

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((socket.socket, "connect"), (socket.socket, "bind"), (subprocess.Popen, "__init__")):
            patch.setattr(owner, name, refuse)
        patch.setattr(os, "fork", refuse)
        yield
