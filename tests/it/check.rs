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
        (("Authorization:", "X-Other:"), "headers     host, accept, content-type, x-other\n"),
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
        (
            ("\"objects\"", "\"things\""),
            "not kept: it has no list at items.at: no /objects: the answer is an object with hash_algo, things, transfer; ",
        ),
        (("\"12345678\"", "\"7\""), "not kept: item 2 is for 7, which was not asked for"),
        (("\"12345678\"", "\"1111111\""), "not kept: item 2 is the second one for 1111111"),
        (
            ("\"oid\": \"12345678\"", "\"id\": \"12345678\""),
            "not kept: item 2 has no id at items.key: no /oid: item 2 is an object with error, id, size; ",
        ),
        (("\"hash_algo\": \"sha256\"", "\"hash_algo\": "), "not kept: it is not JSON, or is cut short, at line "),
        (("2016-11-10T15:29:07Z", "tomorrow"), "expires at an unreadable time: /actions/download/expires_at"),
        (
            ("2016-11-10T15:29:07Z", "2016-11-10T15:14:50Z"),
            "not kept: its life left, 42s, is not above `freshness.min_remaining`, 1m",
        ),
        (("some-download.com", "h/?sig=SECRET"), "the URL is signed, and of no format whose expiry is read"),
        (("some-download.com", "h/?sig=SECRET"), "leave \"link\" out of expires if its fields alone say when it ends"),
        (
            ("\"href\"", "\"herf\""),
            "not kept: it has no link at items.link: no /actions/download/href: /actions/download is an object with expires_at, ",
        ),
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
fn a_zero_time_is_shown_as_what_says_nothing_and_not_as_the_expiry_beside_it() {
    let (request, response) = lfs();
    let zero = "\"expires_at\": \"0001-01-01T00:00:00Z\"";
    let response =
        response.replace("\"expires_at\": \"2016-11-10T15:29:07Z\"", &format!("{zero}, \"expires_in\": 900"));
    let checked = checked(&with_all_presets(), &request, Some(&response));
    for line in [
        "expires 2016-11-10T15:29:07Z: /actions/download/expires_in, 900 seconds from then",
        "not there   /actions/download/expires_at is Go's zero time, which says nothing (expires)",
    ] {
        assert!(checked.is_kept && checked.text.contains(line), "{}", checked.text);
    }
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
    assert!(
        !failed.is_kept && failed.text.contains("not kept: it is an error by errors.unless: /ok is not true; "),
        "{}",
        failed.text
    );
    let code = config(&table("{ code = \"/ok\" }"));
    for ok in [true, false] {
        let flag = checked(&code, request, Some(&answer(ok)));
        assert!(!flag.is_kept && flag.text.contains("a flag is no code; say in errors.unless"), "{}", flag.text);
    }
}

/// An API that a user describes, with this in place of that, and its recorded exchange.
struct Described {
    table: String,
    request: String,
    response: String,
}

impl Described {
    /// With ids in a body.
    fn in_a_body() -> Self {
        Self {
            table: "[[batch]]\nname = \"previews\"\npath = \"/previews\"\nids = { body = \"/docs\", key = \"/doc\" }\nitems = { at = \"/previews\", key = \"/key\", link = \"/url\" }\nexpires = [\"/ttl\", \"link\"]\nabsent = \"/error\"\nerrors = { unless = { \"/ok\" = true } }\ncredentials = [\"x-api-key\"]\n".to_owned(),
            request: "POST /previews HTTP/1.1\nHost: h\nX-Api-Key: SECRET\n\n{\"docs\":[{\"doc\":\"7\",\"rev\":2}],\"width\":1}\n".to_owned(),
            response: "HTTP/1.1 200 OK\nDate: Thu, 26 Nov 2026 12:30:00 GMT\n\n{\"ok\":true,\"previews\":[{\"key\":\"7\",\"url\":\"https://h/7?size=SECRET\",\"ttl\":900}],\"region\":\"north\"}\n".to_owned(),
        }
    }

