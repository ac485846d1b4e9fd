"""The servers that benches/peers/run.py compares, as processes: how each is built, configured, started and ended."""

import dataclasses
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

CEILING, PROXY_CACHE, VARNISH, LUA, SIDELINK = "bare hyper", "nginx proxy_cache", "Varnish", "nginx + Lua split", "sidelink"
# These cache whole answers, not links.
WHOLE_ANSWERS = (PROXY_CACHE, VARNISH)
# Debian's packages, and the commands of those that are often installed from elsewhere.
PACKAGES = {PROXY_CACHE: ["nginx"], VARNISH: ["varnish"], LUA: ["nginx", "libnginx-mod-http-lua", "lua-cjson"]}
PROGRAMS = {"nginx": "nginx", "varnish": "varnishd"}


def say(text):
    print(f"peers: {text}", file=sys.stderr, flush=True)


def fail(text):
    sys.exit(f"peers: {text}")


def two_cores():
    """The servers' core and the load's; this process and all others but the servers stay on the latter."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        fail("two cores are needed: one for the servers, one for the load")
    return cores


# Programs.


def packages(names):
    """The packages of these contenders."""
    return sorted({package for name in names for package in PACKAGES.get(name, [])})


def is_installed(package):
    if package in PROGRAMS and shutil.which(PROGRAMS[package]):
        return True
    query = subprocess.run(["dpkg-query", "-W", "-f", "${Status}", package], capture_output=True, text=True)
    return query.stdout == "install ok installed"


def install(names):
    """Debian's packages for these contenders, if they are absent."""
    absent = [package for package in packages(names) if not is_installed(package)]
    if not absent:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        fail(f"missing: {' '.join(absent)} (install with your package manager, then run again)")
    say(f"installing {' '.join(absent)}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    apt = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "check": True, "env": environment}
    subprocess.run(["apt-get", "-qq", "update"], **apt)
    subprocess.run(["apt-get", "-qq", "install", "-y", "--no-install-recommends", *absent], **apt)
    # Debian starts a service with its package. These are not wanted as services.
    services = [package for package in absent if package in PROGRAMS]
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


def make_certificate(work):
    """A certificate for 127.0.0.1 that clients trust by itself, and its key."""
    paths = [str(work / "certificate.pem"), str(work / "key.pem")]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=CA:FALSE"]
    subprocess.run([*command, "-out", paths[0], "-keyout", paths[1]], check=True, capture_output=True)
    return paths


# Processes.


@contextmanager
def process(name, command, work, core=None):
    """A running process, pinned to `core`; ended with its block. Its output goes to a file in `work`."""
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
    """A process and its descendants."""
    found = [pid]
    for each in found:
        for children in Path(f"/proc/{each}/task").glob("*/children"):
            found.extend(int(child) for child in children.read_text().split())
    return found


def cpu_seconds(pid):
    """Seconds of CPU that a process and its descendants have used so far."""
    ticks = 0
    for each in processes_of(pid):
        # After the name, which may have spaces; utime and stime are fields 14 and 15.
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def busy_seconds(cores):
    """Seconds that these cores have been busy so far, with any process."""
    ticks = 0
    for core in cores:
        counts = re.search(rf"^cpu{core} (.+)$", Path("/proc/stat").read_text(), re.M)[1].split()
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, counts[:8])
        ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_bytes(pid):
    """Resident memory of a process and its descendants; shared pages are counted once."""
    rollups = (Path(f"/proc/{each}/smaps_rollup").read_text() for each in processes_of(pid))
    return sum(int(re.search(r"^Pss:\s+(\d+)", rollup, re.M)[1]) << 10 for rollup in rollups)


# The endpoint and the contenders.


@dataclasses.dataclass
class Running:
    """A server that listens."""

    name: str
    port: int
    work: Path
    pid: int = 0
    # sidelink's metrics are there.
    admin: int = 0
    # The certificate, if `port` speaks TLS.
    certificate: str = None
    # A port for HTTP/1 without TLS, if `port` does not speak HTTP/1.
    plain: int = 0

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    def file_bytes(self):
        """Bytes of the answers that nginx has in files."""
        return sum(file.stat().st_size for file in self.work.glob("answers/**/*") if file.is_file())


