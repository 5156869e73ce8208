"""What a connection costs one or more instances of nullsmtpd that share a port, at rising rates."""

import argparse

from bench import compare, servers
from bench.report import Report

#: Connections a second; one generator reaches some ten thousand.
MAX_RATE = 1_000_000


def sweep(options: argparse.Namespace) -> Report:
    """Measure each number of instances at each rate.

    Raises `ValueError` for a rate that no server reaches, `RuntimeError` if an instance does not come up.
    """
    rates = [options.first_rate * options.factor**step for step in range(options.steps)]
    if rates[-1] > MAX_RATE:
        raise ValueError(
            f"--steps {options.steps}: the last rate would be {rates[-1]:g}, more than {MAX_RATE:,} a second"
        )
    shared = {count: ["--reuse-port"] if count > 1 else [] for count in options.instances}
    named = {count: servers.nullsmtpd(*flags, name=f"instances: {count}") for count, flags in shared.items()}
    arms = [arm._replace(instances=count) for count, arm in named.items()]
    return compare.measured(arms, arms[0].name, rates, options)[1]
