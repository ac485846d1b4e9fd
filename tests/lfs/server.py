"""A Git LFS server: giftless, which keeps objects in a folder, and a minimal locking API beside it, which giftless lacks.

Arguments: the folder, and how many seconds the JWT in a link lives. Says on one line of JSON where it listens and how each user
authenticates (the password of user `_jwt`). `GET /requests` tells which requests it has answered. Ends with its standard input.
"""

import json
import os
import sys
import threading
from datetime import datetime, timedelta, timezone

import jwt
from flask import g, jsonify, request
from giftless.app import init_app
from werkzeug.serving import WSGIRequestHandler, make_server

SECRET = "a secret of the tests, of some thirty characters"
folder, lifetime = sys.argv[1], int(sys.argv[2])
# giftless fails where two uploads make the folder of a repository at the same time.
os.makedirs(os.path.join(folder, "org", "repo"))


def authenticator(**options):
    return {"factory": "giftless.auth.jwt:factory", "options": {"algorithm": "HS256", "private_key": SECRET, **options}}


app = init_app(
    additional_config={
        "LEGACY_ENDPOINTS": False,
        "AUTH_PROVIDERS": [authenticator()],
        "PRE_AUTHORIZED_ACTION_PROVIDER": authenticator(default_lifetime=lifetime),
        "TRANSFER_ADAPTERS": {
            "basic": {
                "factory": "giftless.transfer.basic_streaming:factory",
                "options": {
                    "storage_class": "giftless.storage.local_storage:LocalStorage",
                    "storage_options": {"path": folder},
                    "action_lifetime": 900,
                },
            }
        },
    }
)
locks, requests = [], []


@app.route("/requests")
def answered():
    return jsonify(requests)


@app.route("/<path:repo>/info/lfs/locks", methods=["POST", "GET"])
def lock(repo):
    if request.method == "GET":
        return jsonify(locks=locks)
    locks.append(
        {
            "id": str(len(locks) + 1),
            "path": request.get_json(force=True)["path"],
            "locked_at": "2026-11-26T00:00:00Z",
            "owner": {"name": "a user"},
        }
    )
    return jsonify(lock=locks[-1]), 201


@app.route("/<path:repo>/info/lfs/locks/<lock>/unlock", methods=["POST"])
def unlock(repo, lock):
    [found] = [known for known in locks if known["id"] == lock]
    locks.remove(found)
    return jsonify(lock=found)


@app.route("/<path:repo>/info/lfs/locks/verify", methods=["POST"])
def verify_locks(repo):
    return jsonify(ours=locks, theirs=[])


@app.after_request
def report(response):
    user = getattr(g.get("user"), "id", None)
    line = {"method": request.method, "path": request.path, "status": response.status_code, "user": user}
    if request.path.endswith("/objects/batch"):
        line["request"] = request.get_json(force=True, silent=True)
    if request.path != "/requests":
        requests.append(line)
    return response


class Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_):
        pass


def password(user):
    claims = {"sub": user, "name": user, "scopes": ["obj:org/*"], "exp": datetime.now(timezone.utc) + timedelta(hours=1)}
    return jwt.encode(claims, SECRET, algorithm="HS256")


server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
users = {user: password(user) for user in ["alice", "bob"]}
print(json.dumps({"port": server.server_port, "passwords": users}), flush=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