    /// With ids in a query.
    fn in_a_query(styles: &str) -> Self {
        Self {
            table: format!(
                "[[batch]]\nname = \"files\"\npath = \"/files\"\nids = {{ query = \"ids\", styles = {styles} }}\nitems = {{ at = \"\", key = \"/id\", link = \"/url\" }}\n"
            ),
            request: "GET /files?ids=7%2C8 HTTP/1.1\nAuthorization: SECRET\n".to_owned(),
            response:
                "HTTP/1.1 200 OK\n\n[{\"id\":\"7\",\"url\":\"https://h/7\"},{\"id\":\"8\",\"url\":\"https://h/8\"}]\n"
                    .to_owned(),
        }
    }

    fn with(mut self, this: &str, in_place_of: &str) -> Self {
        for text in [&mut self.table, &mut self.request, &mut self.response] {
            *text = text.replace(in_place_of, this);
        }
        self
    }

    /// What `check` shows, and whether it is satisfied.
    #[track_caller]
    fn shows(&self, is_kept: bool, lines: &[&str]) {
        let checked = checked(&config(&self.table), &self.request, Some(&self.response));
        assert_eq!(checked.is_kept, is_kept, "{}", checked.text);
        for line in lines {
            assert!(checked.text.contains(line), "{line}\n{}", checked.text);
        }
        assert!(!checked.text.contains("SECRET"), "{}", checked.text);
    }
}

#[test]
fn a_misspelt_place_of_an_expiry_is_told_and_fails_where_no_other_is_there() {
    let misspelt = || Described::in_a_body().with("\"/tll\"", "\"/ttl\"");
    let told = "not there   no /tll: the item is an object with key, ttl, url (expires)\n";
    misspelt().shows(
        false,
        &[told, "1 of 1 items could be kept, but no link says when it ends: neither its URL nor what expires names\n"],
    );
    let by_url = misspelt().with("https://h/7?Expires=1795696800&x=", "https://h/7?size=");
    by_url.shows(true, &[told, "verdict     a batch; 1 of 1 items could be kept\n"]);
    Described::in_a_body().with("[\"/ttl\"]", "[\"/ttl\", \"link\"]").shows(true, &[]);
}

#[test]
fn a_url_that_ends_earlier_than_the_fields_that_count_alone_is_told() {
    let alone = Described::in_a_body()
        .with("[\"/ttl\"]", "[\"/ttl\", \"link\"]")
        .with("https://h/7?Expires=1795696800&x=", "https://h/7?size=");
    let wanted = "a URL ends earlier than its fields say; name \"link\" in expires as well\n";
    alone
        .shows(false, &["expires 2026-11-26T12:40:00Z: the URL, `Expires` of any vendor; it does not count\n", wanted]);
    Described { table: alone.table.replace("\"/ttl\"", "\"/ttl\", \"link\""), ..alone }.shows(true, &[]);
}

#[test]
fn a_place_of_errors_that_a_good_answer_does_not_have_is_told() {
    let told = "not there   no /okay: the answer is an object with ok, previews, region (errors.unless)\n";
    Described::in_a_body().with("\"/okay\"", "\"/ok\"").shows(true, &[told]);
    let all_absent = "all ids count as absent: if it is an error, errors.code or errors.unless has to tell it\n";
    Described::in_a_query("\"encoded-comma\"")
        .with("[]", "[{\"id\":\"7\",\"url\":\"https://h/7\"},{\"id\":\"8\",\"url\":\"https://h/8\"}]")
        .shows(false, &[all_absent]);
}

#[test]
fn a_list_of_ids_between_encoded_commas_is_read_by_its_style_which_is_named_where_it_lacks() {
    let hint = |style: &str| format!("if it is a list, name \"{style}\" in ids.styles; such an answer is passed on");
    Described::in_a_query("\"comma\"")
        .shows(false, &["item 1 is for 7, which was not asked for; ", &hint("encoded-comma")]);
    Described::in_a_query("\"repeated\"").with("7,8", "7%2C8").shows(false, &[&hint("comma")]);
    Described::in_a_query("\"encoded-comma\"")
        .shows(true, &["form        encoded-comma\n", "call        GET /files?ids=7%2C8\n"]);
}

