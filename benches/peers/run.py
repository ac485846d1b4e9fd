#!/usr/bin/env python3
"""sidelink beside what one would use instead, measured in one run: `make bench-peers`.

Each contender has one core to itself; the load and the simulated endpoint have another. All stand before the same
endpoint, and they take turns over several rounds, so that whatever else the machine does falls on all alike; a turn that
something else disturbs is taken again. Every answer is checked before anything is measured, and meanwhile the endpoint
must not be asked: all are hits.

Prints Markdown and draws docs/bench-peers.svg; progress goes to standard error. PEERS_RUNS, PEERS_ROUNDS, PEERS_SECONDS,
PEERS_CONNECTIONS, PEERS_SIZES, PEERS_REPLAYED and PEERS_PATIENCE (below) change what is run. Of several runs in a row, all
with servers of their own, the ratios of each are printed, and of the last everything.
"""

import dataclasses
import http.client
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlencode
from xml.sax.saxutils import escape

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PICTURE = ROOT / "docs" / "bench-peers.svg"

RUNS = int(os.environ.get("PEERS_RUNS", 1))
ROUNDS = int(os.environ.get("PEERS_ROUNDS", 5))
SECONDS = int(os.environ.get("PEERS_SECONDS", 4))
CONNECTIONS = int(os.environ.get("PEERS_CONNECTIONS", 64))
SIZES = [int(size) for size in os.environ.get("PEERS_SIZES", "1,20,100").split(",")]
# Batches of the overlapping workload; 0 leaves it out.
REPLAYED = int(os.environ.get("PEERS_REPLAYED", 20_000))
# Seconds that disturbed turns may be repeated for, in all.
PATIENCE = float(os.environ.get("PEERS_PATIENCE", 300))

IDS = 10_000
EXPONENT = 0.99
# Different requests for each size, asked in turn.
BATCHES = 256
REPLAYED_IDS = 20
# So that calls are under way long enough for batches to meet in them.
DELAY = "20ms"
# The share of the two cores that others may take of a turn.
DISTURBANCE = 0.04

PATH = "/v2/servicerequest/accessorys/access-urls"
TOKEN = "bench-token"
PACKAGES = {"nginx": "nginx", "libnginx-mod-http-lua": None, "lua-cjson": None, "varnish": "varnishd"}

CEILING, PROXY_CACHE, SIDELINK = "bare hyper", "nginx proxy_cache", "sidelink"


def say(text):
    print(f"peers: {text}", file=sys.stderr, flush=True)


def fail(text):
    sys.exit(f"peers: {text}")


# What it runs.


def is_installed(package, command):
    if command and shutil.which(command):
        return True
    query = subprocess.run(["dpkg-query", "-W", "-f", "${Status}", package], capture_output=True, text=True)
    return query.stdout == "install ok installed"


