#!/usr/bin/env python3
"""What many links cost a running sidelink, in memory and in time: `make bench-links`.

Memory: for each capacity a sidelink is asked for 400,000 links, and its resident set looked at. Pace: batches of 20 out of 2,000
and out of all 400,000 links take turns, all answered from memory, the server on one core and the load on another, as in run.py,
whose parts these are.

Prints Markdown; progress goes to standard error.
"""

import os
import random
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import peers
import run
from table import grouped, table

LINKS = 400_000
FEW = 2_000
SIZE = 20
# Different batches of each kind.
BATCHES = 20_000
# None: all of them fit.
CAPACITIES = [None, "128MiB", "64MiB", "32MiB"]


def configured(capacity):
    """run.py's sidelink, except for the capacity."""

    def command(bench, running, endpoint):
        [*started, path] = peers.sidelink(bench, running, endpoint)
        with open(path, "a") as file:
            file.write(f'\n[cache]\ncapacity = "{capacity or "1GiB"}"\n')
        return [*started, path]

    return command


def fill(running, ids):
    """Asks for all of them once; how many bytes of text each has."""

    def part(first):
        connection, length = run.connect(running), 0
        for begin in range(first * 100, len(ids), 400):
            length += len(run.ask(connection, run.target(ids[begin : begin + 100])))
        connection.close()
        return length

    with ThreadPoolExecutor(4) as pool:
        return sum(pool.map(part, range(4))) / len(ids)


def memory(bench, endpoint, ids):
    rows = []
    for capacity in CAPACITIES:
        with bench.contender("sidelink", endpoint, configured(capacity)) as running:
            idle = peers.memory_bytes(running.pid)
            text = fill(running, ids)
            full, links = peers.memory_bytes(running.pid), run.metric(running, "cache_links")
            share = f"{(full - idle) / run.metric(running, 'cache_capacity_bytes'):.2f}" if capacity else "-"
            beyond = (full - idle) / links - text
            rows.append(
                [capacity or "1 GiB", grouped(links), f"{full / 2**20:.0f} MiB", share, f"{text:.0f}", f"{beyond:.0f}"]
            )
            peers.say(f"{capacity or '1 GiB'}: {rows[-1]}")
    header = ["cache.capacity", f"links kept of {grouped(LINKS)}", "RSS", "÷ capacity, idle footprint taken off"]
    return table([*header, "bytes of a link's text", "beyond it"], rows) + f"\nIdle: {idle / 2**20:.1f} MiB.\n"


def pace(bench, endpoint, ids):
    with bench.contender("sidelink", endpoint, configured(None)) as running:
        fill(running, ids)
        samples = {}
        for count in (FEW, LINKS):
            chance, known = random.Random(count), sorted(ids)[:count]
            requests = run.written(bench, endpoint, [chance.sample(known, SIZE) for _ in range(BATCHES)])
            samples[count] = (requests, [])
        for _ in range(run.ROUNDS):
            for count, (requests, turns) in samples.items():
                turns.append(run.measure(bench, lambda: run.attempt_hits(bench, running, endpoint, requests)))
                peers.say(f"out of {count} links: {turns[-1].rate:,.0f}/s, others {turns[-1].others:.0%}")
    few, many = (statistics.median(turn.rate for turn in turns) for _, turns in samples.values())
    return (
        f"Batches of {SIZE} out of {grouped(FEW)} links: {grouped(few)} a second; out of {grouped(LINKS)}: "
        f"{grouped(many)}, {many / few:.2f} times as many.\n"
    )


def main():
    cores = peers.two_cores()
    programs = peers.build()
    os.sched_setaffinity(0, {cores[1]})
    with tempfile.TemporaryDirectory(prefix="sidelink-links-") as directory:
        bench = peers.Bench(programs, Path(directory), cores)
        # As they came: neighbours in number are none in memory.
        ids = [str(10**9 + number) for number in range(LINKS)]
        random.Random(0).shuffle(ids)
        with bench.endpoint() as endpoint:
            print(memory(bench, endpoint, ids))
            print(pace(bench, endpoint, ids))


if __name__ == "__main__":
    sys.exit(main())
