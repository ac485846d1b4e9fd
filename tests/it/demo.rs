//! The demonstration as a process: what it prints fits 60 columns, the commands that it suggests do what it says, and it keeps asking.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sidelink::demo::origin::shapes::SHAPES;

use crate::process::signal;
use crate::support::TestClient;

const COLUMNS: usize = 60;
const ROWS: usize = 24;
/// Lines above the table, and the one of the prompt below it.
const INTRODUCTION: usize = 5;

/// Longer than anything takes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

const SIDELINK: &str = env!("CARGO_BIN_EXE_sidelink");

/// What a terminal shows of `output`: the lines, also those that are drawn over, without control sequences.
fn shown(output: &str) -> Vec<String> {
    let mut text = String::new();
    let mut chars = output.chars();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            // ESC [ … letter
            chars.by_ref().find(char::is_ascii_alphabetic);
        } else {
            text.push(c);
        }
    }
    text.split(['\r', '\n']).map(str::to_owned).collect()
}

/// The lines that the demonstration shows in a terminal, of which each fits.
fn in_a_terminal(arguments: &str) -> Vec<String> {
    let demo = format!("stty columns {COLUMNS} rows {ROWS} && exec {SIDELINK} demo --once {arguments}");
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--return", "--command", &demo, "/dev/null"]).stdin(Stdio::null());
    let output = terminal.env("TERM", "xterm").output().unwrap();
    let lines = shown(&String::from_utf8(output.stdout).unwrap());
    assert!(output.status.success(), "{lines:#?}");
    for line in &lines {
        assert!(line.chars().count() <= COLUMNS, "{line}");
    }
    lines
}

#[test]
fn what_it_prints_and_draws_fits_60_columns_and_rates_are_whole_numbers() {
    let lines = in_a_terminal("--batches 500");
    assert!(lines.iter().any(|line| line.starts_with("answers checked right") && line.contains(" 500 ")), "{lines:#?}");
    let rates: Vec<&str> = lines.iter().filter_map(|line| line.trim_end().strip_suffix(" a second")).collect();
    assert!(!rates.is_empty(), "no progress is drawn: {lines:#?}");
    for rate in rates {
        let rate = rate.rsplit_once("/500 batches, ").unwrap().1;
        assert!(rate.chars().all(|c| c.is_ascii_digit() || c == ' '), "{rate}");
    }
}