def install():
    """Debian's packages, as far as they are absent."""
    lacking = [package for package, command in PACKAGES.items() if not is_installed(package, command)]
    if not lacking:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        fail(f"missing: {' '.join(lacking)} (install with your package manager, then run again)")
    say(f"installing {' '.join(lacking)}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    apt = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "check": True, "env": environment}
    subprocess.run(["apt-get", "-qq", "update"], **apt)
    subprocess.run(["apt-get", "-qq", "install", "-y", "--no-install-recommends", *lacking], **apt)
    # Debian starts a service with its package. These were not wanted as services.
    services = [package for package in lacking if package in ("nginx", "varnish")]
    if services and Path("/run/systemd/system").is_dir():
        subprocess.run(["systemctl", "--quiet", "disable", "--now", *services], check=False)


def build():
    """The release builds of sidelink, of the ceiling and of the load, by name."""
    say("building (a release build takes minutes the first time)")
    command = ["cargo", "build", "--release", "--locked", "--bin", "sidelink", "--example", "ceiling", "--example", "load"]
    built = subprocess.run(
        [*command, "--message-format", "json-render-diagnostics"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    if built.returncode != 0:
        fail("the build failed")
    messages = [json.loads(line) for line in built.stdout.splitlines()]
    return {m["target"]["name"]: m["executable"] for m in messages if m.get("executable")}


# Processes.


@contextmanager
def process(name, command, work, core=None):
    """A running process, pinned to `core`; ended with its block. What it says goes to a file in `work`."""
    if core is not None:
        command = ["taskset", "--cpu-list", str(core), *command]
    with open(work / "log", "wb") as log:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=work)
    try:
        yield child
        if child.poll() is not None:
            fail(f"{name} ended early:\n{(work / 'log').read_text(errors='replace')}")
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def await_port(name, child, port, work):
    for _ in range(200):
        if child.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    fail(f"{name} does not listen:\n{(work / 'log').read_text(errors='replace')}")


def free_ports(count):
    """Ports that are free now, all different."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def processes_of(pid):
    """A process and all that descend from it."""
    found = [pid]
    for each in found:
        for children in Path(f"/proc/{each}/task").glob("*/children"):
            found.extend(int(child) for child in children.read_text().split())
    return found


def cpu_seconds(pid):
    """Seconds of CPU that a process and its descendants have used so far."""
    ticks = 0
    for each in processes_of(pid):
        # Behind the name, which may have spaces: utime and stime are the 14th and 15th field of all.
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def busy_seconds(cores):
    """Seconds that these cores have been busy so far, whoever with."""
    ticks = 0
    for core in cores:
        counts = re.search(rf"^cpu{core} (.+)$", Path("/proc/stat").read_text(), re.M)[1].split()
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, counts[:8])
        ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def generator_seconds():
    """Seconds of CPU that ended children have used: between two calls, the load's."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def memory_mib(pid):
    """Resident memory of a process and its descendants; what they share is counted once."""
    kib = 0
    for each in processes_of(pid):
        kib += int(re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{each}/smaps_rollup").read_text(), re.M)[1])
    return kib / 1024


# The endpoint and the contenders.


@dataclasses.dataclass
class Running:
    """Something that listens."""

    name: str
    port: int
    pid: int = 0
    work: Path = None

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"


@dataclasses.dataclass
class Bench:
    """What all that is run shares."""

    programs: dict
    work: Path
    # The servers' and the load's.
    cores: list
    # Every id's link.
    known: dict = dataclasses.field(default_factory=dict)
    patience: float = PATIENCE
    serial: itertools.count = dataclasses.field(default_factory=itertools.count)

    def directory(self, name):
        work = self.work / f"{next(self.serial)}-{name.replace(' ', '-')}"
        work.mkdir()
        return work

    def configure(self, work, template, **values):
        """Writes a template into `work` with its {{…}} filled in."""
        text = (HERE / template).read_text()
        for name, value in values.items():
            text = text.replace("{{%s}}" % name, str(value))
        (work / template).write_text(text)
        return str(work / template)

    @contextmanager
    def endpoint(self, delay="0s"):
        [port] = free_ports(1)
        running = Running("endpoint", port, work=self.directory("endpoint"))
        # On the load's core: while something is measured it has nothing to do.
        command = [self.programs["sidelink"], "origin", "--address", running.address]
        command += ["--link-life", "2days", "--delay", delay]
        with process("endpoint", command, running.work) as child:
            await_port("endpoint", child, port, running.work)
            yield running

    @contextmanager
    def contender(self, name, endpoint):
        port, admin = free_ports(2)
        running = Running(name, port, work=self.directory(name))
        command = COMMANDS[name](self, running, endpoint, admin)
        with process(name, command, running.work, self.cores[0]) as child:
            await_port(name, child, port, running.work)
            running.pid = child.pid
            yield running

    @contextmanager
    def ceiling(self, answer):
        work = self.directory("ceiling")
        (work / "answer").write_bytes(answer)
        with process(CEILING, [self.programs["ceiling"], "answer"], work, self.cores[0]) as child:
            for _ in range(200):
                if address := re.match(r"127\.0\.0\.1:(\d+)\n", (work / "log").read_text()):
                    yield Running(CEILING, int(address[1]), child.pid, work)
                    return
                time.sleep(0.05)
            fail("the ceiling does not listen")


def nginx(template):
    def command(bench, running, endpoint, _admin):
        values = {"address": running.address, "endpoint": endpoint.address, "here": HERE}
        return ["nginx", "-e", "stderr", "-p", str(running.work), "-c", bench.configure(running.work, template, **values)]

    return command


def varnish(bench, running, endpoint, _admin):
    vcl = bench.configure(running.work, "varnish.vcl", endpoint_host="127.0.0.1", endpoint_port=endpoint.port)
    command = ["varnishd", "-F", "-n", str(running.work / "state"), "-j", "none", "-T", "none", "-f", vcl]
    command += ["-a", running.address, "-s", "malloc,1g"]
    # One core. And it would keep answers zipped and unzip them for each of these clients, who do not ask for gzip.
    return [*command, "-p", "thread_pools=1", "-p", "http_gzip_support=off"]


def sidelink(bench, running, endpoint, admin):
    values = {"address": running.address, "admin": f"127.0.0.1:{admin}", "endpoint": endpoint.address}
    config = bench.configure(running.work, "sidelink.toml", **values)
    return [bench.programs["sidelink"], "serve", "--config", config]


COMMANDS = {
    PROXY_CACHE: nginx("nginx.conf"),
    "Varnish": varnish,
    "nginx + Lua split": nginx("nginx-lua.conf"),
    SIDELINK: sidelink,
}


# Asking and checking.


def target(batch):
    return f"{PATH}?{urlencode([('accessory_ids', id) for id in batch])}"


def ask(connection, target):
    connection.request("GET", target, headers={"X-Auth-Token": TOKEN})
    response = connection.getresponse()
    body = response.read()
    if response.status != 200:
        fail(f"{connection.port} answered {response.status}: {body[:200]}")
    return body


def connect(running):
    return http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)


def links(body):
    """Ids and links without their query: that is another one for each call to the endpoint."""
    items = json.loads(body)["accessory_urls"]
    return [(item["accessory_id"], item["accessory_url"].partition("?")[0]) for item in items]


def check(name, body, batch, known):
    """Exactly the ids asked, in that order, each with the link that the endpoint itself gives for it."""
    if links(body) != [(id, known[id]) for id in batch]:
        fail(f"{name} gives a wrong answer for {batch}")


def counts(endpoint):
    """What the endpoint has been asked so far."""
    connection = connect(endpoint)
    try:
        return json.loads(ask(connection, "/counts"))
    finally:
        connection.close()


def known_links(endpoint):
    """Every id's link, from the endpoint itself."""
    connection, known = connect(endpoint), {}
    ids = [str(id) for id in range(1, IDS + 1)]
    for begin in range(0, IDS, 100):
        known.update(links(ask(connection, target(ids[begin : begin + 100]))))
    connection.close()
    return known


def draw(count, size, seed):
    """Batches of distinct ids by Zipf's law: the same in every run."""
    chance = random.Random(seed)
    weights = list(itertools.accumulate(1 / rank**EXPONENT for rank in range(1, IDS + 1)))
    ids = [str(id) for id in range(1, IDS + 1)]
    batches = []
    for _ in range(count):
        batch = {}
        while len(batch) < size:
            batch.update(dict.fromkeys(chance.choices(ids, cum_weights=weights, k=size - len(batch))))
        batches.append(list(batch))
    return batches


def warm(contender, batches, known):
    """Asks every batch twice and checks both answers: fetched, and from memory."""
    connection = connect(contender)
    for batch in batches + batches:
        check(contender.name, ask(connection, target(batch)), batch, known)
    connection.close()


# Measuring.


@dataclasses.dataclass
class Sample:
    """One turn of one contender."""

    rate: float
    p50: float
    p99: float
    # Shares of a core.
    server: float
    generator: float
    # Of both, by others.
    others: float


def measure(bench, contender, targets):
    """A turn, or the least disturbed of several."""
    best = attempt(bench, contender, targets)
    while best.others > DISTURBANCE and bench.patience > 0:
        began = time.monotonic()
        time.sleep(1)
        best = min(best, attempt(bench, contender, targets), key=lambda sample: sample.others)
        bench.patience -= time.monotonic() - began
    return best


def attempt(bench, contender, targets):
    command = [bench.programs["load"], contender.address, str(targets), TOKEN, str(CONNECTIONS), str(SECONDS)]
    reading = lambda: (time.monotonic(), cpu_seconds(contender.pid), generator_seconds(), busy_seconds(bench.cores))
    before = reading()
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    elapsed, server, generator, busy = (after - earlier for after, earlier in zip(reading(), before))
    if ran.returncode != 0:
        fail(f"{contender.name} could not be measured")
    shares = (server / elapsed, generator / elapsed, max(0, busy - server - generator) / elapsed)
    return Sample(*json.loads(ran.stdout).values(), *shares)


def median_of(samples):
    return Sample(*(statistics.median(values) for values in zip(*map(dataclasses.astuple, samples))))


def hits(bench):
    """Measures every contender at every size: {size: {name: [Sample]}}, and their memory afterwards."""
    results = {}
    with ExitStack() as stack:
        endpoint = stack.enter_context(bench.endpoint())
        contenders = [stack.enter_context(bench.contender(name, endpoint)) for name in COMMANDS]
        for size in SIZES:
            batches = draw(BATCHES, size, seed=size)
            targets = bench.work / f"targets-{size}"
            targets.write_text("".join(f"{target(batch)}\n" for batch in batches))
            for contender in contenders:
                warm(contender, batches, bench.known)
            connection = connect(endpoint)
            answer = ask(connection, target(batches[0]))
            connection.close()
            asked = counts(endpoint)
            with bench.ceiling(answer) as ceiling:
                field = [ceiling, *contenders]
                samples = results[size] = {each.name: [] for each in field}
                for turn in range(ROUNDS):
                    # Another one first each time.
                    for contender in field[turn % len(field) :] + field[: turn % len(field)]:
                        sample = measure(bench, contender, targets)
                        samples[contender.name].append(sample)
                        say(
                            f"{size:3} ids, round {turn + 1}: {contender.name:18} {sample.rate:9,.0f}/s,"
                            f" server {sample.server:4.0%}, load {sample.generator:4.0%}, others {sample.others:3.0%}"
                        )
                memory = {each.name: memory_mib(each.pid) for each in field}
            if counts(endpoint) != asked:
                fail(f"not all were hits: the endpoint was asked {counts(endpoint)} after {asked}")
        files = sum(file.stat().st_size for file in contenders[0].work.glob("answers/**/*") if file.is_file())
    return results, memory, files / 2**20


def amplification(bench, name):
    """Replays overlapping batches over as many connections: what the endpoint was asked, and the distinct ids."""
    batches = draw(REPLAYED, REPLAYED_IDS, seed=0)
    distinct = len({id for batch in batches for id in batch})
    with bench.endpoint(DELAY) as endpoint, bench.contender(name, endpoint) as contender:
        rest = iter(batches)

        def replay(_):
            connection = connect(contender)
            # Under the interpreter's lock, so that no batch is taken twice.
            for batch in rest:
                check(name, ask(connection, target(batch)), batch, bench.known)
            connection.close()

        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(replay, range(CONNECTIONS)))
        asked = counts(endpoint)
    return asked["ids_asked"], asked["batch_calls"], distinct


# Telling.


def versions(programs):
    def first_line(*command):
        ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return ran.stdout.strip().splitlines()[0] if ran.stdout.strip() else "?"

    lock = (ROOT / "Cargo.lock").read_text()
    crate = lambda name: re.search(rf'name = "{name}"\nversion = "([^"]+)"', lock)[1]
    package = lambda name: first_line("dpkg-query", "-W", "-f", "${Version}", name)
    toolchain = first_line("rustc", "--version")
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    return [
        first_line(programs["sidelink"], "--version") + f" (hyper {crate('hyper')}, tokio {crate('tokio')}, {toolchain})",
        f"nginx {package('nginx')}, its Lua module {package('libnginx-mod-http-lua')}",
        f"Varnish {package('varnish')}",
        f"Linux {os.uname().release}, {cpu[1] if cpu else os.uname().machine}",
    ]


def pinned(results, cores):
    turns = [turn for samples in results.values() for each in samples.values() for turn in each]
    disturbed = sum(turn.others > DISTURBANCE for turn in turns)
    return (
        f"each server on one core (core {cores[0]}, taskset); the load, which never sleeps, over {CONNECTIONS} keep-alive "
        f"connections, and the endpoint, idle meanwhile, on another (core {cores[1]}); {ROUNDS} rounds of {SECONDS} s in turn, medians; "
        f"{BATCHES} different batches of each size, links of some 450 bytes, all hits; no access logs"
        + (f"; {disturbed} of {len(turns)} turns shared their cores with something else" if disturbed else "")
    )


def grouped(number):
    return f"{number:,.0f}".replace(",", " ")


def ids(size):
    return f"{size} id" if size == 1 else f"{size} ids"


def table(header, rows):
    align = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, align, *rows]) + "\n"


