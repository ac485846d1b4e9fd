//! The binary: exit 0 on success, 2 with one clear line an error on bad usage or configuration; the log has no secret.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use sidelink::clock::Clock;
use sidelink::demo::origin::Origin;

use crate::process::{Files, Process};
use crate::signing::{ACCESS_KEY, Unsigned, pair};
use crate::support::{TestClient, origin_options, query};

fn sidelink(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sidelink")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn check_prints_the_effective_configuration() {
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/config/sidelink.toml");
    let output = sidelink(&["check", "--config", shipped]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("min_remaining = \"1m\""));
}

#[test]
fn check_of_a_recorded_exchange_exits_0_if_all_could_be_kept_and_1_otherwise() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("sidelink.toml");
    std::fs::write(&config, "[upstream]\nendpoint = \"http://h\"\n[[batch]]\npreset = \"git-lfs\"\n").unwrap();
    let exchanges = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/exchanges/");
    let check = |name: &str| {
        let [request, response] = ["request", "response"].map(|part| format!("{exchanges}{name}.{part}.http"));
        let config = config.to_str().unwrap();
        sidelink(&["check", "--config", config, "--request", &request, "--response", &response])
    };
    let kept = check("git-lfs");
    assert_eq!(kept.status.code(), Some(0), "{}", text(&kept.stderr));
    assert!(text(&kept.stdout).ends_with("verdict     a batch; 2 of 2 items could be kept\n"));
    let forwarded = check("google-photos");
    assert_eq!(forwarded.status.code(), Some(1));
    assert!(text(&forwarded.stdout).ends_with("verdict     forwarded untouched, as any other route\n"));
    let missing = sidelink(&["check", "--config", config.to_str().unwrap(), "--request", "/nowhere"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).starts_with("sidelink: --request: /nowhere: "), "{}", text(&missing.stderr));
}

#[test]
fn a_broken_configuration_is_an_exit_2_that_names_file_line_and_key() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "[upstream]\nendpont = \"http://h\"\ncalls = -1\n").unwrap();
    let path = file.path().to_str().unwrap();
    for command in ["check", "serve"] {
        let output = sidelink(&[command, "--config", path]);
        assert_eq!(output.status.code(), Some(2));
        let errors = text(&output.stderr);
        assert!(
            errors.contains(&format!("{path}:2: upstream.endpont: unknown key; did you mean \"endpoint\"?")),
            "{errors}"
        );
        assert!(errors.contains(&format!("{path}:3: upstream.calls: must be between")), "{errors}");
    }
}

#[test]
fn check_tells_of_a_warning_with_file_line_and_key() {
    use std::os::unix::fs::PermissionsExt;

    let directory = tempfile::tempdir().unwrap();
    let (secret, file) = (directory.path().join("secret-key"), directory.path().join("sidelink.toml"));
    std::fs::write(&secret, "SECRET").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o644)).unwrap();
    let keys = format!("[[callers.keys]]\naccess_key = \"AK\"\nsecret_key_file = {secret:?}\n");
    std::fs::write(&file, format!("[upstream]\nendpoint = \"http://h\"\n{keys}")).unwrap();
    let output = sidelink(&["check", "--config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0));
    let warned = text(&output.stderr);
    let place = format!("{}:5: callers.keys.secret_key_file: everyone on this machine may read", file.display());
    assert!(warned.starts_with(&place), "{warned}");
}

#[test]
fn an_address_that_is_taken_is_an_exit_1_that_names_it_and_what_to_change() {
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap().to_string();
    let file = tempfile::NamedTempFile::new().unwrap();
    let serve = ["serve", "--config", file.path().to_str().unwrap()];
    for (key, listen, admin) in
        [("listen.address", taken.as_str(), "127.0.0.1:0"), ("admin.address", "127.0.0.1:0", taken.as_str())]
    {
        let config = format!(
            "[upstream]\nendpoint = \"http://h\"\n[listen]\naddress = \"{listen}\"\n[admin]\naddress = \"{admin}\"\n"
        );
        std::fs::write(file.path(), config).unwrap();
        let output = sidelink(&serve);
        assert_eq!(output.status.code(), Some(1));
        let error = text(&output.stderr);
        assert!(error.contains(&format!("{key}: cannot listen on {taken}: ")), "{error}");
        assert!(error.contains("name another address"), "{error}");
    }
    let output = sidelink(&["origin", "--address", &taken]);
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.contains(&format!("cannot listen on {taken}: ")) && error.contains("--address"), "{error}");
}

