//! README and the pages that it links to: links lead somewhere, keys exist, and examples match the program.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use sidelink::batch::check::check;
use sidelink::cache::freshness::formats::FORMATS;
use sidelink::config::Config;
use sidelink::config::batch::{BatchApi, ExpirySource};
use sidelink::message::recorded;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Path and text of each page.
fn pages() -> Vec<(PathBuf, String)> {
    let mut pages = vec![root().join("README.md"), root().join("CHANGELOG.md"), root().join("deploy/README.md")];
    let docs = std::fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    pages.extend(docs.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    assert!(pages.len() > 10, "{pages:?}");
    pages.into_iter().map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

/// A heading's anchor, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
}

#[test]
fn every_link_leads_to_an_existing_file_or_heading() {
    let mut seen = 0;
    for (page, text) in pages() {
        for link in text.split("](").skip(1) {
            let link = link.split(')').next().unwrap();
            if link.contains("://") {
                continue;
            }
            seen += 1;
            let (file, wanted) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: {link}", page.display());
            if !wanted.is_empty() {
                let headings = std::fs::read_to_string(target).unwrap();
                let mut headings = headings.lines().filter(|line| line.starts_with('#'));
                let there = headings.any(|line| anchor(line.trim_start_matches('#')) == wanted);
                assert!(there, "{}: {link}", page.display());
            }
        }
    }
    assert!(seen > 50, "{seen}");
}

#[test]
fn every_key_that_a_page_names_is_in_the_shipped_file() {
    let shipped = std::fs::read_to_string(root().join("config/sidelink.toml")).unwrap();
    let (mut table, mut tables, mut keys) = (String::new(), BTreeSet::new(), BTreeSet::new());
    for line in shipped.lines().map(|line| line.trim_start_matches("# ")) {
        if let Some(heading) = line.strip_prefix('[') {
            table = heading.trim_matches(['[', ']']).to_owned();
            tables.insert(table.split('.').next().unwrap().to_owned());
            keys.insert(table.clone());
        } else if let Some((key, _)) = line.split_once(" = ") {
            keys.insert(format!("{table}.{key}"));
        }
    }
    let mut seen = BTreeSet::new();
    for (page, text) in pages() {
        for name in text.lines().flat_map(|line| line.split('`').skip(1).step_by(2)) {
            // `log.format = "text"` names a key as well.
            let name = name.split(" = ").next().unwrap();
            let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || matches!(byte, b'_' | b'.'));
            let of_a_table = name.split_once('.').is_some_and(|(first, key)| tables.contains(first) && key != "rs");
            if plain && of_a_table {
                assert!(keys.contains(name), "{}: there is no {name}", page.display());
                seen.insert(name.to_owned());
            }
        }
    }
    assert!(seen.len() > 40, "{seen:?}");
}

/// Compares the file at `path` with what `generate` makes of it; `make docs` (SIDELINK_DOCS=write) writes it.
pub fn generated(path: &str, generate: impl FnOnce(&str) -> String) -> String {
    let present = std::fs::read_to_string(root().join(path)).unwrap();
    let text = generate(&present);
    if std::env::var_os("SIDELINK_DOCS").is_some_and(|value| value == "write") {
        std::fs::write(root().join(path), &text).unwrap();
    } else {
        assert!(present == text, "{path} is out of date: run `make docs`");
    }
    text
}

#[test]
fn generated_files_are_up_to_date() {
    generated("config/sidelink.toml", |_| sidelink::config::shipped());
    for (path, reference) in [
        ("docs/CONFIGURATION.md", sidelink::config::reference()),
        ("docs/ERRORS.md", format!("\n{}", sidelink::error::reference())),
        ("docs/LOGGING.md", format!("\n{}", sidelink::telemetry::log::events::reference())),
    ] {
        generated(path, |page| {
            let (by_hand, _) = page.split_once(GENERATED).unwrap_or_else(|| panic!("{path} has no {GENERATED}"));
            format!("{by_hand}{GENERATED}\n{reference}")
        });
    }
}

/// The rest of a page after this line is generated.
const GENERATED: &str = "<!-- Generated from the program by `make docs`. -->";

#[test]
fn readme_shows_the_errors_that_check_prints() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let shown: String =
        readme.lines().filter(|line| line.starts_with("sidelink.toml:")).map(|line| format!("{line}\n")).collect();
    let directory = tempfile::tempdir().unwrap();
    let config = "[upstream]\nendpoint = \"https://h\"\ndeadlin = \"5s\"\nconnect_timeout = 2\n";
    std::fs::write(directory.path().join("sidelink.toml"), config).unwrap();
    let mut check = Command::new(env!("CARGO_BIN_EXE_sidelink"));
    let output = check.args(["check", "--config", "sidelink.toml"]).current_dir(directory.path()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), shown);
}

/// The page lists the formats of signed links, and their parameters, as the code does.
#[test]
fn the_page_of_links_lists_every_format_that_is_read() {
    let page = std::fs::read_to_string(root().join("docs/LINKS.md")).unwrap();
    let listed: Vec<&str> = page.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    let expected: Vec<String> = FORMATS
        .iter()
        .map(|format| {
            let names: Vec<String> = format.times.iter().map(|time| format!("`{}`", time.name)).collect();
            let names = if names.is_empty() { "any".to_owned() } else { names.join(", ") };
            format!("| {} | {names} | ", format.name)
        })
        .collect();
    assert_eq!(listed.len(), expected.len());
    for (row, expected) in listed.iter().zip(&expected) {
        assert!(row.starts_with(expected) && row.matches(" | ").count() == 3, "{row}: {expected}");
        assert!(row.contains("](https://") || row.contains("| none"), "{row}: the vendor's page");
    }
}

