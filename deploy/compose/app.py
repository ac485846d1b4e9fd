"""A stub of an application: a page that shows attachments, and visitors who look at it.

Each page asks sidelink for one batch of links. What people look at overlaps, as it does in life.
"""

import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BASE = os.environ.get("ACCESSORY_BASE_URL", "http://127.0.0.1:8080")
PATH = "/v2/servicerequest/accessorys/access-urls"
TOKEN = os.environ.get("ACCESSORY_TOKEN", "a-token")
VISITORS = int(os.environ.get("VISITORS", "8"))
PORT = int(os.environ.get("PORT", "8000"))
ATTACHMENTS = 2000


def links(ids):
    """The links of a batch, by id, and what sidelink says of how it had them."""
    request = urllib.request.Request(f"{BASE}{PATH}?accessory_ids={','.join(ids)}", headers={"X-Auth-Token": TOKEN})
    with urllib.request.urlopen(request, timeout=15) as response:
        items = json.load(response)["accessory_urls"]
        return {item["accessory_id"]: item["accessory_url"] for item in items}, response.headers["Cache-Status"]


def ticket():
    """The attachments of some ticket: the newer, the more often looked at."""
    newest = int(random.paretovariate(1.0)) % ATTACHMENTS
    return [str((newest + place) % ATTACHMENTS) for place in range(random.randint(1, 20))]


def visit():
    while True:
        try:
            links(ticket())
        except (OSError, ValueError, KeyError) as error:
            print(f"a page without its links: {error}")
            time.sleep(1)
        time.sleep(random.expovariate(4))


class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        try:
            status, (found, how) = 200, links(ticket())
        except (OSError, ValueError, KeyError) as error:
            status, found, how = 502, {}, str(error)
        rows = "".join(f"<li>attachment {name}: <code>{link.split('?')[0]}</code></li>" for name, link in found.items())
        page = f"<!doctype html><title>A ticket</title><h1>A ticket</h1><p>{how}</p><ul>{rows}</ul>".encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    for _ in range(VISITORS):
        threading.Thread(target=visit, daemon=True).start()
    ThreadingHTTPServer(("0.0.0.0", PORT), Page).serve_forever()