/// A running demonstration, killed on drop.
struct Demo {
    process: Child,
    /// What it has printed once it waits for its user.
    invitation: Vec<String>,
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Demo {
    fn start(api: &str) -> Self {
        let mut command = Command::new(SIDELINK);
        let process = command.args(["demo", "--api", api, "--batches", "200"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut demo = Self { process, invitation: Vec::new() };
        for line in BufReader::new(demo.process.stdout.take().unwrap()).lines() {
            demo.invitation.push(line.unwrap());
            if demo.invitation.last().is_some_and(|line| line.starts_with("Ctrl-C")) {
                return demo;
            }
        }
        panic!("it has ended: {:#?}", demo.invitation);
    }

    /// The lines that define the function `ask`.
    fn definition(&self) -> String {
        let lines = self.invitation.iter().skip_while(|line| line.trim() != "ask() {");
        let lines: Vec<&str> = lines.take_while(|line| !line.is_empty()).map(String::as_str).collect();
        lines.join("\n")
    }

    /// Runs the commands: a hit, a partial hit and a miss, in this order.
    fn commands_do_what_it_says(&self) {
        let mut outcomes = Vec::new();
        for (said, command) in self.commands() {
            let script = format!("{}\n{command}", self.definition());
            let output = Command::new("sh").args(["-c", &script]).output().unwrap();
            let answer = String::from_utf8_lossy(&output.stdout).to_lowercase();
            assert!(answer.starts_with("http/1.1 200"), "{script}: {answer}");
            let status = answer.lines().find_map(|line| line.strip_prefix("cache-status: ")).unwrap().to_owned();
            outcomes.push((said.split([':', ',']).next().unwrap().to_owned(), status));
        }
        let [hit, partial, miss] = &outcomes[..] else { panic!("{outcomes:?}") };
        assert!(hit.0 == "hit" && hit.1.contains("; hit"), "{hit:?}");
        assert!(partial.0 == "partial" && partial.1.contains("fwd=partial"), "{partial:?}");
        assert!(miss.0 == "miss" && miss.1.contains("fwd=miss"), "{miss:?}");
    }

    /// Each command, with what stands above it.
    fn commands(&self) -> Vec<(String, String)> {
        let pairs = self
            .invitation
            .windows(2)
            .filter_map(|pair| Some((pair[0].trim().strip_prefix("# ")?.to_owned(), pair[1].trim().to_owned())));
        pairs.collect()
    }
}

#[tokio::test]
async fn the_commands_that_it_suggests_do_what_it_says_while_a_light_load_goes_on() {
    let mut demo = Demo::start("huawei-osm");
    for line in &demo.invitation {
        assert!(line.chars().count() <= COLUMNS, "{line}");
    }
    demo.commands_do_what_it_says();

    let page = demo.invitation.iter().find_map(|line| line.strip_prefix("The status page: http://")).unwrap();
    let admin = TestClient::new(page.trim_end_matches('/').parse().unwrap());
    let batches = async || {
        let page = admin.get("/metrics", &[]).await;
        let text = String::from_utf8(page.body.to_vec()).unwrap();
        let counts = text.lines().filter(|line| line.starts_with("sidelink_batches_total{"));
        counts.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum::<f64>()
    };
    let (began, before) = (Instant::now(), batches().await);
    while batches().await < before + 5.0 {
        assert!(began.elapsed() < PATIENCE, "nobody asks");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    signal(demo.process.id(), "INT");
    assert_eq!(demo.process.wait().unwrap().code(), Some(0));
}

#[test]
fn it_runs_over_each_batch_api_and_its_commands_do_what_it_says() {
    for shape in SHAPES.iter().filter(|shape| shape.name != "huawei-osm") {
        let mut demo = Demo::start(shape.name);
        assert!(demo.invitation.iter().any(|line| line.starts_with("answers checked right") && line.contains(" 200")));
        let floor = |name: &str| demo.invitation.iter().find(|line| line.starts_with(name)).cloned().unwrap();
        assert!(floor("ids sent / distinct ids").contains(" 1.00 "), "{}: {:#?}", shape.name, demo.invitation);
        demo.commands_do_what_it_says();
        signal(demo.process.id(), "INT");
        assert_eq!(demo.process.wait().unwrap().code(), Some(0), "{}", shape.name);
    }
}

#[test]
fn eight_tokens_of_one_user_are_shown_in_one_screen_without_and_with_an_identity() {
    let lines = in_a_terminal("--tokens --batches 400");
    // What stands after the last progress that was drawn.
    let began = lines.iter().rposition(|line| line.starts_with("[callers.identity]")).unwrap();
    let table: Vec<&String> = lines[began..].iter().filter(|line| !line.is_empty()).collect();
    assert!(INTRODUCTION + table.len() <= ROWS, "{table:#?}");
    let row = |name: &str| {
        let row = table.iter().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {table:#?}"));
        let cells: Vec<&str> = row.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
        <[&str; 2]>::try_from(cells).unwrap_or_else(|cells| panic!("{name}: {cells:?}")).map(str::to_owned)
    };
    let share = |client: usize| {
        row(&format!("  client {client}")).map(|cell| cell.trim_end_matches(" %").parse::<f64>().unwrap())
    };
    assert_eq!(row("answers checked right"), ["400", "400"]);
    let [without, with] = share(1);
    assert!((without - with).abs() < 0.01, "the first client has no cache to share: {table:#?}");
    for client in 2..=8 {
        let [without, with] = share(client);
        assert!(with > without + 5.0, "client {client}: {table:#?}");
    }
    let [without, with] = row("ids sent / distinct ids").map(|cell| cell.parse::<f64>().unwrap());
    assert!(without > 1.5 && with == 1.0, "{table:#?}");
    // A batch that comes just after a token's answer may ask once more.
    let [without, with] = row("introspections");
    assert!(without == "-" && (8..=32).contains(&with.parse::<u32>().unwrap()), "{table:#?}");
}
