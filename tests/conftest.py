"""Fixtures of every test, and hypothesis's profiles."""

import os

from hypothesis import HealthCheck, settings
from support import daemon, no_thread, start
from systemd_machine import machine

__all__ = ["daemon", "machine", "no_thread", "start"]

settings.register_profile("quick", max_examples=50, deadline=None)
settings.register_profile(
    "thorough", max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "thorough" if os.environ.get("CI") else "quick"))
