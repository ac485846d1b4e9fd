#!/usr/bin/env python3
"""sidelink compared with alternatives in one run: `make bench-peers`, with H2=1, TLS=1 or both over HTTP/2 and TLS 1.3.

Two workloads: *repeated*, a few batches that come again as they were, and *overlapping*, many different batches of the same
ids. Each server has one core; the load and the simulated endpoint have another. All servers stand before the same endpoint and
take turns over several rounds, so that other work on the machine affects all alike; a disturbed turn is repeated. Before that
every server answers all batches, and some answers are checked link by link. While hits are measured the endpoint must not be asked.
Caches of whole answers have no hits to measure in the overlapping workload: each of their turns starts with an empty cache and
ends after one pass through the batches.

Prints Markdown, and over plain HTTP/1 draws docs/bench-peers.svg; progress goes to standard error. Environment variables: PEERS_RUNS,
PEERS_ROUNDS, PEERS_SECONDS, PEERS_CONNECTIONS, PEERS_STREAMS, PEERS_SIZES, PEERS_CONTENDERS, PEERS_OVERLAPPING,
PEERS_AMPLIFICATION (below), PEERS_PATIENCE, PEERS_H2 and PEERS_TLS. Each of several runs starts its own servers; the ratios of
every run are printed, and all other results of the last.
"""

import dataclasses
import functools
import http.client
import itertools
import json
import os
import random
import re
import resource
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlencode

import table
from peers import COMMANDS, LUA, PROXY_CACHE, ROOT, SIDELINK, VARNISH, WHOLE_ANSWERS
from peers import Bench, build, busy_seconds, cpu_seconds, fail, install, memory_bytes, say, two_cores

PICTURE = ROOT / "docs" / "bench-peers.svg"

RUNS = int(os.environ.get("PEERS_RUNS", 1))
ROUNDS = int(os.environ.get("PEERS_ROUNDS", 5))
SECONDS = int(os.environ.get("PEERS_SECONDS", 4))
CONNECTIONS = int(os.environ.get("PEERS_CONNECTIONS", 64))
# On each connection, over HTTP/2.
STREAMS = int(os.environ.get("PEERS_STREAMS", 4))
SIZES = [int(size) for size in os.environ.get("PEERS_SIZES", "1,20,100").split(",")]
CONTENDERS = os.environ.get("PEERS_CONTENDERS", ",".join(COMMANDS)).split(",")
# Whether to count what the endpoint is asked.
AMPLIFICATION = os.environ.get("PEERS_AMPLIFICATION", "1") == "1"

# Different batches of each workload.
WORKLOADS = {table.REPEATED: 256, table.OVERLAPPING: int(os.environ.get("PEERS_OVERLAPPING", 20_000))}
# All of the same length, so that all answers of a size have about the same length.
IDS = [str(id) for id in range(10_001, 30_001)]
EXPONENT = 0.99
# Batches whose answers are checked link by link.
CHECKED = 256
# While the endpoint's calls are counted: long enough for batches to join calls.
DELAY = "20ms"
# The share of the two cores that other processes may use during a turn.
DISTURBANCE = 0.04

PATH = "/v2/servicerequest/accessorys/access-urls"
# As long as a token of IAM.
TOKEN = "".join(random.Random(0).choices("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", k=800))


# Asking and checking.


def target(batch):
    return f"{PATH}?{urlencode([('accessory_ids', id) for id in batch])}"


def connect(running):
    """A connection over HTTP/1."""
    if running.certificate and not running.plain:
        trust = ssl.create_default_context(cafile=running.certificate)
        return http.client.HTTPSConnection("127.0.0.1", running.port, timeout=30, context=trust)
    return http.client.HTTPConnection("127.0.0.1", running.plain or running.port, timeout=30)


def ask(connection, target, cache_status=None):
    """The body of an answer, which has this Cache-Status."""
    connection.request("GET", target, headers={"X-Auth-Token": TOKEN})
    response = connection.getresponse()
    body = response.read()
    if response.status != 200:
        fail(f"{connection.port} answered {response.status}: {body[:200]}")
    if cache_status and response.headers["Cache-Status"] != cache_status:
        fail(f"{connection.port} answered with Cache-Status {response.headers['Cache-Status']}, not {cache_status}")
    return body


def ask_once(running, target):
    connection = connect(running)
    try:
        return ask(connection, target)
    finally:
        connection.close()


def links(body):
    """Ids and links, without the links' queries, which differ from call to call."""
    items = json.loads(body)["accessory_urls"]
    return [(item["accessory_id"], item["accessory_url"].partition("?")[0]) for item in items]


