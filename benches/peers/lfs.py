#!/usr/bin/env python3
"""git-lfs through sidelink against bare hyper that reads the same bodies and answers with a constant: `make bench-lfs`.

64 different batches of 100 objects (LFS_OBJECTS), all in memory; one core for each server in turn, another for the load. Twice: with
answers as the preset reads them, whose `expires_in` is rewritten for each client, and with answers that have no relative expiry to
rewrite, which are kept whole. Prints the ratio of each round.
"""

import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from peers import build, two_cores

OBJECTS = int(os.environ.get("LFS_OBJECTS", 100))
ROUNDS = int(os.environ.get("LFS_ROUNDS", 5))
SECONDS = os.environ.get("LFS_SECONDS", "2")
TARGET = "/team/repository/info/lfs/objects/batch"
TOKEN = "a-token-of-some-forty-characters-or-more"
MEDIA_TYPE = "application/vnd.git-lfs+json"
WITHOUT_SPANS = 'expires = ["/actions/download/expires_at", "link"]\n'


def bodies():
    """Requests over twice as many objects, the same in every run."""
    oids = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(2 * OBJECTS)]
    for number in range(64):
        objects = [{"oid": oid, "size": 12345} for oid in random.Random(number).sample(oids, OBJECTS)]
        batch = {"operation": "download", "transfers": ["basic"], "objects": objects}
        yield json.dumps(batch, separators=(",", ":"))


def ask(address, body):
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": MEDIA_TYPE, "Accept": MEDIA_TYPE}
    request = urllib.request.Request(f"http://{address}{TARGET}", body.encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        return response.read()


def start(servers, core, *command):
    """Starts a server on a core: its address, which it prints in its first line."""
    server = subprocess.Popen(["taskset", "-c", str(core), *map(str, command)], stdout=subprocess.PIPE, text=True)
    servers.append(server)
    line = server.stdout.readline()
    return json.loads(line)["addresses"] if line.startswith("{") else line.split("//")[-1].strip()


def measure(work, programs, cores, more):
    """The ratio of each round."""
    servers = []
    try:
        program = programs["sidelink"]
        endpoint = start(servers, cores[1], program, "origin", "--api", "git-lfs", "--address", "127.0.0.1:0", "--link-life", "10h")
        config = work / "sidelink.toml"
        config.write_text(
            f'listen.address = "127.0.0.1:0"\nadmin.address = "127.0.0.1:0"\nupstream.endpoint = "http://{endpoint}"\n'
            f'runtime.threads = 1\nlog.access = "off"\n[[batch]]\npreset = "git-lfs"\n{more}'
        )
        address = start(servers, cores[0], program, "serve", "--config", config)
        requests = work / "bodies"
        requests.write_text("".join(f"{body}\n" for body in bodies()))
        # Twice: the first answers have links that are not in memory yet.
        for body in [*bodies(), *bodies()]:
            answer = ask(address, body)
        constant = work / "answer"
        constant.write_bytes(answer)
        ceiling = start(servers, cores[0], programs["ceiling"], constant)
        for _ in range(ROUNDS):
            rates = []
            for server in (address, ceiling):
                command = ["taskset", "-c", str(cores[1]), programs["load"], server, str(requests), TOKEN, str(len(answer))]
                command += ["--post", TARGET, "--seconds", SECONDS, "--connections", "16"]
                rates.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)["rate"])
            yield rates[0] / rates[1], rates
    finally:
        for server in servers:
            server.kill()
            server.wait()


def main():
    cores, programs = two_cores(), build()
    with tempfile.TemporaryDirectory(prefix="sidelink-lfs-") as directory:
        for name, more in (("expires_in rewritten", ""), ("no relative expiry", WITHOUT_SPANS)):
            rounds = list(measure(Path(directory), programs, cores, more))
            for ratio, (sidelink, hyper) in rounds:
                print(f"{name}: sidelink {sidelink:,.0f}/s, hyper {hyper:,.0f}/s, ratio {ratio:.2f}", file=sys.stderr)
            print(f"{OBJECTS} objects, {name}: {statistics.median(ratio for ratio, _ in rounds):.2f} of bare hyper")


if __name__ == "__main__":
    main()
