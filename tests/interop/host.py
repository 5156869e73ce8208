"""The host that receives no mail: a nullsmtpd on port 25 of a network."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from child import UNTIL_WE_END
from network import REFUSING, Network
from support import Daemon

__all__ = ["refusing_host"]


@contextlib.contextmanager
def refusing_host(network: Network, directory: Path, mode: str = "close") -> Iterator[Daemon]:
    """Run nullsmtpd in this mode as the MX of a network, its log in ``directory``."""
    command = [
        *UNTIL_WE_END,
        *network.receiving_prefix,
        sys.executable,
        "-m",
        "nullsmtpd",
        "--listen",
        f"{network.address}:25",
    ]
    if mode != "close":  # the default is asked for by saying nothing, as its users do
        command += ["--mode", mode, "--hostname", f"mx.{REFUSING}"]
    log_path = directory / "nullsmtpd.log"
    own = {name: value for name, value in os.environ.items() if not name.startswith("NULLSMTPD_")}
    with log_path.open("wb") as log, subprocess.Popen(command, stderr=log, env=own) as process:
        try:
            daemon = Daemon(process, log_path)
            daemon.wait_for(daemon.addresses, "a listening line")
            yield daemon
            assert daemon.stop() == 0
        finally:
            process.kill()
