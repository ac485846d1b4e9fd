//! How many instructions a batch costs that is all in memory, counted by valgrind's callgrind: the same each time, whatever
//! else the machine does.
//!
//! `cargo bench --bench instructions` compares with `benches/instructions.txt` and fails where a batch costs more than 3 %
//! more than recorded; `-- --record` writes that file anew. The counts are those of the machine's architecture and of this
//! compiler: another one needs its own record.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, clippy::indexing_slicing)]

mod support;

use std::collections::BTreeMap;
use std::process::{Command, ExitCode};

use support::{Form, SIZES, Warm, ids, request};

const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");
const ALLOWED: f64 = 1.03;
/// What a run does besides its batches cancels out between a short one and a long one.
const BATCHES: [usize; 2] = [200, 1200];
const LINKS: usize = 2000;
/// Different ones, so that no batch is in the processor's caches as a whole.
const REQUESTS: usize = 50;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, run, case, batches] = arguments.as_slice()
        && run == "run"
    {
        answer(case, batches.parse().unwrap());
        return ExitCode::SUCCESS;
    }
    let recorded = read();
    let mut counted = BTreeMap::new();
    let mut worse = false;
    println!("{:<12} {:>12} {:>12} {:>8}", "batch", "instructions", "recorded", "ratio");
    for case in cases() {
        let [short, long] = BATCHES.map(|batches| count(&case, batches));
        let each = (long - short) / (BATCHES[1] - BATCHES[0]) as u64;
        let before = recorded.get(&case).copied();
        let ratio = before.map(|before| each as f64 / before as f64);
        worse |= ratio.is_some_and(|ratio| ratio > ALLOWED);
        let shown = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        let (before, ratio) = (shown(before.map(|n| n.to_string())), shown(ratio.map(|ratio| format!("{ratio:.3}"))));
        println!("{case:<12} {each:>12} {before:>12} {ratio:>8}");
        counted.insert(case, each);
    }
    if arguments.iter().any(|argument| argument == "--record") {
        let lines: String = counted.iter().map(|(case, each)| format!("{case} {each}\n")).collect();
        std::fs::write(RECORD, lines).unwrap();
        return ExitCode::SUCCESS;
    }
    if worse {
        println!("a batch costs more than recorded: find out why, or record it anew with `-- --record` and say why");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn cases() -> Vec<String> {
    SIZES.iter().flat_map(|size| ["query", "body"].map(|form| format!("{form}-{size}"))).collect()
}

fn read() -> BTreeMap<String, u64> {
    let text = std::fs::read_to_string(RECORD).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.map(|(case, each)| (case.to_owned(), each.parse().unwrap())).collect()
}

/// Instructions of a run of `case`.
fn count(case: &str, batches: usize) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().unwrap())
        .args(["run", case, &batches.to_string()])
        .output()
        .unwrap_or_else(|error| panic!("valgrind: {error}; install it"));
    let report = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{report}");
    let collected =
        report.lines().find_map(|line| line.split_once("Collected : ")).unwrap_or_else(|| panic!("{report}"));
    collected.1.trim().parse().unwrap()
}

fn answer(case: &str, batches: usize) {
    let (form, size) = case.split_once('-').unwrap();
    let form = if form == "body" { Form::Body } else { Form::Query };
    let size: usize = size.parse().unwrap();
    let warm = Warm::new(LINKS);
    // Made before, as many in a short run as in a long one.
    let requests: Vec<_> =
        (0..REQUESTS).map(|number| request(form, &ids(number * size % (LINKS - size), size))).collect();
    warm.runtime.block_on(async {
        for request in requests.iter().cycle().take(batches) {
            std::hint::black_box(warm.hit(request.clone()).await);
        }
    });
}