#[test]
fn an_exchange_that_was_edited_is_read_to_its_end_and_one_that_was_cut_is_told() {
    let recorded = Described::in_a_body()
        .with("Date: Thu, 26 Nov 2026 12:30:00 GMT\nContent-Length: 40\n", "Date: Thu, 26 Nov 2026 12:30:00 GMT\n");
    recorded.shows(true, &["1 of 1 items could be kept"]);
    let cut = recorded.with("Content-Length: 200", "Content-Length: 40").with("", "\"region\":\"north\"}");
    cut.shows(false, &["it is not JSON, or is cut short, at line 1, column 78 of its body; Content-Length says 200 bytes, and the file has 78"]);
}

#[test]
fn what_stands_in_place_of_what_is_described_is_named() {
    for (this, in_place_of, lines) in [
        (
            "ids = { body = \"/docs\" }",
            "ids = { body = \"/docs\", key = \"/doc\" }",
            &[
                "found       element 1 is an object with doc, rev\n",
                "element 1 of the list at ids.body is an object: set ids.key",
            ][..],
        ),
        (
            "key = \"/id\"",
            "key = \"/doc\"",
            &[
                "found       no /id: element 1 is an object with doc, rev\n",
                "element 1 of the list at ids.body has no id at ids.key",
            ],
        ),
        ("\"doc\":7", "\"doc\":\"7\"", &["element 1 of the list at ids.body has a number as its id: set ids.numbers"]),
        (
            "\"doc\":null",
            "\"doc\":\"7\"",
            &["found       /doc is null\n", "element 1 of the list at ids.body has no string as its id"],
        ),
        (
            "\"doc\":\"\"",
            "\"doc\":\"7\"",
            &["element 1 of the list at ids.body has an id that is empty, longer than ids.chars"],
        ),
        (
            "body = \"/ids\"",
            "body = \"/docs\"",
            &["found       no /ids: the body is an object with docs, width\n", "its body has no list at ids.body"],
        ),
        ("\"key\":7", "\"key\":\"7\"", &["item 1 has no id at items.key: /key is a number; set ids.numbers"]),
        (
            "\"/href\"",
            "\"/url\"",
            &[
                "it has no link at items.link: no /href: the item is an object with key, ttl, url; nor what absent names: no /error: the item is an object with",
            ],
        ),
        (
            "at = \"/links\"",
            "at = \"/previews\"",
            &["it has no list at items.at: no /links: the answer is an object with ok, previews, region"],
        ),
        (
            "\"previews\":{\"7\":{\"url\":\"u\"}}",
            "\"previews\":[{\"key\":\"7\",\"url\":\"https://h/7?size=SECRET\",\"ttl\":900}]",
            &["/previews is an object with 7; of an object with an item for each id, items.key is \"*\""],
        ),
        (
            "key = \"*\"",
            "key = \"/key\"",
            &["it has no object at items.at: /previews is a list of 1; of a list, items.key says where"],
        ),
        (
            "\"ttl\":\"900\"",
            "\"ttl\":900",
            &["not kept: /ttl is a string, and no time: RFC 3339 with a zone, or a number of seconds"],
        ),
        (
            "\"ttl\":\"2026-11-26T12:40:00\"",
            "\"ttl\":900",
            &["not kept: /ttl is a string, and no time: RFC 3339 with a zone, or a number of seconds"],
        ),
        (
            "\"ttl\":9e14",
            "\"ttl\":900",
            &["not kept: its expiry, in the URL or in a field, cannot be read or is further than ten years away"],
        ),
        (
            "path = \"/previews/\"",
            "path = \"/previews\"",
            &["nearest     previews: POST /previews/: there is no slash at its end\n"],
        ),
        ("X-Key: SECRET", "X-Api-Key: SECRET", &["credential  credentials = x-api-key\nheaders     host, x-key\n"]),
        (
            "a-header-that-is-longer-than-any-credential: x\nX-Key",
            "X-Api-Key",
            &["headers     host, x-key, others whose names are no credential's\n"],
        ),
    ] {
        let changed = Described::in_a_body().with(this, in_place_of);
        changed.shows(false, lines);
    }
}