@dataclasses.dataclass
class Bench:
    """What all runs share."""

    programs: dict
    work: Path
    # The servers' and the load's.
    cores: list
    h2: bool = False
    tls: bool = False
    # Every id's link.
    known: dict = dataclasses.field(default_factory=dict)
    # Seconds that disturbed turns may be repeated for, in all.
    patience: float = float(os.environ.get("PEERS_PATIENCE", 300))
    serial: itertools.count = dataclasses.field(default_factory=itertools.count)

    def __post_init__(self):
        self.certificate, self.key = make_certificate(self.work) if self.tls else (None, None)

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
        running = Running("endpoint", port, self.directory("endpoint"))
        # On the load's core: while hits are measured it is idle.
        command = [self.programs["sidelink"], "origin", "--address", running.address]
        command += ["--link-life", "2days", "--delay", delay]
        with process("endpoint", command, running.work) as child:
            await_port("endpoint", child, port, running.work)
            running.pid = child.pid
            yield running

    @contextmanager
    def contender(self, name, endpoint, command=None):
        port, admin = free_ports(2)
        running = Running(name, port, self.directory(name), admin=admin, certificate=self.certificate)
        command = (command or COMMANDS[name])(self, running, endpoint)
        with process(name, command, running.work, self.cores[0]) as child:
            await_port(name, child, port, running.work)
            running.pid = child.pid
            yield running

    @contextmanager
    def ceiling(self, answer):
        work = self.directory("ceiling")
        (work / "answer").write_bytes(answer)
        command = [self.programs["ceiling"], "answer"]
        command += ["--h2"] * self.h2 + (["--tls", self.certificate, self.key] if self.tls else [])
        with process(CEILING, command, work, self.cores[0]) as child:
            for _ in range(200):
                if address := re.match(r"127\.0\.0\.1:(\d+)\n", (work / "log").read_text()):
                    yield Running(CEILING, int(address[1]), work, child.pid)
                    return
                time.sleep(0.05)
            fail("the ceiling does not listen")


def nginx(template):
    def command(bench, running, endpoint):
        values = {"listen": running.address, "endpoint": endpoint.address, "here": HERE, "tls": ""}
        if bench.tls:
            values["listen"] += " ssl"
            values["tls"] = f"ssl_certificate {bench.certificate}; ssl_certificate_key {bench.key}; ssl_protocols TLSv1.3;"
        if bench.h2:
            # Such a port of nginx 1.22 speaks HTTP/2 only.
            [running.plain] = free_ports(1)
            values["listen"] += f" http2; listen 127.0.0.1:{running.plain}"
        return ["nginx", "-e", "stderr", "-p", str(running.work), "-c", bench.configure(running.work, template, **values)]

    return command


def varnish(bench, running, endpoint):
    vcl = bench.configure(running.work, "varnish.vcl", endpoint_host="127.0.0.1", endpoint_port=endpoint.port)
    command = ["varnishd", "-F", "-n", str(running.work / "state"), "-j", "none", "-T", "none", "-f", vcl]
    command += ["-a", running.address, "-s", "malloc,1g"]
    # One core. By default it keeps answers zipped, and unzips them for clients like these, which do not ask for gzip.
    return [*command, "-p", "thread_pools=1", "-p", "http_gzip_support=off"]


def sidelink(bench, running, endpoint):
    tls = f'[listen.tls]\ncert = "{bench.certificate}"\nkey = "{bench.key}"' if bench.tls else ""
    values = {"address": running.address, "admin": f"127.0.0.1:{running.admin}", "endpoint": endpoint.address, "tls": tls}
    return [bench.programs["sidelink"], "serve", "--config", bench.configure(running.work, "sidelink.toml", **values)]


COMMANDS = {
    PROXY_CACHE: nginx("nginx.conf"),
    VARNISH: varnish,
    LUA: nginx("nginx-lua.conf"),
    SIDELINK: sidelink,
}