def overview(results, memory, files, asked):
    """One line for each contender."""
    medians = {size: {name: median_of(turns) for name, turns in samples.items()} for size, samples in results.items()}
    rows = []
    for name, mib in memory.items():
        sent, distinct = asked.get(name, (0, 0, 0))[::2]
        rows.append(
            [
                name,
                *(grouped(medians[size][name].rate) for size in results),
                f"{mib:.0f} MiB" + (f" + {files:.0f} MiB of files" if name == PROXY_CACHE else ""),
                f"{sent / distinct:.2f}" if distinct else "-",
            ]
        )
    sizes = [f"{ids(size)} a batch" for size in results]
    return table(["requests/s", *sizes, "memory", "ids asked of the endpoint ÷ distinct ids"], rows)


def ratios(runs):
    """What sidelink is to proxy_cache and to the ceiling, in each of several runs."""
    rows = []
    for number, results in enumerate(runs, 1):
        row = [str(number)]
        for samples in results.values():
            own, peer, top = (median_of(samples[name]) for name in (SIDELINK, PROXY_CACHE, CEILING))
            row += [f"{own.rate / peer.rate:.2f}", f"{own.rate / top.rate:.2f}", f"{own.p99:.2f} : {peer.p99:.2f} ms"]
        rows.append(row)
    header = [f"{SIDELINK}, run"]
    for size in runs[0]:
        header += [f"{ids(size)}: ÷ proxy_cache", "÷ ceiling", "p99 : proxy_cache's"]
    return table(header, rows)


