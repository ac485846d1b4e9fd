//! Every error of a `[[batch]]` names line and key; one fault is one error.

use sidelink::config::Config;
use sidelink::config::batch::BatchApi;

use super::errors_of;

/// A description whose lines are 4 and later.
const LEAST: &str = "[[batch]]\nname = \"files\"\npath = \"/links\"\nids = { body = \"/ids\" }\nitems = { at = \"/items\", key = \"/id\", link = \"/url\" }\n";

/// Asserts that each of these tables has exactly this error: line, key, and what its message says.
fn each_is_one_error(cases: &[(&str, usize, &str, &str)]) {
    for (table, line, key, said) in cases {
        let errors = errors_of(table);
        let is_it = |(at, name, message): &(usize, String, String)| at == line && name == key && message.contains(said);
        assert!(matches!(&errors[..], [error] if is_it(error)), "{table}\nline {line}: {key}: {said}\n{errors:#?}");
    }
}

#[test]
fn an_unknown_preset_comes_with_the_nearest() {
    each_is_one_error(&[
        (
            "[[batch]]\npreset = \"git-lsf\"",
            4,
            "batch.preset",
            "there is no preset \"git-lsf\"; did you mean \"git-lfs\"?",
        ),
        ("[[batch]]\npreset = \"zzz\"", 4, "batch.preset", "known: huawei-osm, git-lfs, google-photos, autodesk-oss, "),
        ("[[batch]]\npreset = 7", 4, "batch.preset", "must be a preset's name, is an integer"),
        (
            "[[batch]]\npresett = \"git-lfs\"\nname = \"a\"\npath = \"/\"\nids.query = \"a\"\nitems = {at = \"\", key = \"*\", link = \"\"}",
            4,
            "batch.presett",
            "did you mean \"preset\"?",
        ),
    ]);
}

#[test]
fn what_is_mandatory_without_a_preset_is_missing() {
    let keys: Vec<(usize, String)> = errors_of("\n[[batch]]").into_iter().map(|(line, key, _)| (line, key)).collect();
    let expected = ["batch.ids", "batch.items", "batch.name", "batch.path"];
    assert_eq!(keys, expected.map(|key| (4, key.to_owned())));
    each_is_one_error(&[
        (&LEAST.replace("at = \"/items\", ", ""), 7, "batch.items.at", "is missing"),
        (&LEAST.replace("key = \"/id\", ", ""), 7, "batch.items.key", "is missing"),
        (&LEAST.replace("body = \"/ids\"", ""), 6, "batch.ids", "neither where the query nor where the body has ids"),
        (&LEAST.replace(", link = \"/url\"", ""), 7, "batch.items.link", "is missing"),
    ]);
}

#[test]
fn a_pointer_that_is_none_is_refused_where_it_stands() {
    for (key, value) in [
        ("ids.body", "\"ids\""),
        ("ids.key", "\"id\""),
        ("items.at", "\"items\""),
        ("items.key", "\"id\""),
        ("items.link", "\"~\""),
        ("absent", "\"error/code\""),
        ("unordered", "[\"/a\", \"a~2\"]"),
        ("errors.code", "\"$.code\""),
    ] {
        let table = format!("[[batch]]\npreset = \"git-lfs\"\n{key} = {value}");
        each_is_one_error(&[(&table, 5, &format!("batch.{key}"), "is no JSON Pointer (RFC 6901)")]);
    }
    for key in ["ids.key", "items.key", "absent", "errors.code"] {
        let table = format!("[[batch]]\npreset = \"git-lfs\"\n{key} = \"\"");
        each_is_one_error(&[(&table, 5, &format!("batch.{key}"), "is empty")]);
    }
    each_is_one_error(&[
        (
            "[[batch]]\npreset = \"git-lfs\"\nwhen = { operation = \"download\" }",
            5,
            "batch.when",
            "operation: \"operation\" is no JSON Pointer",
        ),
        (
            "[[batch]]\npreset = \"git-lfs\"\n[batch.when]\n\"/a\" = 1\n\"/b\" = 2026-11-26\n",
            7,
            "batch.when",
            "/b: is a date",
        ),
        ("[[batch]]\npreset = \"git-lfs\"\nwhen = { \"/a\" = inf }", 5, "batch.when", "/a: is no number of JSON"),
        ("[[batch]]\npreset = \"git-lfs\"\nwhen = { \"\" = {} }", 5, "batch.when", "the whole body"),
        ("[[batch]]\npreset = \"git-lfs\"\nwhen = \"download\"", 5, "batch.when", "must be a table, is a string"),
        ("[[batch]]\npreset = \"git-lfs\"\nunordered = [\"/a\", \"/a\"]", 5, "batch.unordered", "has \"/a\" twice"),
    ]);
}