#[test]
fn bad_usage_is_an_exit_2() {
    for arguments in [&[][..], &["serve"], &["check", "--confg", "x"], &["dance"], &["origin", "--delay", "soon"]] {
        let output = sidelink(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty());
    }
    let version = sidelink(&["--version"]);
    assert_eq!(
        (version.status.code(), text(&version.stdout).trim()),
        (Some(0), concat!("sidelink ", env!("CARGO_PKG_VERSION"), " (revision unknown)"))
    );
}

/// A running `sidelink serve`; killed when dropped.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn serve_serves_logs_without_secrets_and_drains_on_sigterm() {
    let mut options = origin_options();
    options.keys = vec![pair(ACCESS_KEY, "MARKED-SECRET")];
    let origin = Origin::start(options).await.unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let config = format!(
        "[upstream]\nendpoint = \"http://{}\"\n[listen]\naddress = \"127.0.0.1:0\"\n[admin]\naddress = \"127.0.0.1:0\"\n[log]\nlevel = \"trace\"\n\
         [[callers.keys]]\naccess_key = \"{ACCESS_KEY}\"\nsecret_key_env = \"SIDELINK_TEST_SECRET\"\n",
        origin.address()
    );
    std::fs::write(file.path(), config).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidelink"));
    command.args(["serve", "--config", file.path().to_str().unwrap()]).stdout(Stdio::piped());
    command.env("SIDELINK_TEST_SECRET", "MARKED-SECRET");
    let mut running = Running(command.spawn().unwrap());
    let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
    let serving: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(serving["message"], "serving");
    let address = serving["addresses"].as_str().unwrap().trim_matches(['[', ']']).parse().unwrap();
    let admin = TestClient::new(serving["admin"].as_str().unwrap().parse().unwrap());
    assert_eq!(admin.get("/readyz", &[]).await.status, 200);
    assert_eq!(admin.get("/livez", &[]).await.status, 200);
    assert_eq!(admin.get("/nothing", &[]).await.status, 404);
    assert_eq!(admin.send(http::Method::POST, "/metrics", &[], "").await.status, 405);

    let client = TestClient::new(address);
    let link = client.batch("MARKED-TOKEN", &["1", "2"]).await.links().remove(0).1;
    client.batch("MARKED-TOKEN", &["1"]).await;
    let signed =
        [("authorization", "SDK-HMAC-SHA256 Access=MARKED-KEY, SignedHeaders=host, Signature=MARKED-SIGNATURE")];
    client.get(&query(&["MARKED-ID"]), &signed).await;
    let by_key = Unsigned {
        secret_key: "MARKED-SECRET",
        ..Unsigned::get(address, &query(&["1"]), &Clock::system()).header("x-security-token", "MARKED-STS")
    };
    let by_key = by_key.sign();
    let headers: Vec<(&str, &str)> = by_key.iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert_eq!(client.get(&query(&["1"]), &headers).await.ids(), ["1"]);
    let made = origin.calls().pop().unwrap().headers["authorization"].to_str().unwrap().to_owned();
    let metrics = text(&admin.get("/metrics", &[]).await.body);

    let killed = Command::new("kill").args(["-TERM", &running.0.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let log: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(running.0.wait().unwrap().code(), Some(0));

    let access: Vec<Value> = log
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &Value| line["target"] == "access")
        .collect();
    assert_eq!(access.len(), 4, "one line a request");
    assert_eq!(
        (&access[0]["outcome"], &access[0]["fetched"], &access[0]["status"]),
        (&"miss".into(), &2.into(), &200.into())
    );
    assert_eq!((&access[1]["outcome"], &access[1]["hit"]), (&"hit".into(), &1.into()));
    assert_eq!(access[2]["outcome"], "bypass");
    let signature = link.rsplit_once("Signature=").unwrap().1;
    let signatures = [&made, &by_key.last().unwrap().1].map(|value| value.rsplit_once("Signature=").unwrap().1);
    for secret in ["MARKED", signature, "x-obs-security-token", signatures[0], signatures[1]] {
        assert!(!log.join("\n").contains(secret), "{secret} in the log");
        assert!(!metrics.contains(secret), "{secret} in the metrics");
    }
}