def details(size, samples):
    """All that was measured at one size."""
    medians = {name: median_of(turns) for name, turns in samples.items()}
    rows = []
    for name, m in medians.items():
        rates = [turn.rate for turn in samples[name]]
        # Then the server would have taken more: the load never sleeps.
        short = m.server < 0.95
        rows.append(
            [
                name,
                f"{grouped(m.rate)}{' †' if short else ''}",
                f"{grouped(min(rates))} to {grouped(max(rates))}",
                f"{m.rate / medians[PROXY_CACHE].rate:.2f}",
                f"{m.rate / medians[CEILING].rate:.2f}",
                f"{m.p50:.2f} ms",
                f"{m.p99:.2f} ms",
                f"{m.server:.0%}",
                f"{m.server / m.rate * 1e6:.1f} µs",
            ]
        )
    header = [f"{ids(size)} a batch", "requests/s", "least to most", "÷ proxy_cache", "÷ ceiling", "p50", "p99"]
    header += ["server's core", "server's CPU for a request"]
    note = "\n† The load was too slow for it.\n" if any("†" in row[1] for row in rows) else ""
    return table(header, rows) + note


def markdown(runs, memory, files, asked, cores, facts):
    results = runs[-1]
    parts = [overview(results, memory, files, asked), ratios(runs)]
    parts.append(f"“{CEILING}” answers with a constant of the same size: the ceiling of this stack.\n")
    if asked:
        distinct = next(iter(asked.values()))[2]
        parts.append(
            f"The last column: {grouped(REPLAYED)} batches of {REPLAYED_IDS} ids, drawn by Zipf {EXPONENT} from {grouped(IDS)}"
            f" ({grouped(distinct)} distinct), over {CONNECTIONS} connections, nothing in memory at first; the endpoint is "
            f"{DELAY} away. Asked of it: "
            + "; ".join(f"{name} {grouped(sent)} ids in {grouped(calls)} calls" for name, (sent, calls, _) in asked.items())
            + ".\n"
        )
    parts.append(f"Pinned: {pinned(results, cores)}.\n")
    parts.append("".join(f"- {fact}\n" for fact in facts))
    parts += [details(size, samples) for size, samples in results.items()]
    return "\n".join(parts)