#[test]
fn a_path_that_is_none_is_refused_with_the_reason() {
    for (path, reason) in [
        ("links", "does not begin with a slash"),
        ("/{a}/{a}", "has the capture {a} twice"),
        ("/x{a}", "a capture is a whole segment"),
        ("/a?b=c", "write it percent-encoded"),
        ("/{a..}/{b..}", "two captures of several segments"),
    ] {
        let table = LEAST.replace("\"/links\"", &format!("\"{path}\""));
        each_is_one_error(&[(&table, 5, "batch.path", reason)]);
    }
    each_is_one_error(&[
        (&format!("{LEAST}delete = \"/links\""), 8, "batch.delete", "must have a segment {id}"),
        (&format!("{LEAST}delete = \"links/{{id}}\""), 8, "batch.delete", "does not begin with a slash"),
        (&format!("{LEAST}method = \"PUT\""), 8, "batch.method", "must be GET or POST, is \"PUT\""),
    ]);
}

#[test]
fn a_name_is_a_label() {
    for name in ["", "Files", "files_", "1files", "-", "fi les", "é", &"a".repeat(33)] {
        let table = LEAST.replace("\"files\"", &format!("\"{name}\""));
        each_is_one_error(&[(&table, 4, "batch.name", "must be 1 to 32 lower-case letters")]);
    }
    assert_eq!(no_errors(&LEAST.replace("files", "a-2")), 1);
}

#[test]
fn two_batch_apis_differ_in_name_and_route() {
    let other = "[[batch]]\nname = \"other\"\npath = \"/{any..}\"\nids = { body = \"/ids\" }\nitems = { at = \"\", key = \"*\", link = \"\" }\n";
    let overlap = "POST /{any..} overlaps with \"files\" above, /links: a request could be a batch of both";
    let twice = "the name \"files\" is that of a [[batch]] above";
    each_is_one_error(&[
        (
            "[[batch]]\npreset = \"git-lfs\"\n[[batch]]\npreset = \"git-lfs\"",
            6,
            "batch.preset",
            "the name \"git-lfs\" is that",
        ),
        (
            "[[batch]]\npreset = \"git-lfs\"\n[[batch]]\npreset = \"git-lfs\"\nname = \"b\"",
            6,
            "batch.preset",
            "overlaps with \"git-lfs\" above",
        ),
        (&format!("{LEAST}{other}"), 10, "batch.path", overlap),
        (
            &format!("{LEAST}{}", other.replace("\"other\"", "\"files\"").replace("/{any..}", "/b")),
            9,
            "batch.name",
            twice,
        ),
    ]);
    let both = errors_of(&format!("{LEAST}{}", other.replace("\"other\"", "\"files\"")));
    assert_eq!(both.len(), 2, "{both:?}");
    for apart in [
        other.replace("ids = {", "method = \"GET\"\nids = {"),
        other.replace("/{any..}", "/links/"),
        other.replace("/{any..}", "/{any..}/b"),
    ] {
        assert_eq!(no_errors(&format!("{LEAST}{apart}")), 2, "{apart}");
    }
}

/// How many batch APIs a file without errors has.
fn no_errors(tables: &str) -> usize {
    let text = format!("[upstream]\nendpoint = \"http://h\"\n{tables}");
    Config::parse(&text).unwrap_or_else(|errors| panic!("{text}\n{errors}")).batch.len()
}

