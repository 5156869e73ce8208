"""How many connections a second one or more instances of nullsmtpd answer on a shared port, and at what cost."""

import argparse
import contextlib

from bench import compare, load, measure, report, servers, system
from bench.report import Report

#: The knee: less than this share of what was offered is answered, or p99 is beyond this multiple of its first value.
ENOUGH = 0.95
MUCH_SLOWER = 10.0


def sweep(options: argparse.Namespace) -> Report:
    """Offer each number of instances rising rates, until its knee.

    Raises `RuntimeError` if an instance does not come up.
    """
    names = {count: f"{count} instance{'s' * (count > 1)}" for count in options.instances}
    found: dict[tuple[float, str], measure.Round] = {}
    knees: dict[str, str] = {}
    most = max(options.instances)
    interrupted = False
    with contextlib.ExitStack() as stack:
        up = []
        for count, name in names.items():
            arm = servers.nullsmtpd(*(["--reuse-port"] if count > 1 else []), name=name)
            up.append(stack.enter_context(servers.running(arm._replace(instances=count))))
        stack.enter_context(system.pinned(system.client_cpus(most)))
        try:
            for step in range(options.steps):
                rate = options.first_rate * options.factor**step
                for server in up:
                    name = server.arm.name
                    if name in knees:
                        continue
                    report.progress(f"{name}: {rate:,.0f} a second")
                    one = measure.measure(server, compare.plan(rate, options))
                    first = next((other for (_, which), other in found.items() if which == name), one)
                    found[rate, name] = one
                    if reason := knee(one, rate, first.p99_ms):
                        knees[name] = f"{name}: knee at {rate:,.0f} a second: {reason}."
        except KeyboardInterrupt:
            interrupted = True
    if not found:
        raise KeyboardInterrupt
    bases = {rate: [one] for (rate, name), one in found.items() if name == names[options.instances[0]]}
    return Report(
        head=["rate", "server", *measure.HEAD],
        rows=[[f"{rate:,.0f}", name, *measure.row([one], bases.get(rate, []))] for (rate, name), one in found.items()],
        notes=[
            *knees.values(),
            f"Each rate for {options.seconds:g} s. ratio: to {names[options.instances[0]]} at the same rate.",
            f"CPUs of the instances: {len(system.server_cpus(most))}, of the clients: {len(system.client_cpus(most))}.",
        ],
        record={
            "results": [{"offered": rate, "server": name} | one._asdict() for (rate, name), one in found.items()],
            "knees": knees,
        },
        left=2,
        interrupted=interrupted,
    )


def knee(one: measure.Round, rate: float, first_p99: float | None) -> str | None:
    """Return why a sweep ends at this rate, or None: the generator first, since then it says nothing else."""
    if one.generator_cpu > load.BUSY:
        return f"the generator was the limit, with {one.generator_cpu:.0%} of a CPU"
    if one.p99_ms is None:
        return "no connection was answered"
    if one.per_second < ENOUGH * rate:
        return f"{one.per_second / rate:.1%} of what was offered was answered in time"
    if first_p99 and one.p99_ms > MUCH_SLOWER * first_p99:
        return f"p99 is {one.p99_ms / first_p99:.1f} times its first value"
    return None
