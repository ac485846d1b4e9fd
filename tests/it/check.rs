//! `check --request --response` shows how a configuration reads a recorded exchange, and no secret of it. The recorded exchanges of the
//! presets are those of the vendors' public pages, with dates that fit.

use std::path::Path;

use sidelink::batch::check::{CheckedExchange, check};
use sidelink::config::Config;
use sidelink::config::batch::BatchApi;
use sidelink::message::recorded;

const PRESETS: [&str; 6] =
    ["huawei-osm", "git-lfs", "google-photos", "autodesk-oss", "supabase-storage", "discord-cdn"];

fn config(apis: &str) -> Config {
    Config::parse(&format!("[upstream]\nendpoint = \"https://h\"\n{apis}")).unwrap()
}

fn with_all_presets() -> Config {
    config(&PRESETS.map(|name| format!("[[batch]]\npreset = \"{name}\"\n")).concat())
}

fn recorded_file(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/exchanges").join(name)).unwrap()
}

fn checked(config: &Config, request: &str, response: Option<&str>) -> CheckedExchange {
    let request = recorded::request(request.as_bytes()).unwrap();
    check(config, &request, response.map(|text| recorded::response(text.as_bytes()).unwrap()))
}

/// The verdict on this request, whose text has `shown` besides.
#[track_caller]
fn is_not_kept(request: &str, response: Option<&str>, shown: &[&str]) {
    let checked = checked(&with_all_presets(), request, response);
    assert!(!checked.is_kept, "{}", checked.text);
    for text in shown {
        assert!(checked.text.contains(text), "{text}\n{}", checked.text);
    }
}

fn lfs() -> (String, String) {
    (recorded_file("git-lfs.request.http"), recorded_file("git-lfs.response.http"))
}

#[test]
fn the_recorded_exchange_of_each_preset_is_read_as_it_is_documented() {
    let config = with_all_presets();
    assert_eq!(BatchApi::presets().collect::<Vec<_>>(), PRESETS);
    for name in PRESETS {
        let [request, response] = ["request", "response"].map(|part| recorded_file(&format!("{name}.{part}.http")));
        let checked = checked(&config, &request, Some(&response));
        crate::documents::generated(&format!("tests/data/exchanges/{name}.checked.txt"), |_| checked.text.clone());
        assert!(checked.is_kept, "{}", checked.text);
        assert!(!checked.text.contains("REPLACED"), "a secret is shown: {}", checked.text);
        for line_ends in [request.replace('\n', "\r\n"), request.replace("Host: ", "X-Host: ")] {
            assert!(crate::check::checked(&config, &line_ends, Some(&response)).is_kept, "{name}");
        }
    }
}

#[test]
fn a_request_alone_is_checked_for_being_a_batch() {
    let checked = checked(&with_all_presets(), &lfs().0, None);
    assert!(checked.is_kept && checked.text.ends_with("verdict     a batch\n"), "{}", checked.text);
}

#[test]
fn a_request_that_is_forwarded_untouched_is_told_why_and_what_did_not_fit() {
    let (request, response) = lfs();
    let response = Some(response.as_str());
    for (change, shown) in [
        (("POST /org", "GET /org"), "none: the path is that of git-lfs, whose batches are POST"),
        (("objects/batch", "locks"), "none: no batch API of the configuration has this path"),
        (
            ("objects/batch", "object/batch"),
            "nearest     git-lfs: POST /{repo..}/info/lfs/objects/batch: segment 5 is \"object\", and has to be objects",
        ),
        (("Authorization:", "X-Other:"), "forwarded untouched (no-credential): it has no credential"),
        (("Accept:", "Origin:"), "forwarded untouched (origin): "),
        (("\"download\"", "\"upload\""), "/operation has to be \"download\", and is \"upload\""),
        (("\"operation\"", "\"op\""), "/operation has to be \"download\", and is not there"),
        (("\"objects\"", "\"things\""), "forwarded untouched (unreadable): its body has no list at ids.body"),
        (
            ("\"objects\": [", "\"objects\": [], \"o\": ["),
            "forwarded untouched (no-ids): the list at ids.body is empty",
        ),
        (("\"oid\": \"1111111\"", "\"id\": \"1111111\""), "element 2 of the list at ids.body has no id at ids.key"),
        (
            ("\"1111111\",\n      \"size\": 123", "\"12345678\",\n      \"size\": 9"),
            "two elements of the list at ids.body have the same id, and differ",
        ),
        (("\"hash_algo\": \"sha256\"", "\"hash_algo\": "), "its body is not JSON"),
        (("Accept:", "Content-Encoding:"), "its body has a Content-Encoding"),
    ] {
        let changed = request.replace(change.0, change.1);
        assert_ne!(changed, request, "{change:?}");
        is_not_kept(&changed, response, &[shown]);
    }
    is_not_kept(&request.replace("\"objects\"", "\"things\""), None, &["ids.body = \"/objects\", ids.key = \"/oid\""]);
    let huawei = recorded_file("huawei-osm.request.http");
    for (change, shown) in [
        ("accessory_ids=1201&other=1", "it has a parameter, or a member of its body, that parameters does not name"),
        ("accessory_ids=1201,7", "its ids are listed in a way that ids.styles does not name, or in two ways"),
        ("accessory_ids=%", "a name in its query cannot be decoded"),
        ("accessory_ids=", "an id in its query is empty"),
        ("accessory_ids=1201&group_id=a", "its group is there twice"),
    ] {
        is_not_kept(&huawei.replace("accessory_ids=1201", change), None, &[shown]);
    }
    let by_query = config(
        "[[batch]]\nname = \"a\"\nmethod = \"POST\"\npath = \"/a\"\nids.query = \"id\"\nitems = { at = \"\", key = \"*\", link = \"\" }",
    );
    let both = checked(&by_query, "POST /a?id=1 HTTP/1.1\nAuthorization: t\n\n{}", None);
    assert!(!both.is_kept && both.text.contains("it has both a query and a body"), "{}", both.text);
    is_not_kept(&format!("{}x", huawei.trim_end().to_owned() + "\n\n"), None, &["it has both a query and a body"]);
}

