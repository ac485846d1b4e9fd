//! A batch API is read from the TOML: a preset, a preset with keys overridden, or one that is written out.

use http::{HeaderName, Method};
use proptest::prelude::*;
use serde_json::json;
use sidelink::config::Config;
use sidelink::config::batch::{BatchApi, ExpirySource, Style};

use super::errors_of;

/// The batch APIs of a file with these tables.
fn apis(tables: &str) -> Vec<BatchApi> {
    let text = format!("[upstream]\nendpoint = \"http://h\"\n{tables}");
    Config::parse(&text).unwrap_or_else(|errors| panic!("{text}\n{errors}")).batch
}

fn api(table: &str) -> BatchApi {
    let mut apis = apis(&format!("[[batch]]\n{table}"));
    assert_eq!(apis.len(), 1);
    apis.remove(0)
}

fn preset(name: &str) -> BatchApi {
    BatchApi::preset(name).unwrap_or_else(|| panic!("{name} cannot be read"))
}

/// The text of a preset's file.
fn file(name: &str) -> String {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config/batch/presets");
    std::fs::read_to_string(directory.join(format!("{name}.toml"))).unwrap()
}

fn names(headers: &[HeaderName]) -> Vec<&str> {
    headers.iter().map(HeaderName::as_str).collect()
}

#[test]
fn without_a_table_there_is_the_preset_huawei_osm_alone() {
    assert_eq!(apis(""), [preset("huawei-osm")]);
    let empty = Config::parse("batch = []\n[upstream]\nendpoint = \"http://h\"").unwrap();
    assert_eq!(empty.batch, [preset("huawei-osm")]);
    assert_eq!(api("preset = \"git-lfs\""), preset("git-lfs"), "any other takes its place");
}

#[test]
fn there_are_six_presets_each_named_as_its_file() {
    let known: Vec<&str> = BatchApi::presets().collect();
    let expected = ["huawei-osm", "git-lfs", "google-photos", "autodesk-oss", "supabase-storage", "discord-cdn"];
    assert_eq!(known, expected);
    for name in known {
        assert_eq!(&*preset(name).name, name);
    }
    assert_eq!(BatchApi::preset("git"), None);
}

/// So that a preset can be copied and changed.
#[test]
fn a_preset_is_what_its_file_says_under_another_name() {
    for name in BatchApi::presets() {
        let text = file(name);
        let other = text.replace(&format!("name = \"{name}\""), "name = \"other\"");
        assert_ne!(other, text);
        let written = apis(&other);
        assert_eq!(written, [BatchApi { name: "other".into(), ..preset(name) }]);
        let renamed = api(&format!("preset = \"{name}\"\nname = \"other\""));
        assert_eq!(written, [renamed]);
    }
}

#[test]
fn each_preset_names_its_public_source() {
    for name in BatchApi::presets() {
        assert!(file(name).contains("# Source: https://"), "{name}");
    }
}

#[test]
fn all_presets_together_are_a_configuration_that_prints_and_reads_back_as_the_same() {
    let tables: String = BatchApi::presets().map(|name| format!("[[batch]]\npreset = \"{name}\"\n")).collect();
    let config = Config::parse(&format!("[upstream]\nendpoint = \"http://h\"\n{tables}")).unwrap();
    assert_eq!(config.batch, BatchApi::presets().map(preset).collect::<Vec<_>>());
    let shown = config.to_string();
    assert!(!shown.contains("preset"), "{shown}");
    assert_eq!(Config::parse(&shown).unwrap(), config);
}