#[tokio::test]
async fn commands_ask_the_running_process_of_their_configuration() {
    let origin = Origin::start(origin_options()).await.unwrap();
    let files = Files::new(origin.address());
    let mut process = Process::start(&files.write("")).await;
    let config = files
        .text("")
        .replace("admin.address = \"127.0.0.1:0\"", &format!("admin.address = \"{}\"", process.admin.address));
    std::fs::write(files.path(), config).unwrap();
    let (path, token) = (files.path().display().to_string(), files.directory.path().join("token"));
    std::fs::write(&token, "t\n").unwrap();
    let run = |arguments: &[&str]| {
        let output = sidelink(&[arguments, &["--config", &path]].concat());
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };

    assert_eq!(run(&["healthcheck"]), (0, "serving\n".to_owned(), String::new()));
    assert_eq!(process.client.batch("t", &["1"]).await.status, 200);
    let explain = |arguments: &[&str]| {
        let (code, explained, error) = run(&[&["explain"], arguments].concat());
        assert_eq!((code, error.as_str()), (0, ""));
        serde_json::from_str::<Value>(&explained).unwrap()
    };
    let token_file = token.to_str().unwrap();
    let explained = explain(&["1", "2", "--token-file", token_file]);
    assert_eq!(
        (&explained["ids"][0]["result"], &explained["ids"][1]["id"]),
        (&"hit".into(), &"2".into()),
        "{explained}"
    );
    let of_group = explain(&["1", "--group", "a&b", "--token-file", token_file]);
    assert_ne!(of_group["ids"][0]["result"], "hit", "{of_group}");
    assert_eq!(explain(&["1"])["bypass"], "no-credential");

    assert_eq!(explain(&["1,2", "--token-file", token_file])["ids"].as_array().unwrap().len(), 2);
    let empty = files.directory.path().join("empty");
    std::fs::write(&empty, "\n").unwrap();
    let (code, _, told) = run(&["explain", "1", "--token-file", empty.to_str().unwrap()]);
    assert!(code == 1 && told.contains("is empty"), "{told}");

    for (target, purged) in [
        (&["1,9"][..], "{\"ids\":2,\"purged\":\"ids\",\"fleet\":\"none\"}"),
        (&["--group", "g"], "{\"purged\":\"group\",\"fleet\":\"none\"}"),
    ] {
        let (code, done, error) = run(&[&["purge"], target].concat());
        assert_eq!((code, error.as_str()), (0, ""));
        assert_eq!(serde_json::from_str::<Value>(&done).unwrap(), serde_json::from_str::<Value>(purged).unwrap());
    }
    assert_ne!(explain(&["1", "--token-file", token_file])["ids"][0]["result"], "hit");
    assert!(run(&["purge", "--all"]).1.contains("\"all\""));
    // One target, and nothing by accident.
    for wrong in [&["purge"][..], &["purge", "--all", "1"], &["purge", "--group", "g", "--all"], &["explain"]] {
        assert_eq!(run(wrong).0, 2, "{wrong:?}");
    }
    for wrong in [&["purge", "--api", "huawei-osm"][..], &["explain", "1", "--request", token_file]] {
        assert_eq!(run(wrong).0, 2, "{wrong:?}");
    }
    let (_, _, told) = run(&["explain"]);
    assert!(told.contains("--request <FILE>"), "{told}");
    let request = files.directory.path().join("request.http");
    std::fs::write(&request, format!("GET {} HTTP/1.1\r\nX-Auth-Token: t\r\n\r\n", query(&["1"]))).unwrap();
    let explain_request = || explain(&["--request", request.to_str().unwrap()]);
    assert_eq!(process.client.batch("t", &["1"]).await.status, 200);
    assert_eq!(explain_request()["ids"][0]["result"], "hit");
    let (code, done, error) = run(&["purge", "--api", "huawei-osm", "1", "2"]);
    assert_eq!((code, error.as_str()), (0, ""));
    assert!(done.contains("\"ids\":2"), "{done}");
    assert_eq!(explain_request()["ids"][0]["state"], "purged");
    let (code, _, unknown) = run(&["purge", "--api", "git-lfs", "1"]);
    assert!(code == 1 && unknown.contains("there is no such API; there is huawei-osm"), "{unknown}");
    let (code, _, refused) = run(&["purge", &"x".repeat(65)]);
    assert_eq!(code, 1);
    assert!(refused.contains("answers 400") && refused.contains("64 characters"), "{refused}");

    // The process goes on with the configuration of before, whatever is wrong with the file.
    let good = std::fs::read_to_string(files.path()).unwrap();
    std::fs::write(files.path(), format!("{good}\nlimits.batch_idz = 1\ncache.capacity = \"one\"\n[[")).unwrap();
    assert_eq!(run(&["healthcheck"]).0, 0);
    assert_eq!(run(&["purge", "--all"]).0, 2);
    std::fs::write(files.path(), good).unwrap();

    process.signal("TERM");
    process.exit().await;
    let (code, _, unanswered) = run(&["healthcheck"]);
    assert_eq!(code, 1);
    assert!(unanswered.starts_with("sidelink: 127.0.0.1:") && unanswered.contains("does not answer"), "{unanswered}");
}