STYLE = """
    .page { fill: #ffffff }
    .peer { fill: #afb8c1 }
    .own { fill: #1a7f37 }
    .top { fill: none; stroke: #8c959f; stroke-width: 1.25; stroke-dasharray: 4 3 }
    text { fill: #1f2328; font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif }
    .name { font-size: 16px; font-weight: 600 }
    .of { text-anchor: end }
    .note { fill: #57606a; font-size: 12px }
    @media (prefers-color-scheme: dark) {
      .page { fill: #0d1117 }
      .peer { fill: #484f58 }
      .own { fill: #3fb950 }
      .top { stroke: #6e7681 }
      text { fill: #e6edf3 }
      .note { fill: #9198a1 }
    }
  """


def picture(results, cores, facts):
    """Bars: a panel for each size, on a scale of its own, a bar for each contender."""
    width, left, right, bar, gap = 860, 150, 90, 20, 7
    shapes, y = [], 34
    shapes.append(f'<text class="name" x="20" y="{y}">Requests a second on one core, all answered from memory</text>')
    for size, samples in results.items():
        y += 34
        most = max(median_of(turns).rate for turns in samples.values())
        shapes.append(f'<text class="name" x="20" y="{y}">{ids(size)} a batch</text>')
        y += 12
        for name, turns in samples.items():
            rate = median_of(turns).rate
            length = (width - left - right) * rate / most
            kind = {SIDELINK: "own", CEILING: "top"}.get(name, "peer")
            middle = y + bar * 0.7
            shapes.append(f'<text class="of" x="{left - 8}" y="{middle:.1f}">{escape(name)}</text>')
            shapes.append(f'<rect class="{kind}" x="{left}" y="{y}" width="{length:.1f}" height="{bar}" rx="3"/>')
            shapes.append(f'<text x="{left + length + 8:.1f}" y="{middle:.1f}">{grouped(rate)}</text>')
            y += bar + gap
    y += 14
    ceiling = f"{CEILING}: a server that answers with a constant of the same size, the ceiling of this stack."
    notes = [ceiling, f"Pinned: {pinned(results, cores)}.", "; ".join(facts) + "."]
    for note in (line for note in notes for line in textwrap.wrap(note, 135)):
        shapes.append(f'<text class="note" x="20" y="{y}">{escape(note)}</text>')
        y += 17
    height = y + 6
    shape_lines = "\n  ".join(shapes)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-labelledby="t">
  <title id="t">Requests a second on one core: sidelink, nginx, Varnish and a bare hyper server</title>
  <style>{STYLE}</style>
  <rect class="page" width="{width}" height="{height}" rx="10"/>
  {shape_lines}
</svg>
"""


def main():
    # SIGTERM ends like ^C: every block ends its processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        fail("two cores are needed: one for the servers, one for the load")
    # Where Debian keeps servers; not on everyone's path.
    os.environ["PATH"] += ":/usr/sbin"
    install()
    programs = build()
    # From here on everything but the contenders stays off their core.
    os.sched_setaffinity(0, {cores[1]})
    memory_disk = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="sidelink-peers-", dir=memory_disk) as directory:
        work = Path(directory)
        # Started by root, nginx works as another user.
        work.chmod(0o755)
        bench = Bench(programs, work, cores)
        with bench.endpoint() as endpoint:
            bench.known = known_links(endpoint)
        runs = []
        for run in range(RUNS):
            say(f"run {run + 1} of {RUNS}")
            results, memory, files = hits(bench)
            runs.append(results)
        asked = {}
        for name in COMMANDS if REPLAYED else ():
            asked[name] = amplification(bench, name)
            say(f"{name}: {asked[name][0]} ids asked of the endpoint for {asked[name][2]} distinct ones")
        facts = versions(programs)
        print(markdown(runs, memory, files, asked, cores, facts))
        PICTURE.write_text(picture(results, cores, facts))
        say(f"drew {PICTURE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
