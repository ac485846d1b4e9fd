#!/usr/bin/env python3
"""container.py ROOT: runs what the image holds, laid out in ROOT, as Docker would: by the Dockerfile's USER, ENTRYPOINT, CMD and
HEALTHCHECK. To be run in a network of its own (unshare --net), where the ports of the image are free.

The endpoint is simulated, and a collector waits for spans; all else of the image's configuration stays."""

import contextlib
import fcntl
import http.server
import json
import pathlib
import queue
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request

PATIENCE = 30
root = pathlib.Path(sys.argv[1])
dockerfile = pathlib.Path("deploy/Dockerfile").read_text().replace("\\\n", " ")


def last(instruction):
    return re.findall(rf"^{instruction}\s+(.*)$", dockerfile, re.MULTILINE)[-1]


user = last("USER")
entrypoint, command = json.loads(last("ENTRYPOINT")), json.loads(last("CMD"))
healthcheck = json.loads(last("HEALTHCHECK").split("CMD")[1])
ports = [int(port) for port in last("EXPOSE").split()]


def raise_loopback():
    """As `ip link set lo up`."""
    up, get_flags, set_flags = 0x1, 0x8913, 0x8914
    with socket.socket() as any_socket:
        answer = fcntl.ioctl(any_socket, get_flags, struct.pack("16sH22x", b"lo", 0))
        flags = struct.unpack("16sH22x", answer)[1]
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sH22x", b"lo", flags | up))


@contextlib.contextmanager
def container(*arguments):
    """Runs the entry point with these arguments, and ends it as `docker stop` does."""
    process = subprocess.Popen(["chroot", f"--userspec={user}", root, *entrypoint, *arguments], stdout=subprocess.DEVNULL)
    try:
        yield process
        process.terminate()
        assert process.wait(PATIENCE) == 0, process.returncode
    finally:
        process.kill()


def is_healthy():
    run = subprocess.run(["chroot", f"--userspec={user}", root, *healthcheck], capture_output=True)
    assert run.returncode in (0, 1), run
    return run.returncode == 0


def wait_until(met, what):
    began = time.monotonic()
    while not met():
        assert time.monotonic() - began < PATIENCE, what
        time.sleep(0.05)


def listening():
    """Local address and port of each socket that listens, over IPv4."""
    rows = [line.split() for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]]
    sockets = [row[1].split(":") for row in rows if row[3] == "0A"]
    return {(socket.inet_ntoa(bytes.fromhex(address)[::-1]), int(port, 16)) for address, port in sockets}


class Collector(http.server.BaseHTTPRequestHandler):
    received = queue.Queue()

    def do_POST(self):
        self.received.put((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


raise_loopback()
collector = http.server.HTTPServer(("127.0.0.1", 0), Collector)
threading.Thread(target=collector.serve_forever, daemon=True).start()

config = root / command[command.index("--config") + 1].lstrip("/")
text, replaced = re.subn(r'^endpoint = ".*"$', 'endpoint = "http://127.0.0.1:9090"', config.read_text(), flags=re.MULTILINE)
assert replaced == 1, text
config.write_text(f'{text}\n[trace]\nendpoint = "http://127.0.0.1:{collector.server_port}"\n')

assert not is_healthy(), "nothing runs yet"
with container("origin", "--address", "127.0.0.1:9090"), container(*command):
    wait_until(is_healthy, "it does not become healthy")
    wait_until(lambda: ("127.0.0.1", 9090) in listening(), "the endpoint does not listen")
    # What -p publishes reaches the container at an address that is not loopback.
    assert {("0.0.0.0", port) for port in ports} <= listening(), (ports, listening())
    target = f"http://127.0.0.1:{ports[0]}/v2/servicerequest/accessorys/access-urls?accessory_ids=1"
    request = urllib.request.Request(target, headers={"X-Auth-Token": "t"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        assert "sidelink" in answer.headers["Via"], answer.headers
        assert json.load(answer)["accessory_urls"][0]["accessory_id"] == "1"
    path, spans = Collector.received.get(timeout=PATIENCE)
    assert path == "/v1/traces" and b"sidelink" in spans, (path, spans)
assert not is_healthy(), "nothing runs any more"