def check(contender, batches, known):
    """Hits with exactly the requested ids, in that order, each with the link that the endpoint itself gives for it."""
    connection = connect(contender)
    for batch in batches:
        body = ask(connection, target(batch), "sidelink; hit" if contender.name == SIDELINK else None)
        if links(body) != [(id, known[id]) for id in batch]:
            fail(f"{contender.name} gives a wrong answer for {batch}")
    connection.close()


def counts(endpoint):
    """What the endpoint has been asked so far."""
    return json.loads(ask_once(endpoint, "/counts"))


def metric(running, name):
    """A value on sidelink's /metrics, with one batch API."""
    connection = http.client.HTTPConnection("127.0.0.1", running.admin, timeout=30)
    page = ask(connection, "/metrics").decode()
    connection.close()
    return float(re.search(rf'^sidelink_{name}(?:{{api="[^"]*"}})? (.+)$', page, re.M)[1])


def known_links(endpoint):
    """Every id's link, from the endpoint itself."""
    connection, known = connect(endpoint), {}
    for begin in range(0, len(IDS), 100):
        known.update(links(ask(connection, target(IDS[begin : begin + 100]))))
    connection.close()
    return known


@functools.cache
def draw(count, size):
    """Different batches of distinct ids by Zipf's law, the same in every run. Batches of one id are as many ids, in random order."""
    chance = random.Random(size)
    if size == 1:
        return [[id] for id in chance.sample(IDS, count)]
    weights = list(itertools.accumulate(1 / rank**EXPONENT for rank in range(1, len(IDS) + 1)))
    batches = {}
    while len(batches) < count:
        batch = {}
        while len(batch) < size:
            batch.update(dict.fromkeys(chance.choices(IDS, cum_weights=weights, k=size - len(batch))))
        batches[tuple(batch)] = None
    return list(batches)


# Measuring.


@dataclasses.dataclass
class Requests:
    """What the load asks for."""

    # Targets, one a line.
    file: Path
    # The length of each answer, about.
    length: int
    # Ends after one pass.
    once: bool = False


@dataclasses.dataclass
class Sample:
    """One turn of one contender."""

    rate: float
    p50: float
    p99: float
    # Shares of a core.
    server: float
    generator: float
    # Of both cores, by other processes than these and the endpoint.
    others: float
    # Bytes.
    memory: int
    files: int


def measure(bench, turn):
    """A turn, or the least disturbed of several."""
    best = turn()
    while best.others > DISTURBANCE and bench.patience > 0:
        began = time.monotonic()
        time.sleep(1)
        best = min(best, turn(), key=lambda sample: sample.others)
        bench.patience -= time.monotonic() - began
    return best


def load(bench, contender, requests, seconds=SECONDS):
    """Runs the load: its seconds without its start, rate, p50 and p99."""
    command = [bench.programs["load"], contender.address, str(requests.file), TOKEN, str(requests.length)]
    command += ["--connections", str(CONNECTIONS), "--seconds", str(seconds)] + ["--once"] * requests.once
    command += (["--h2", str(STREAMS)] if bench.h2 else []) + (["--tls", bench.certificate] if bench.tls else [])
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if ran.returncode != 0:
        fail(f"{contender.name} could not be measured")
    return json.loads(ran.stdout).values()


def warm(bench, contender, requests):
    """Every batch once, however long that takes."""
    load(bench, contender, dataclasses.replace(requests, once=True), seconds=600)


def attempt(bench, contender, endpoint, requests):
    def reading():
        """The clock, and seconds of CPU: the server's, the load's, the endpoint's, and those of both cores."""
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        generator = ended.ru_utime + ended.ru_stime
        return time.monotonic(), cpu_seconds(contender.pid), generator, cpu_seconds(endpoint.pid), busy_seconds(bench.cores)

    before = reading()
    seconds, rate, p50, p99 = load(bench, contender, requests)
    elapsed, server, generator, asked, busy = (after - earlier for after, earlier in zip(reading(), before))
    shares = (server / seconds, generator / elapsed, max(0, busy - server - generator - asked) / elapsed)
    return Sample(rate, p50, p99, *shares, memory_bytes(contender.pid), contender.file_bytes())


def attempt_hits(bench, contender, endpoint, requests):
    asked = counts(endpoint)
    sample = attempt(bench, contender, endpoint, requests)
    if counts(endpoint) != asked:
        fail(f"{contender.name}: not all were hits: the endpoint was asked {counts(endpoint)} after {asked}")
    return sample


def attempt_cold(bench, name, endpoint, requests):
    with bench.contender(name, endpoint) as contender:
        return attempt(bench, contender, endpoint, dataclasses.replace(requests, once=True))


def written(bench, endpoint, batches):
    """Requests for these batches."""
    file = bench.directory("requests") / "targets"
    file.write_text("".join(f"{target(batch)}\n" for batch in batches))
    return Requests(file, len(ask_once(endpoint, target(batches[0]))))


