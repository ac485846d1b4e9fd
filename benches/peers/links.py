#!/usr/bin/env python3
"""What many links cost a running sidelink, in memory and in time: `make bench-links`.

Memory: for each capacity a sidelink is asked for 400,000 links, and its resident set looked at. Pace: batches of 20 out of 2,000
and out of all 400,000 links take turns, all answered from memory, the server on one core and the load on another, as in run.py,
whose parts these are.

Prints Markdown; progress goes to standard error.
"""

import os
import random
import re
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import run

LINKS = 400_000
FEW = 2_000
SIZE = 20
# Different batches of each kind.
BATCHES = 20_000
# None: all of them fit.
CAPACITIES = [None, "128MiB", "64MiB", "32MiB"]


def configured(capacity):
    """run.py's sidelink, but for the capacity."""

    def command(bench, running, endpoint, admin):
        running.admin = admin
        [*started, path] = run.sidelink(bench, running, endpoint, admin)
        with open(path, "a") as file:
            file.write(f'\n[cache]\ncapacity = "{capacity or "1GiB"}"\n')
        return [*started, path]

    return command


def resident(pid):
    return int(re.search(r"^VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)[1]) << 10


def gauges(running):
    """What /metrics says of the cache."""
    connection = run.http.client.HTTPConnection("127.0.0.1", running.admin, timeout=30)
    page = run.ask(connection, "/metrics").decode()
    connection.close()
    return lambda name: float(re.search(rf"^sidelink_cache_{name} (.+)$", page, re.M)[1])


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
        run.COMMANDS["links"] = configured(capacity)
        with bench.contender("links", endpoint) as running:
            idle = resident(running.pid)
            text = fill(running, ids)
            gauge, full = gauges(running), resident(running.pid)
            links = gauge("links")
            share = f"{(full - idle) / gauge('capacity_bytes'):.2f}" if capacity else "-"
            beyond = (full - idle) / links - text
            rows.append(
                [capacity or "1 GiB", run.grouped(links), f"{full / 2**20:.0f} MiB", share, f"{text:.0f}", f"{beyond:.0f}"]
            )
            run.say(f"{capacity or '1 GiB'}: {rows[-1]}")
    header = ["cache.capacity", f"links kept of {run.grouped(LINKS)}", "RSS", "÷ capacity, idle footprint taken off"]
    return run.table([*header, "bytes of a link's text", "beyond it"], rows) + f"\nIdle: {idle / 2**20:.1f} MiB.\n"


def pace(bench, endpoint, ids):
    run.COMMANDS["links"] = configured(None)
    with bench.contender("links", endpoint) as running:
        fill(running, ids)
        asked = run.counts(endpoint)
        samples = {}
        for count in (FEW, LINKS):
            chance, batches = random.Random(count), bench.work / f"of-{count}"
            known = sorted(ids)[:count]
            batches.write_text("".join(f"{run.target(chance.sample(known, SIZE))}\n" for _ in range(BATCHES)))
            samples[count] = (batches, [])
        for _ in range(run.ROUNDS):
            for count, (batches, turns) in samples.items():
                turns.append(run.measure(bench, running, batches))
                run.say(f"out of {count} links: {turns[-1].rate:,.0f}/s, others {turns[-1].others:.0%}")
        if run.counts(endpoint) != asked:
            run.fail("not all were hits")
    few, many = (statistics.median(turn.rate for turn in turns) for _, turns in samples.values())
    return (
        f"Batches of {SIZE} out of {run.grouped(FEW)} links: {run.grouped(few)} a second; out of {run.grouped(LINKS)}: "
        f"{run.grouped(many)}, {many / few:.2f} times as many.\n"
    )


def main():
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        run.fail("two cores are needed: one for the server, one for the load")
    programs = run.build()
    os.sched_setaffinity(0, {cores[1]})
    with tempfile.TemporaryDirectory(prefix="sidelink-links-") as directory:
        bench = run.Bench(programs, Path(directory), cores)
        # As they came: neighbours in number are none in memory.
        ids = [str(10**9 + number) for number in range(LINKS)]
        random.Random(0).shuffle(ids)
        with bench.endpoint() as endpoint:
            print(memory(bench, endpoint, ids))
            print(pace(bench, endpoint, ids))


if __name__ == "__main__":
    sys.exit(main())