#[test]
fn there_are_sixteen_batch_apis_at_most() {
    let table =
        |number: usize| LEAST.replace("files", &format!("files-{number}")).replace("/links", &format!("/{number}"));
    let sixteen: String = (0..16).map(table).collect();
    assert_eq!(no_errors(&sixteen), 16);
    let more: String = (0..18).map(table).collect();
    each_is_one_error(&[(&more, 3 + 16 * 5, "batch", "is one too many: there may be 16 batch APIs")]);
}

#[test]
fn what_belongs_to_another_key_is_refused_without_it() {
    let query = LEAST.replace("body = \"/ids\"", "query = \"ids\"");
    each_is_one_error(&[
        (&LEAST.replace("/ids\"", "/ids\", styles = [\"comma\"]"), 6, "batch.ids.styles", "set query"),
        (&query.replace("\"ids\"", "\"ids\", key = \"/id\""), 6, "batch.ids.key", "set body"),
        (&query.replace("\"ids\"", "\"ids\", styles = []"), 6, "batch.ids.styles", "names no style"),
        (
            &query.replace("\"ids\"", "\"ids\", styles = [\"comma\", \"comma\"]"),
            6,
            "batch.ids.styles",
            "names comma twice",
        ),
        (
            &query.replace("\"ids\"", "\"ids\", styles = [\"pipes\"]"),
            6,
            "batch.ids.styles",
            "must be repeated, comma, encoded-comma or brackets",
        ),
        (&query.replace("\"ids\"", "\"\""), 6, "batch.ids.query", "must be a name"),
        (&query.replace("\"ids\"", "\"ids\", chars = 0"), 6, "batch.ids.chars", "must be between 1 and 65536"),
        (&format!("{query}when = {{ \"/a\" = 1 }}"), 8, "batch.when", "set ids.body"),
        (&format!("{query}unordered = [\"/a\"]"), 8, "batch.unordered", "set ids.body"),
        (&format!("{query}group = \"g\"\nparameters = [\"h\"]"), 9, "batch.parameters", "do not have the group \"g\""),
        (&format!("{query}parameters = [\"h\", \"h\"]"), 8, "batch.parameters", "has \"h\" twice"),
        (&format!("{LEAST}signed = true"), 8, "batch.signed", "is a credential of its own here"),
        (
            &format!("{LEAST}credentials = [\"authorization\", \"x-key\"]\nsigned = true"),
            9,
            "batch.signed",
            "is a credential of its own here",
        ),
        (&format!("{query}errors.of_request = [\"E1\"]"), 8, "batch.errors.of_request", "set code"),
    ]);
}

#[test]
fn what_stands_beside_the_ids_is_no_part_of_their_list() {
    let whole = LEAST.replace("\"/ids\"", "\"\"");
    let within = LEAST.replace("\"/ids\"", "\"/wanted/ids\"");
    let beside = "not beside the list of ids, which is at";
    each_is_one_error(&[
        (&format!("{LEAST}when = {{ \"/ids\" = [] }}"), 8, "batch.when", beside),
        (
            &format!("{LEAST}when = {{ \"/a\" = 1, \"/ids/0/b\" = 2 }}"),
            8,
            "batch.when",
            "/ids/0/b, of when, is not beside",
        ),
        (&format!("{within}when = {{ \"/wanted\" = {{}} }}"), 8, "batch.when", beside),
        (&format!("{whole}when = {{ \"/operation\" = \"download\" }}"), 8, "batch.when", "which is at \"\""),
        (&format!("{LEAST}unordered = [\"/a\", \"/ids\"]"), 8, "batch.unordered", "/ids, of unordered, is not beside"),
        (&format!("{within}unordered = \"/wanted\""), 8, "batch.unordered", beside),
        (
            "[[batch]]\npreset = \"git-lfs\"\nids.body = \"\"\nunordered = []",
            5,
            "batch.ids",
            "/operation, of when, is not beside",
        ),
        (&format!("{LEAST}group = \"ids\""), 8, "batch.group", "is where the ids are"),
        (&format!("{within}group = \"wanted\""), 8, "batch.group", "is where the ids are"),
        (
            &format!("{LEAST}parameters = [\"b\"]\nwhen = {{ \"/a/b\" = 1 }}"),
            8,
            "batch.parameters",
            "do not have /a/b, which when is about",
        ),
    ]);
    let sound = "when = { \"/wanted/as\" = 1, \"/b\" = 2 }\nunordered = [\"/wanted/as\"]\nparameters = [\"b\"]";
    Config::parse(&format!("[upstream]\nendpoint = \"http://h\"\n{within}{sound}")).unwrap();
}