#[tokio::test]
async fn commands_show_the_admin_token_of_their_configuration() {
    let origin = Origin::start(origin_options()).await.unwrap();
    let files = Files::new(origin.address());
    let token = files.directory.path().join("token");
    std::fs::write(&token, "the-token-of-an-operator\n").unwrap();
    let process = Process::start(&files.write(&format!("admin.token_file = {token:?}"))).await;
    let config = files.text(&format!("admin.token_file = {token:?}"));
    let address = process.admin.address;
    std::fs::write(
        files.path(),
        config.replace("admin.address = \"127.0.0.1:0\"", &format!("admin.address = \"{address}\"")),
    )
    .unwrap();
    let purge = || sidelink(&["purge", "--all", "--config", files.path().to_str().unwrap()]);
    assert_eq!(purge().status.code(), Some(0));
    std::fs::write(&token, "the-token-of-another-one\n").unwrap();
    let refused = purge();
    assert_eq!(refused.status.code(), Some(1));
    let told = text(&refused.stderr);
    assert!(told.contains("answers 401") && !told.contains("the-token"), "{told}");
}

#[test]
fn completions_and_the_manual_page_name_every_command() {
    assert!(text(&sidelink(&["man", "purge"]).stdout).contains("\\-\\-group"));
    assert_eq!(sidelink(&["man", "dance"]).status.code(), Some(1));
    for arguments in [&["completions", "bash"][..], &["completions", "zsh"], &["completions", "fish"], &["man"]] {
        let output = sidelink(arguments);
        assert_eq!(output.status.code(), Some(0));
        for command in ["serve", "check", "healthcheck", "explain", "purge", "completions", "man", "demo", "origin"] {
            assert!(text(&output.stdout).contains(command), "{arguments:?}: {command}");
        }
    }
}
