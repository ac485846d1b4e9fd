#!/usr/bin/env python3
"""Asks for batches of links with the official SDK (huaweicloudsdkosm, v2) and prints the answers' items.

One JSON object a line, in the order of the answers: {"id": …, "url": …}. Exit 0; or 1 with one line on standard error
that has status, code and message of the failure; or 2 for bad usage.

The SDK signs with an access key. With --token it sends X-Auth-Token instead; all else stays the SDK's own: its
serialization, its HTTP client, its reading of the answer and of errors.
"""

import argparse
import json
import os
import sys

try:
    from huaweicloudsdkcore.auth.credentials import GlobalCredentials
    from huaweicloudsdkcore.exceptions.exceptions import SdkException, ServiceResponseException
    from huaweicloudsdkcore.http.http_config import HttpConfig
    from huaweicloudsdkcore.signer.signer import Signer
    from huaweicloudsdkosm.v2 import ListAccessoryAccessUrlsRequest, OsmClient
except ImportError as missing:
    sys.exit(f"batch.py: {missing}; `make tools` installs the SDK into .venv")


def token_credentials(token):
    """Credentials that send a token. The SDK compares the class's name, so it has to be the base's."""

    def sign_request(self, request):
        request.header_params["X-Auth-Token"] = token
        Signer.process_request_uri(request)
        return request

    def process_sts(self, http_client):
        """Without an access key the SDK would ask the cloud's metadata service for one."""

    overridden = {"sign_request": sign_request, "process_sts": process_sts}
    return type(GlobalCredentials.__name__, (GlobalCredentials,), overridden)()


def key_credentials(arguments):
    credentials = GlobalCredentials(arguments.ak, arguments.sk, arguments.domain_id)
    if arguments.security_token is not None:
        credentials.with_security_token(arguments.security_token)
    return credentials


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("base_url", help="scheme, host and port, as http://127.0.0.1:8080")
    parser.add_argument("ids", nargs="+", metavar="id", help="put -- before ids that begin with a dash")
    parser.add_argument("--token", help="ask with this IAM token")
    parser.add_argument("--ak", help="or sign with this access key …")
    parser.add_argument("--sk", help="… and this secret key")
    parser.add_argument("--domain-id", help="X-Domain-Id, when signing")
    parser.add_argument("--security-token", help="X-Security-Token of a temporary key, when signing")
    parser.add_argument("--proxy", metavar="HOST:PORT", help="go through this HTTP proxy")
    parser.add_argument("--group", help="group_id")
    parser.add_argument(
        "--then",
        action="append",
        default=[],
        metavar="ID",
        help="then ask for this id alone with the same client, which keeps its cookies; may be given several times",
    )
    parser.add_argument("--language", help="X-Language")
    parser.add_argument("--time-zone", help="X-Time-Zone")
    parser.add_argument("--site", type=int, help="X-Site")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds to wait for the answer")
    arguments = parser.parse_args()
    signing = [arguments.ak, arguments.sk, arguments.domain_id, arguments.security_token]
    if arguments.token is not None and any(value is not None for value in signing):
        parser.error("--token goes without --ak, --sk, --domain-id and --security-token")
    if arguments.token is None and (not arguments.ak or not arguments.sk):
        parser.error("either --token, or --ak and --sk")
    return arguments


def build(arguments):
    if arguments.token is not None:
        credentials = token_credentials(arguments.token)
    else:
        credentials = key_credentials(arguments)
    config = HttpConfig(timeout=arguments.timeout)
    return (
        OsmClient.new_builder()
        .with_http_config(config)
        .with_credentials(credentials)
        .with_endpoint(arguments.base_url.rstrip("/"))
        .build()
    )


def ask(client, arguments, ids):
    return client.list_accessory_access_urls(
        ListAccessoryAccessUrlsRequest(
            group_id=arguments.group,
            accessory_ids=ids,
            x_site=arguments.site,
            x_language=arguments.language,
            x_time_zone=arguments.time_zone,
        )
    )


def show(response):
    if response.accessory_urls is None:
        # An error body that comes with a 200, say: the SDK takes it for an answer without a list.
        sys.exit(f"batch.py: status {response.status_code}: the answer has no accessory_urls")
    for item in response.accessory_urls:
        print(json.dumps({"id": item.accessory_id, "url": item.accessory_url}, ensure_ascii=False))


def main():
    arguments = parse_arguments()
    # Straight to the given address or proxy, whatever proxy the environment names. The SDK's own proxy settings are for
    # https:// alone.
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*" if arguments.proxy is None else ""
    os.environ["HTTP_PROXY"] = os.environ["http_proxy"] = f"http://{arguments.proxy or ''}"
    try:
        client = build(arguments)
        for ids in [arguments.ids, *([one] for one in arguments.then)]:
            show(ask(client, arguments, ids))
    except ServiceResponseException as refused:
        sys.exit(f"batch.py: status {refused.status_code}: {refused.error_code}: {refused.error_msg}")
    except (SdkException, OSError) as failed:
        sys.exit(f"batch.py: {type(failed).__name__}: {getattr(failed, 'error_msg', None) or failed}")


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")
    main()
