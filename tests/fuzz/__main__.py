"""`make fuzz MINUTES=n`: every target for its share of the time, guided by coverage where atheris is installed.

Each target runs in a process of its own; a finding ends it with its input, and the command with status 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("precheck", "body", "config", "pdus")
_LONGEST = 1200
_MOST_MEGABYTES = 2048


def main(arguments: list[str] | None = None) -> int:
    """Fuzz, print executions per target, and return 1 when something was found."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="in all")
    parser.add_argument("--targets", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--without-atheris", action="store_true")
    parser.add_argument("--one", choices=NAMES, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    guided = importlib.util.find_spec("atheris") is not None and not options.without_atheris
    seconds = max(1, round(options.minutes * 60 / len(options.targets)))
    if options.one:
        return _by_coverage(options.one, seconds, options.seed) if guided else _at_random(options.one, seconds, options)
    return max(_in_a_process(name, seconds, guided, options) for name in options.targets)


def _in_a_process(name: str, seconds: int, guided: bool, options: argparse.Namespace) -> int:
    command = [sys.executable, "-m", "tests.fuzz", "--one", name, "--seed", str(options.seed)]
    command += ["--minutes", str(seconds / 60), "--targets", name]
    command += [] if guided else ["--without-atheris"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds + 120, check=False)
    counted = re.search(r"number_of_executed_units: (\d+)", done.stderr + done.stdout)
    how = "guided by coverage" if guided else "at random"
    print(f"{name}: {int(counted[1]) if counted else 0:,} executions in {seconds} s, {how}, ", end="")
    print("nothing found" if done.returncode == 0 else "FOUND:")
    if done.returncode:
        print("\n".join((done.stderr + done.stdout).splitlines()[-40:]))
    return int(done.returncode != 0)


def _by_coverage(name: str, seconds: int, seed: int) -> int:
    import atheris

    with atheris.instrument_imports(include=["node"]):
        from tests.fuzz import targets

    target = targets.TARGETS[name]
    limits = [f"-max_total_time={seconds}", f"-rss_limit_mb={_MOST_MEGABYTES}", f"-max_len={_LONGEST}", "-timeout=10"]
    atheris.Setup(
        ["fuzz", *limits, f"-seed={seed}", "-print_final_stats=1", "-verbosity=0", "-len_control=0"],
        lambda data: targets.bounded(target, data),
    )
    atheris.Fuzz()  # ends the process
    return 0


def _at_random(name: str, seconds: int, options: argparse.Namespace) -> int:
    from tests.fuzz import targets

    noise = random.Random(options.seed)  # noqa: S311 - the same noise for the same seed
    until, count, kept = time.monotonic() + seconds, 0, [b""]
    while time.monotonic() < until:
        data = bytearray(noise.choice(kept) if noise.random() < 0.5 else noise.randbytes(noise.randrange(_LONGEST)))
        for _ in range(noise.randrange(4)):
            data[noise.randrange(len(data) + 1) :][:1] = noise.randbytes(1)
        try:
            targets.bounded(targets.TARGETS[name], bytes(data))
        except BaseException:
            print(f"seed {options.seed}, input {bytes(data).hex()}", file=sys.stderr)
            raise
        count += 1
        kept = [*kept[-50:], bytes(data)] if noise.random() < 0.02 else kept
    print(f"number_of_executed_units: {count}")
    targets.let_go()
    return 0


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