/// The blocks of this language in a page.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let text = std::fs::read_to_string(root().join(page)).unwrap();
    let begin = format!("\n```{language}\n");
    text.split(&begin).skip(1).map(|block| block.split("\n```").next().unwrap().to_owned()).collect()
}

#[test]
fn the_page_of_batch_apis_has_descriptions_that_are_accepted() {
    let blocks = blocks("docs/BATCH_APIS.md", "toml");
    assert_eq!(blocks.len(), 5);
    for block in blocks {
        let text = format!("[upstream]\nendpoint = \"https://h\"\n{block}\n");
        let config = Config::parse(&text).unwrap_or_else(|errors| panic!("{block}\n{errors}"));
        assert_eq!(config.batch.len(), 1, "{block}");
    }
}

/// What the example's keys name is in its recorded request and answer.
#[test]
fn the_page_of_batch_apis_describes_its_recorded_exchange() {
    let block =
        blocks("docs/BATCH_APIS.md", "toml").into_iter().find(|block| block.contains("\"thumbnails\"")).unwrap();
    let api = Config::parse(&format!("[upstream]\nendpoint = \"https://h\"\n{block}\n")).unwrap().batch.remove(0);
    let exchange = blocks("docs/BATCH_APIS.md", "http");
    let [request, response] = exchange.as_slice() else { panic!("{exchange:?}") };
    let json =
        |message: &str| -> serde_json::Value { serde_json::from_str(message.split_once("\n\n").unwrap().1).unwrap() };
    let at = |value: &serde_json::Value, place: &dyn std::fmt::Display| value.pointer(&place.to_string()).cloned();

    let (line, headers) = request.split_once('\n').unwrap();
    let target = line.strip_prefix(&format!("{} ", api.method)).unwrap();
    assert_eq!(api.path.capture(target.split('?').next().unwrap(), "team"), Some("north"));
    assert!(headers.to_lowercase().contains(&format!("{}: ", api.credentials[0])));
    let (body, answer) = (json(request), json(response));
    let asked = at(&body, api.ids.body.as_ref().unwrap()).unwrap();
    let items = at(&answer, &api.items.at).unwrap();
    let (asked, items) = (asked.as_array().unwrap(), items.as_array().unwrap());
    let ids: Vec<_> = asked.iter().map(|element| at(element, api.ids.key.as_ref().unwrap()).unwrap()).collect();
    let answered: Vec<_> = items.iter().map(|item| at(item, api.items.key.as_ref().unwrap()).unwrap()).collect();
    assert_eq!(ids, answered);
    let [link, absent] = items.as_slice() else { panic!("{items:?}") };
    assert!(at(link, &api.items.link).is_some() && at(absent, api.absent.as_ref().unwrap()).is_some());
    for source in &api.expires {
        assert!(matches!(source, ExpirySource::Link) || at(link, source).is_some(), "{source}");
    }
}

/// What `check --request --response` prints of that exchange.
#[test]
fn the_page_of_batch_apis_shows_how_its_recorded_exchange_is_checked() {
    let toml = blocks("docs/BATCH_APIS.md", "toml").into_iter().find(|block| block.contains("\"thumbnails\"")).unwrap();
    let config = Config::parse(&format!("[upstream]\nendpoint = \"https://archive.internal\"\n{toml}\n")).unwrap();
    let exchange = blocks("docs/BATCH_APIS.md", "http");
    let [request, response] = exchange.as_slice() else { panic!("{exchange:?}") };
    let request = recorded::request(request.as_bytes()).unwrap();
    let checked = check(&config, &request, Some(recorded::response(response.as_bytes()).unwrap()));
    assert!(checked.is_kept);
    assert_eq!(blocks("docs/BATCH_APIS.md", "text"), [checked.text.trim_end()]);
}

#[test]
fn the_page_of_batch_apis_lists_each_preset_as_it_is() {
    let page = std::fs::read_to_string(root().join("docs/BATCH_APIS.md")).unwrap();
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| [`")).collect();
    assert_eq!(rows.len(), BatchApi::presets().count());
    for (row, name) in rows.iter().zip(BatchApi::presets()) {
        let api = BatchApi::preset(name).unwrap();
        assert!(row.starts_with(&format!("| [`{name}`](../src/config/batch/presets/{name}.toml) | ")), "{row}");
        assert!(row.contains(&format!(" `{} {}`", api.method, api.path)), "{row}");
        assert!(row.contains(&format!(" | {} | [", api.ids_per_call)) && row.contains("](https://"), "{row}");
        let places = [
            api.ids.query.map(String::from),
            api.ids.body.filter(|_| name != "huawei-osm").map(|body| body.to_string()),
        ];
        let items = api.items.key.into_iter().chain([api.items.link]).map(|place| place.to_string());
        for place in places.into_iter().flatten().chain(items) {
            assert!(row.contains(&format!("`{place}`")), "{name}: {place}");
        }
    }
}