#[test]
fn huawei_osm_has_the_forms_headers_and_errors_of_its_reference() {
    let api = preset("huawei-osm");
    assert_eq!(
        (&api.method, api.path.to_string().as_str()),
        (&Method::GET, "/v2/servicerequest/accessorys/access-urls")
    );
    assert_eq!(api.ids.query.as_deref(), Some("accessory_ids"));
    assert_eq!(api.ids.styles, [Style::Repeated, Style::Comma]);
    assert_eq!(api.ids.body.map(|body| body.to_string()).as_deref(), Some("/accessory_ids"));
    assert_eq!((api.ids.key, api.ids.numbers, api.ids.chars), (None, false, 64));
    assert_eq!(api.group.as_deref(), Some("group_id"));
    assert_eq!(api.parameters, Some(vec!["group_id".into()]));
    assert_eq!(api.items.envelope.as_deref(), Some(r#"{"accessory_urls":[]}"#));
    assert_eq!(names(&api.credentials), ["x-auth-token"]);
    assert!(api.signed);
    let scope = ["x-language", "x-time-zone", "x-site", "x-domain-id", "x-project-id", "x-enterprise-project-id"];
    assert_eq!(names(&api.scope_headers), scope);
    let bytes = |name: &str| api.header_bytes.iter().find(|(known, _)| known == name).map(|(_, bytes)| *bytes);
    assert_eq!(
        ["x-auth-token", "x-security-token", "x-site", "x-domain-id"].map(bytes),
        [5000, 5000, 32, 64].map(Some)
    );
    assert_eq!(api.errors.code.map(|code| code.to_string()).as_deref(), Some("/error_code"));
    assert_eq!(api.errors.of_request, [Box::from("OSM.01010001")]);
    assert_eq!(api.delete.map(|path| path.to_string()).as_deref(), Some("/v2/servicerequest/accessorys/{id}"));
    assert_eq!(api.ids_per_call, 100);
}

#[test]
fn a_key_beside_a_preset_overrides_that_key_alone() {
    let over =
        api("ids_per_call = 7\npreset = \"git-lfs\"\nids = { chars = 64 }\n[batch.errors]\nmedia_type = \"a/b\"\n");
    let mut expected = preset("git-lfs");
    (expected.ids_per_call, expected.ids.chars, expected.errors.media_type) = (7, 64, "a/b".into());
    assert_eq!(over, expected);
    let methods = api("preset = \"huawei-osm\"\nmethod = \"POST\"");
    assert_eq!(methods, BatchApi { method: Method::POST, ..preset("huawei-osm") });
    assert_eq!(
        api("preset = \"autodesk-oss\"\nitems = { key = \"/key\" }").items.link,
        preset("autodesk-oss").items.link
    );
    assert_eq!(api("preset = \"git-lfs\"\nitems = { key = \"*\" }").items.key, None);
}

#[test]
fn a_member_beside_a_preset_overrides_that_member_alone() {
    let over = api("preset = \"huawei-osm\"\nheader_bytes = { X-Auth-Token = 9000, x-tenant = 8 }");
    let mut expected = preset("huawei-osm").header_bytes;
    expected.iter_mut().filter(|(name, _)| name == "x-auth-token").for_each(|(_, bytes)| *bytes = 9000);
    expected.push(("x-tenant".parse().unwrap(), 8));
    expected.sort_by(|(one, _), (other, _)| one.as_str().cmp(other.as_str()));
    assert_eq!(over.header_bytes, expected);
    let when = api("preset = \"git-lfs\"\nwhen = { \"/hash_algo\" = \"sha256\" }").when;
    let shown: Vec<_> = when.iter().map(|(place, value)| (place.to_string(), value.clone())).collect();
    assert_eq!(shown, [("/hash_algo".into(), json!("sha256")), ("/operation".into(), json!("download"))]);
}

/// The least that a description says.
const LEAST: &str = "name = \"files\"\npath = \"/links\"\nitems = { at = \"\", key = \"*\", link = \"\" }\n";

#[test]
fn what_a_description_leaves_out_has_a_default() {
    let api = api(&format!("{LEAST}ids = {{ query = \"id\" }}"));
    assert_eq!((api.method, api.ids.styles, api.ids.chars), (Method::GET, vec![Style::Repeated], 4096));
    assert_eq!((api.group, api.parameters, api.when, api.absent, api.delete), (None, None, vec![], None, None));
    assert_eq!(api.expires, [ExpirySource::Link]);
    assert_eq!(names(&api.credentials), ["authorization"]);
    assert_eq!((api.signed, api.ids_per_call), (false, 100));
    assert_eq!((api.scope_headers, api.header_bytes, api.unordered), (vec![], vec![], vec![]));
    assert_eq!(api.errors.body, preset("huawei-osm").errors.body);
    assert_eq!((&*api.errors.media_type, api.errors.code), ("application/json", None));
}

#[test]
fn the_method_is_post_where_ids_are_in_a_body_alone() {
    for (ids, method) in [
        ("body = \"/ids\"", Method::POST),
        ("query = \"ids\"", Method::GET),
        ("query = \"ids\", body = \"/ids\"", Method::GET),
    ] {
        assert_eq!(api(&format!("{LEAST}ids = {{ {ids} }}")).method, method, "{ids}");
    }
    let written = api(&format!("{LEAST}ids = {{ body = \"/ids\" }}\nmethod = \"GET\""));
    assert_eq!(written.method, Method::GET);
}

#[test]
fn conditions_are_any_values_of_json() {
    let table = "when = { \"/a\" = 1, \"/b/0\" = [true, \"x\", 1.5], \"/c~1d\" = { e = { f = -2 } } }";
    let mut expected = [("/a", json!(1)), ("/b/0", json!([true, "x", 1.5])), ("/c~1d", json!({"e": {"f": -2}}))];
    let api = api(&format!("{LEAST}ids = {{ body = \"/ids\" }}\n{table}"));
    for ((place, value), (written, expected)) in api.when.iter().zip(&mut expected) {
        assert_eq!((place.to_string().as_str(), value), (*written, &*expected));
    }
    assert_eq!(api.when.len(), 3);
    let mut config = Config::parse("[upstream]\nendpoint = \"http://h\"").unwrap();
    config.batch = vec![api];
    assert_eq!(Config::parse(&config.to_string()).unwrap(), config);
}

/// A header may be named for all batch APIs, and again for one.
#[test]
fn a_scope_header_may_be_one_of_callers_as_well() {
    let text = "[callers]\nscope_headers = [\"x-language\", \"x-tenant\"]\n";
    assert_eq!(apis(text), [preset("huawei-osm")]);
}

/// As `toml` writes a table: with a heading of its own, or in one line.
#[test]
fn inner_tables_may_have_headings() {
    let inline = api(&format!("{LEAST}ids = {{ body = \"/ids\", key = \"/id\" }}\nwhen = {{ \"/a\" = 1 }}"));
    let headed = api(&format!("{LEAST}[batch.ids]\nbody = \"/ids\"\nkey = \"/id\"\n[batch.when]\n\"/a\" = 1\n"));
    assert_eq!(inline, headed);
    let text = "batch = [{ preset = \"git-lfs\" }, { preset = \"discord-cdn\" }]\n[upstream]\nendpoint = \"http://h\"";
    assert_eq!(Config::parse(text).unwrap().batch, [preset("git-lfs"), preset("discord-cdn")]);
}

proptest! {
    #[test]
    fn no_damage_to_a_preset_panics(
        name in prop::sample::select(BatchApi::presets().collect::<Vec<_>>()),
        at in 0usize..4000,
        gone in 0usize..40,
        junk in "[\\[\\]\"'=.\n#a-z0-9/{}*~-]{0,6}",
    ) {
        let text = file(name);
        // A place within a character is that before it.
        let before = |at: usize| (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap();
        let (at, end) = (before(at), before(at + gone));
        let damaged = format!("[upstream]\nendpoint = \"http://h\"\n{}{junk}{}", &text[..at], &text[end..]);
        // Warnings name lines, which differ.
        let parsed = |text: &str| Config::parse(text).map(|config| Config { warnings: Vec::new(), ..config });
        if let Ok(config) = parsed(&damaged) {
            prop_assert_eq!(parsed(&config.to_string()).map_err(|errors| errors.to_string()), Ok(config));
        }
    }

    #[test]
    fn no_value_of_a_key_panics(
        key in prop::sample::select(vec!["name", "path", "ids.body", "ids.query", "items.at", "items.key", "absent", "delete", "errors.body", "items.envelope", "media_type"]),
        value in "[ -~é]{0,12}",
    ) {
        let value = toml::Value::String(value);
        let text = format!("[upstream]\nendpoint = \"http://h\"\n[[batch]]\npreset = \"git-lfs\"\n{key} = {value}\n");
        if let Ok(config) = Config::parse(&text) {
            prop_assert_eq!(Config::parse(&config.to_string()).map_err(|errors| errors.to_string()), Ok(config));
        }
    }
}

#[test]
fn a_list_that_is_a_table_is_refused_with_what_to_write() {
    let errors = errors_of("[batch]\npreset = \"git-lfs\"");
    assert!(errors[0].2.contains("write [[batch]] above each"), "{errors:?}");
}