#[test]
fn an_answer_of_which_something_is_not_kept_is_told_why() {
    let (request, response) = lfs();
    for (change, shown) in [
        (("200 OK", "403 Forbidden"), "not kept: an answer with another status than 200 is passed on as it came"),
        (("\"objects\"", "\"things\""), "not kept: it has no list at items.at"),
        (("\"12345678\"", "\"7\""), "not kept: item 2 is for an id that was not asked for"),
        (("\"12345678\"", "\"1111111\""), "not kept: item 2 is the second one for its id"),
        (("\"oid\": \"12345678\"", "\"id\": \"12345678\""), "not kept: item 2 has no id at items.key"),
        (("\"hash_algo\": \"sha256\"", "\"hash_algo\": "), "not kept: it is not JSON, or is cut short"),
        (("2016-11-10T15:29:07Z", "tomorrow"), "expires at an unreadable time: /actions/download/expires_at"),
        (
            ("2016-11-10T15:29:07Z", "2016-11-10T15:14:50Z"),
            "not kept: its life left is below `freshness.min_remaining`",
        ),
        (("some-download.com", "h/?sig=SECRET"), "the URL is signed, and of no format whose expiry is read"),
        (("some-download.com", "h/?sig=SECRET"), "leave \"link\" out of expires if its fields alone say when it ends"),
        (("\"href\"", "\"herf\""), "not kept: it has no link; if such an item has none, name the member"),
        (("Date:", "Vary: Cookie\nDate:"), "not kept: the endpoint's Vary names something outside of the scope"),
        (("Date:", "Cache-Control: no-store\nDate:"), "not kept: the endpoint's Cache-Control or Expires forbids it"),
    ] {
        let changed = response.replace(change.0, change.1);
        assert_ne!(changed, response, "{change:?}");
        is_not_kept(&request, Some(&changed), &[shown]);
        assert!(!checked(&with_all_presets(), &request, Some(&changed)).text.contains("SECRET"));
    }
}

#[test]
fn an_expiry_in_seconds_is_shown_where_it_was_found() {
    let (request, response) = lfs();
    let response = response.replace("\"expires_at\": \"2016-11-10T15:29:07Z\"", "\"expires_in\": 900");
    let checked = checked(&with_all_presets(), &request, Some(&response));
    let line = "expires 2016-11-10T15:29:07Z: /actions/download/expires_in, 900 seconds from then";
    assert!(checked.is_kept && checked.text.contains(line), "{}", checked.text);
}

#[test]
fn a_batch_of_several_calls_shows_the_first_one() {
    let ids: Vec<String> = (0..60).map(|id| format!("mediaItemIds={id}")).collect();
    let request = format!("GET /v1/mediaItems:batchGet?{} HTTP/1.1\nauthorization: Bearer x\n\n", ids.join("&"));
    let checked = checked(&with_all_presets(), &request, None);
    assert!(checked.text.contains("2 of up to 50 ids; the first:\n"), "{}", checked.text);
    assert!(checked.text.contains("&mediaItemIds=49\n") && !checked.text.contains("mediaItemIds=50"));
}

#[test]
fn the_content_type_of_the_body_of_a_get_is_shown_in_the_scope_where_it_counts() {
    for (media_type, counts) in [("application/json", false), ("text/plain", true)] {
        let body = r#"{"accessory_ids":["1"]}"#;
        let head = "GET /v2/servicerequest/accessorys/access-urls HTTP/1.1\nHost: h\nX-Auth-Token: t\n";
        let request = format!("{head}Content-Type: {media_type}\nContent-Length: {}\n\n{body}", body.len());
        let text = checked(&with_all_presets(), &request, None).text;
        assert!(text.contains("form        body"), "{text}");
        assert_eq!(text.contains("header content-type"), counts, "{text}");
    }
}

#[test]
fn an_answer_with_a_flag_is_an_error_by_its_value_and_a_flag_named_as_a_code_is_told() {
    let table = |errors: &str| {
        format!(
            "[[batch]]\nname = \"files\"\npath = \"/f\"\nids = {{ body = \"/ids\" }}\nitems = {{ at = \"/files\", key = \"/id\", link = \"/url\" }}\nerrors = {errors}"
        )
    };
    let request = "POST /f HTTP/1.1\nauthorization: Bearer x\n\n{\"ids\":[\"1\"]}";
    let answer =
        |ok: bool| format!("HTTP/1.1 200 OK\n\n{{\"ok\":{ok},\"files\":[{{\"id\":\"1\",\"url\":\"http://h/1\"}}]}}");
    let unless = config(&table("{ unless = { \"/ok\" = true } }"));
    assert!(checked(&unless, request, Some(&answer(true))).is_kept);
    let failed = checked(&unless, request, Some(&answer(false)));
    assert!(!failed.is_kept && failed.text.contains("it has another value than errors.unless says"), "{}", failed.text);
    let code = config(&table("{ code = \"/ok\" }"));
    for ok in [true, false] {
        let flag = checked(&code, request, Some(&answer(ok)));
        assert!(!flag.is_kept && flag.text.contains("a flag is no code; say in errors.unless"), "{}", flag.text);
    }
}
