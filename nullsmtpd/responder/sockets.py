"""The sockets that a server starts with, who it is once it has them, and how it says so."""

import os
import socket
import sys
from typing import NamedTuple

from nullsmtpd.cli.responder import Options
from nullsmtpd.runtime.log import log
from nullsmtpd.runtime.privileges import become, find_account
from nullsmtpd.runtime.sockets import bind, own_address, share
from nullsmtpd.runtime.systemd import Notifier, inherited_listeners

__all__ = ["Sockets", "announce", "open_sockets"]


class Sockets(NamedTuple):
    """Bound and listening: for clients, and for those who read the numbers."""

    queues: list[list[socket.socket]]  # the listeners of each process, with queues of their own where that can be
    inherited: bool  # passed to us, and kept open by someone else
    metrics: list[socket.socket]


def open_sockets(options: Options, processes: int = 1) -> Sockets:
    """Return the sockets, having become ``options.user``; those that were passed to us replace ``options.listen``.

    From listen(2) on, no signal may end the process with clients in the backlog: the caller has taken them over. Raises
    `nullsmtpd.runtime.sockets.ListenError`, `nullsmtpd.runtime.privileges.PrivilegeError`, `nullsmtpd.cli.arguments.UsageError`.
    """
    account = find_account(options.user, options.group)
    cork = options.dialogue is None
    inherited = inherited_listeners(os.environ, cork=cork)
    metrics = bind(options.metrics, socket.SOMAXCONN, cork=False, option="--metrics") if options.metrics else []
    listeners = inherited or [
        listener for address in options.listen for listener in bind(address, options.backlog, cork=cork)
    ]
    queues = [listeners]
    for _ in range(processes - 1):
        if inherited or sys.platform != "linux":  # elsewhere SO_REUSEPORT does not spread connections
            queues.append(listeners)
        else:  # as the same user: nobody else may share a port
            queues.append([share(listener, options.backlog, cork=cork) for listener in listeners])
    become(account)
    if os.geteuid() == 0 and options.user is None:
        log("running-as-root", avoid_with="--user")
    return Sockets(queues, bool(inherited), metrics)


def announce(sockets: Sockets, notifier: Notifier) -> None:
    """Say that a connection succeeds from now on, to whoever reads the log and to the service manager."""
    for listener in sockets.metrics:
        log("metrics", address=own_address(listener))
    for listener in sockets.queues[0]:
        log("listening", address=own_address(listener))
    notifier.tell("READY=1", f"STATUS=Answering on {len(sockets.queues[0])} sockets")
