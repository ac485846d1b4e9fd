# Varnish: whole answers, kept by request. {{…}} is filled in by peers.py.
vcl 4.1;

backend endpoint {
    .host = "{{endpoint_host}}";
    .port = "{{endpoint_port}}";
}

sub vcl_hash {
    # Nobody may be shown another's links. The built-in part adds target and host.
    hash_data(req.http.X-Auth-Token);
}

sub vcl_backend_response {
    if (beresp.status == 200) {
        set beresp.ttl = 1d;
    }
}