#[test]
fn a_source_of_expiries_is_the_link_or_a_pointer() {
    each_is_one_error(&[
        (
            &format!("{LEAST}expires = [\n\"link\",\n\"expires_at\"]"),
            10,
            "batch.expires",
            "\"expires_at\" is no source",
        ),
        (&format!("{LEAST}expires = \"\""), 8, "batch.expires", "\"\" is no source"),
        (&format!("{LEAST}expires = \"/~\""), 8, "batch.expires", "is no JSON Pointer"),
        (&format!("{LEAST}expires = []"), 8, "batch.expires", "names no source"),
        (&format!("{LEAST}expires = [\"link\", \"link\"]"), 8, "batch.expires", "names link twice"),
    ]);
}

#[test]
fn fields_without_the_link_as_sources_of_expiries_are_a_warning() {
    let warnings = |expires: &str| {
        let text = format!("[upstream]\nendpoint = \"http://h\"\n{LEAST}expires = {expires}");
        let warnings = Config::parse(&text).unwrap().warnings;
        warnings.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert!(
        matches!(&warnings("\"/ttl\"")[..], [one] if one.starts_with("line 8: batch.expires: does not name \"link\""))
    );
    assert!(warnings("[\"/ttl\", \"link\"]").is_empty());
}

#[test]
fn headers_are_those_that_a_call_carries() {
    for (key, header, reason) in [
        ("credentials", "Connection", "about one connection"),
        ("credentials", "host", "set by sidelink itself"),
        ("credentials", "accept", "set by sidelink itself"),
        ("credentials", "x-request-id", "different in every request"),
        ("credentials", "a b", "must be a header's name"),
        ("scope_headers", "a b", "\"a b\" is not a header's name"),
        ("scope_headers", "authorization", "a credential: if it says who asks, name it in credentials"),
        ("scope_headers", "cookie", "a credential"),
        ("scope_headers", "te", "about one connection"),
        ("scope_headers", "content-type", "set by sidelink itself"),
        ("scope_headers", "accept\", \"Accept", "names accept twice"),
    ] {
        let table = format!("{LEAST}{key} = [\"{header}\"]");
        each_is_one_error(&[(&table, 8, &format!("batch.{key}"), reason)]);
    }
    each_is_one_error(&[
        (&format!("{LEAST}credentials = []"), 8, "batch.credentials", "names no header"),
        (
            &format!("{LEAST}credentials = \"x-key\"\nscope_headers = \"x-key\""),
            9,
            "batch.scope_headers",
            "one of its credentials",
        ),
        (&format!("{LEAST}header_bytes = {{ \"x y\" = 1 }}"), 8, "batch.header_bytes", "is not a header's name"),
        (
            &format!("{LEAST}header_bytes = {{ x-key = 0 }}"),
            8,
            "batch.header_bytes",
            "x-key: must be a whole number between 1 and 65536",
        ),
        (&format!("{LEAST}header_bytes = {{ x-key = 1, X-Key = 2 }}"), 8, "batch.header_bytes", "names x-key twice"),
    ]);
    assert_eq!(no_errors(&format!("{LEAST}credentials = [\"cookie\"]\nscope_headers = [\"accept\"]")), 1);
}

#[test]
fn a_secret_in_place_of_its_header_is_refused_and_not_shown() {
    for pasted in ["Bearer MARKED", "MARKED.MARKED", &"MARKED-".repeat(5), "x-key: MARKED"] {
        let errors = errors_of(&format!("{LEAST}credentials = [\"{pasted}\"]"));
        assert!(errors.len() == 1 && !format!("{errors:?}").contains("MARKED"), "{errors:?}");
    }
}

#[test]
fn an_envelope_has_room_for_the_items_where_they_are() {
    let with = |envelope: &str, items: &str| {
        let items = LEAST.replace("at = \"/items\", key = \"/id\"", items);
        items.replace("link = \"/url\"", &format!("link = \"/url\", envelope = '{envelope}'"))
    };
    let (list, object) = ("at = \"/a\", key = \"/id\"", "at = \"/a\", key = \"*\"");
    each_is_one_error(&[
        (&with("{\"a\":[]", list), 7, "batch.items.envelope", "is not JSON"),
        (&with("{\"b\":[]}", list), 7, "batch.items.envelope", "has no empty list or object at \"/a\""),
        (&with("{\"a\":[1]}", list), 7, "batch.items.envelope", "has no empty list or object"),
        (&with("{\"a\":[]}", object), 7, "batch.items.envelope", "has no empty object at \"/a\""),
    ]);
    for (envelope, items) in [
        ("{\"a\":[],\"b\":1}", list),
        ("{\"a\":{}}", list),
        ("{\"a\":{}}", object),
        ("[]", "at = \"\", key = \"/id\""),
        ("[[],1]", "at = \"/0\", key = \"/id\""),
    ] {
        assert_eq!(no_errors(&with(envelope, items)), 1, "{envelope}");
    }
}

#[test]
fn the_shape_of_errors_is_json_with_known_places() {
    let with = |body: &str| format!("{LEAST}errors = {{ body = '{body}' }}");
    each_is_one_error(&[
        (&with("{message}"), 8, "batch.errors.body", "is not JSON"),
        (
            &with("{\"m\":[\"{mesage}\"]}"),
            8,
            "batch.errors.body",
            "has {mesage} in it, and only {code}, {message}, {status}, {request_id}",
        ),
        (&format!("{LEAST}errors.media_type = \"json\""), 8, "batch.errors.media_type", "must be a media type"),
        (&format!("{LEAST}errors.media_type = \"a/b\\u0007\""), 8, "batch.errors.media_type", "must be a media type"),
    ]);
    for body in ["{\"m\":\"{code} {message} {status} {request_id} {} {A} {\"}", "[]", "\"{message}\""] {
        assert_eq!(no_errors(&with(body)), 1, "{body}");
    }
    assert_eq!(no_errors(&format!("{LEAST}errors.media_type = \"application/json; charset=utf-8\"")), 1);
}

#[test]
fn ids_of_a_call_are_bounded() {
    each_is_one_error(&[
        (&format!("{LEAST}ids_per_call = 0"), 8, "batch.ids_per_call", "must be between 1 and 10000"),
        (&format!("{LEAST}ids_per_call = 10001"), 8, "batch.ids_per_call", "must be between 1 and 10000"),
    ]);
}

#[test]
fn an_error_in_one_batch_api_hides_none_in_another() {
    let tables = format!(
        "{}{}",
        LEAST.replace("body = \"/ids\"", ""),
        LEAST.replace("files", "b").replace("body = \"/ids\"", "")
    );
    let places: Vec<(usize, String)> = errors_of(&tables).into_iter().map(|(line, key, _)| (line, key)).collect();
    assert_eq!(places, [(6, "batch.ids".to_owned()), (11, "batch.ids".to_owned())]);
}

#[test]
fn a_key_in_the_wrong_table_is_told_its_table_once_however_many_there_are() {
    let two = "[[batch]]\npreset = \"git-lfs\"\n[[batch]]\npreset = \"discord-cdn\"\n";
    each_is_one_error(&[
        (&format!("{two}[cache]\nids_per_call = 1"), 8, "cache.ids_per_call", "it belongs in [upstream] or [batch]"),
        (&format!("{two}[cache]\nchars = 1"), 8, "cache.chars", "it belongs in [batch.ids]"),
        (&format!("{two}link = \"/a\""), 7, "batch.link", "it belongs in [batch.items]"),
    ]);
    let told = errors_of(&format!("{two}[cache]\nchars = 1"));
    assert_eq!(told[0].2, "unknown key; it belongs in [batch.ids]");
}

#[test]
fn every_preset_has_another_route_than_the_others() {
    let tables: String = BatchApi::presets().map(|name| format!("[[batch]]\npreset = \"{name}\"\n")).collect();
    assert_eq!(no_errors(&tables), BatchApi::presets().count());
}