def run_workload(bench, workload, size):
    """Measures every contender: {name: [Sample]}."""
    batches = draw(WORKLOADS[workload], size)
    cold = [name for name in CONTENDERS if name in WHOLE_ANSWERS and workload == table.OVERLAPPING]
    with ExitStack() as stack:
        endpoint = stack.enter_context(bench.endpoint())
        requests = written(bench, endpoint, batches)
        ceiling = stack.enter_context(bench.ceiling(ask_once(endpoint, target(batches[0]))))
        turns = {ceiling.name: functools.partial(attempt_hits, bench, ceiling, endpoint, requests)}
        for name in CONTENDERS:
            if name in cold:
                turns[name] = functools.partial(attempt_cold, bench, name, endpoint, requests)
                continue
            contender = stack.enter_context(bench.contender(name, endpoint))
            warm(bench, contender, requests)
            check(contender, batches[:CHECKED], bench.known)
            turns[name] = functools.partial(attempt_hits, bench, contender, endpoint, requests)
        samples = {name: [] for name in turns}
        names = list(turns)
        for number in range(ROUNDS):
            # Each round starts with another one.
            for name in names[number % len(names) :] + names[: number % len(names)]:
                sample = measure(bench, turns[name])
                samples[name].append(sample)
                say(
                    f"{workload:11} {size:3} ids, round {number + 1}: {name:18} {sample.rate:9,.0f}/s,"
                    f" server {sample.server:4.0%}, load {sample.generator:4.0%}, others {sample.others:3.0%}"
                )
    return samples


def amplification(bench, workload, size, name):
    """Ids that the endpoint is asked for ÷ distinct ids, while every batch comes once, with nothing in memory at first."""
    batches = draw(WORKLOADS[workload], size)
    distinct = len({id for batch in batches for id in batch})
    with bench.endpoint(DELAY) as endpoint:
        requests = written(bench, endpoint, batches)
        before = counts(endpoint)["ids_asked"]
        with bench.contender(name, endpoint) as contender:
            warm(bench, contender, requests)
            asked = counts(endpoint)["ids_asked"] - before
            own = metric(contender, "upstream_call_ids_sum") if name == SIDELINK else asked
            if own != asked:
                fail(f"{name} counts {own} ids asked of the endpoint, which counts {asked}")
    say(f"{workload:11} {size:3} ids: {name:18} asks the endpoint for {asked} ids, {distinct} distinct ones")
    return asked / distinct


def main():
    # SIGTERM ends like ^C: every block ends its processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    h2, tls = (bool(os.environ.get(name)) for name in ("PEERS_H2", "PEERS_TLS"))
    if h2 or tls:
        # The others are compared over plain HTTP/1 only.
        CONTENDERS[:] = [name for name in CONTENDERS if name not in (VARNISH, LUA)]
    cores = two_cores()
    # Where Debian keeps servers; not on everyone's path.
    os.environ["PATH"] += ":/usr/sbin"
    install(CONTENDERS)
    programs = build()
    # From here on everything but the contenders stays off their core.
    os.sched_setaffinity(0, {cores[1]})
    memory_disk = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="sidelink-peers-", dir=memory_disk) as directory:
        work = Path(directory)
        # Started by root, nginx works as another user.
        work.chmod(0o755)
        bench = Bench(programs, work, cores, h2, tls)
        with bench.endpoint() as endpoint:
            bench.known = known_links(endpoint)
        cells = list(itertools.product(WORKLOADS, SIZES))
        runs = []
        for number in range(RUNS):
            say(f"run {number + 1} of {RUNS}")
            runs.append({cell: run_workload(bench, *cell) for cell in cells})
        asked = {}
        if AMPLIFICATION:
            asked = {cell: {name: amplification(bench, *cell, name) for name in CONTENDERS} for cell in cells}
        streams = f", {STREAMS} streams on each" if h2 else ""
        http = ("HTTP/2" if h2 else "HTTP/1") + (" and TLS 1.3" if tls else "")
        facts = [
            f"{http}; each server on one core (core {cores[0]}, taskset); the load, which never sleeps, over {CONNECTIONS} "
            f"connections{streams}, and the endpoint on another (core {cores[1]})",
            f"{ROUNDS} rounds of {SECONDS} s, medians; {table.disturbed(runs[-1], DISTURBANCE)}",
            f"links of some 450 bytes, a token of {len(TOKEN)} bytes, no access logs",
            *table.versions(programs, CONTENDERS),
        ]
        print(table.markdown(runs, asked, WORKLOADS, facts))
        # A trial of a few contenders draws nothing.
        if not (h2 or tls) and PROXY_CACHE in CONTENDERS:
            PICTURE.write_text(table.picture(runs[-1], facts))
            say(f"drew {PICTURE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
