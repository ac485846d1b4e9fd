//! `[trace]` reads back as the same without its secrets, and each of its errors has its place.

use std::time::Duration;

use sidelink::config::{Config, ConfigErrors};

use super::secret_file;

/// A file with `[trace]` in line 3 and these further lines.
fn with_trace(lines: &str) -> Result<Config, ConfigErrors> {
    Config::parse(&format!("[upstream]\nendpoint = \"http://h\"\n[trace]\n{lines}\n"))
}

#[test]
fn the_trace_table_reads_back_and_shows_no_secret() {
    let value = secret_file("Bearer MARKED-1\n", 0o600);
    let lines = format!(
        "endpoint = \"http://collector.internal:4318\"\nsample = 0.25\nservice_name = \"a b\"\ntimeout = \"1s\"\n\
         [[trace.headers]]\nname = \"Authorization\"\nvalue_file = \"{0}\"\n\
         [[trace.headers]]\nname = \"x-tenant\"\nvalue_file = \"{0}\"",
        value.path().display()
    );
    let config = with_trace(&lines).unwrap();
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let trace = config.trace.clone().unwrap();
    assert_eq!(trace.endpoint.to_string(), "http://collector.internal:4318/v1/traces");
    assert_eq!((trace.sample, trace.service_name.as_str(), trace.timeout), (0.25, "a b", Duration::from_secs(1)));
    assert_eq!(trace.headers[0].value(), "Bearer MARKED-1");
    assert_eq!(config.dependencies(), [value.path(); 2]);
    let shown = format!("{config}{config:?}{:?}", trace.headers[0].value());
    assert!(!shown.contains("MARKED"), "{shown}");
    assert_eq!(Config::parse(&config.to_string()).unwrap(), config);

    let trace = with_trace("endpoint = \"https://[::1]/a/path\"").unwrap().trace.unwrap();
    assert_eq!(trace.endpoint.to_string(), "https://[::1]/a/path");
    assert_eq!((trace.sample, trace.service_name.as_str(), trace.timeout), (1.0, "sidelink", Duration::from_secs(5)));
    let open = secret_file("x", 0o604);
    let lines = "endpoint = \"http://h\"\n[[trace.headers]]\nname = \"x\"\nvalue_file = ";
    let config = with_trace(&format!("{lines}\"{}\"", open.path().display())).unwrap();
    assert!(config.warnings[0].to_string().contains("trace.headers.value_file: everyone on this machine may read"));
}

#[test]
fn errors_of_the_trace_table_have_their_place() {
    let header = |lines: &str| format!("endpoint = \"http://h\"\n[[trace.headers]]\n{lines}");
    let good = secret_file("x", 0o600);
    let good = good.path().display();
    for (lines, message) in [
        ("sample = 1", "trace.endpoint: is missing"),
        ("endpoint = \"h:4318\"", "trace.endpoint: must begin with http"),
        ("endpoint = \"grpc://h:4317\"", "must begin with http"),
        ("endpoint = \"http://u:p@h\"", "must not carry a user or password"),
        ("endpoint = \"http://h/?key=marked\"", "must not have a query or fragment"),
        ("endpoint = \"http://127.0.0.1:8080\"", "this sidelink's own listener"),
        ("endpoint = \"http://h\"\nsample = 1.5", "trace.sample: must be between 0 and 1, is 1.5"),
        ("endpoint = \"http://h\"\nsample = \"all\"", "trace.sample: must be a number"),
        ("endpoint = \"http://h\"\nservice_name = \"\"", "must be a service's name"),
        ("endpoint = \"http://h\"\ntimeout = \"2m\"", "must be between 1ms and 1m"),
        ("endpoint = \"http://h\"\nca_file = \"/etc/hosts\"", "needs an endpoint with https://"),
        ("endpoint = \"https://h\"\nca_file = \"/nowhere\"", "cannot be read"),
        ("endpoint = \"http://h\"\nsampel = 1", "did you mean \"sample\"?"),
        (&header("name = \"a b\"\nvalue_file = \"/nowhere\""), "\"a b\" is not a header's name"),
        (&header("name = \"a\"\nvalue_file = \"/nowhere\""), "trace.headers.value_file: cannot be read"),
        (&header("name = \"a\""), "trace.headers.value_file: is missing"),
        (&header(&format!("name = \"host\"\nvalue_file = \"{good}\"")), "host is set by sidelink itself"),
        (
            &header(&format!(
                "name = \"a\"\nvalue_file = \"{good}\"\n[[trace.headers]]\nname = \"A\"\nvalue_file = \"{good}\""
            )),
            "names a twice",
        ),
        ("headers = \"x\"", "write [[trace.headers]] above each"),
    ] {
        let error = with_trace(lines).unwrap_err().to_string();
        assert!(error.contains(message), "{lines}: {error}");
        assert!(!error.contains("marked"), "{error}");
    }
}
