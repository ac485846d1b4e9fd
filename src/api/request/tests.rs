use proptest::prelude::*;

use super::*;
use crate::api::call::CallTemplate;
use http::HeaderMap;

fn api() -> BatchApi {
    BatchApi::preset("huawei-osm").unwrap()
}

fn query(query: &str) -> Option<Batch<'_>> {
    Batch::read(&api(), Some(query), &HeaderMap::new(), b"").ok()
}

fn json(body: &str) -> Option<Batch<'_>> {
    Batch::read(&api(), None, &HeaderMap::new(), body.as_bytes()).ok()
}

fn names(batch: &Batch<'_>) -> Vec<String> {
    batch.ids.iter().map(|id| id.name.to_string()).collect()
}

/// Form, group and ids of a batch.
fn parts(batch: Option<Batch<'_>>) -> Option<(Form, Option<String>, Vec<String>)> {
    batch.map(|batch| (batch.form, batch.group.name().map(str::to_owned), names(&batch)))
}

fn batch(form: Form, group: Option<&str>, ids: &[&str]) -> Option<(Form, Option<String>, Vec<String>)> {
    Some((form, group.map(str::to_owned), ids.iter().map(|id| (*id).to_owned()).collect()))
}

/// Target and body of the batch, written again.
fn written(batch: &Batch<'_>) -> (String, String) {
    let template = CallTemplate::new("/path", batch);
    let ids = || batch.ids.iter().map(|id| id.written);
    (template.target(ids()), String::from_utf8(template.body(ids()).to_vec()).unwrap())
}

#[test]
fn the_three_forms_are_told_apart() {
    assert_eq!(
        parts(query("accessory_ids=1&accessory_ids=3%20x&accessory_ids=b%2F2&group_id=g1")),
        batch(Form::Repeated, Some("g1"), &["1", "3 x", "b/2"])
    );
    assert_eq!(parts(query("accessory_ids=1,2%2C3")), batch(Form::Comma, None, &["1", "2,3"]));
    assert_eq!(parts(query("accessory_ids=2%2C3")), batch(Form::Repeated, None, &["2,3"]));
    assert_eq!(
        parts(json(r#"{ "group_id" : "1", "accessory_ids" : [ "1", "\u9644" ] }"#)),
        batch(Form::Body, Some("1"), &["1", "附"])
    );
    let borrowed = json(r#"{"accessory_ids":["1"]}"#).unwrap().ids;
    assert!(matches!(borrowed[0].name, Cow::Borrowed("1")), "a text without escapes is not copied");
}

/// The huawei-osm description with these styles.
fn with_styles(styles: &[Style]) -> BatchApi {
    let mut api = api();
    api.ids.styles = styles.to_vec();
    api
}

#[test]
fn ids_between_encoded_commas_are_a_list_where_the_api_says_so() {
    use Style::{Comma, EncodedComma, Repeated};
    let read = |styles: &[Style], query: &str| {
        let read = Batch::read(&with_styles(styles), Some(query), &HeaderMap::new(), b"").ok();
        if let Some(batch) = &read {
            assert_eq!(written(batch).0, format!("/path?{query}"), "{styles:?}");
        }
        parts(read)
    };
    let all = [Comma, EncodedComma, Repeated];
    for (query, separated) in
        [("accessory_ids=7%2C8%2C9", ["7", "8", "9"]), ("accessory_ids=7%2c8%2c%2B", ["7", "8", "+"])]
    {
        for styles in [&all[..], &[EncodedComma]] {
            assert_eq!(read(styles, query), batch(Form::EncodedComma, None, &separated));
        }
    }
    assert_eq!(read(&all, "accessory_ids=7,8"), batch(Form::Comma, None, &["7", "8"]));
    assert_eq!(read(&all, "accessory_ids=7&accessory_ids=8"), batch(Form::Repeated, None, &["7", "8"]));
    assert_eq!(read(&[EncodedComma], "accessory_ids=7"), batch(Form::EncodedComma, None, &["7"]));
    assert_eq!(read(&[Comma, Repeated], "accessory_ids=7%2C8"), batch(Form::Repeated, None, &["7,8"]));
    // A list has one kind of separator; plain commas need the style `comma`.
    for (styles, query) in [
        (&[EncodedComma][..], "accessory_ids=7,8"),
        (&all, "accessory_ids=7,8%2C9"),
        (&all, "accessory_ids=7%2c8%2C9"),
        (&all, "accessory_ids=7%2C8&accessory_ids=9"),
        (&all, "accessory_ids=7%2C"),
        (&[EncodedComma], "accessory_ids=7&accessory_ids=8"),
    ] {
        assert_eq!(read(styles, query), None, "{styles:?} {query}");
    }
}

#[test]
fn what_is_not_exactly_a_batch_is_not_read() {
    let long = "x".repeat(65);
    for text in [
        "",
        "&",
        "=",
        "accessory_ids",
        "accessory_ids=",
        "accessory_ids=1,",
        "accessory_ids=,1",
        "accessory_ids=1&",
        "accessory_ids=1&accessory_ids=",
        "accessory_ids=1&x=2",
        "accessory_ids=1&Group_id=2",
        "group_id=1",
        "accessory_ids=1&group_id=1&group_id=1",
        "accessory_ids=1&group_id=&group_id=",
        "accessory_ids=+%ff",
        "accessory_ids=%EF%BF%BFa",
        "accessory_ids=%ff",
        "accessory_ids=%2",
        "accessory_ids=%",
        "accessory_ids=%zz",
        "accessory_ids=1,2&accessory_ids=3",
        &format!("accessory_ids={long}"),
        "accessory_ids=1&group_id=123456789012345678901234567890123",
        "accessory_ids[]=1",
    ] {
        assert!(query(text).is_none(), "{text}");
    }
    for text in [
        "{}",
        "[]",
        r#" ["g",["1"]]"#,
        r#"[["1"],"g"]"#,
        "x",
        "null",
        r#"{"accessory_ids":[]}"#,
        r#"{"accessory_ids":"1"}"#,
        r#"{"accessory_ids":[1]}"#,
        r#"{"accessory_ids":[null]}"#,
        r#"{"accessory_ids":[""]}"#,
        r#"{"accessory_ids":["1"],"x":1}"#,
        r#"{"accessory_ids":["1"],"group_id":1}"#,
        r#"{"accessory_ids":["1"],"group_id":null,"group_id":null}"#,
        r#"{"accessory_ids":["\uffffa"]}"#,
        r#"{"accessory_ids":["1"],"accessory_ids":["2"]}"#,
        r#"{"accessory_ids":["1"],"group_id":"a","group_id":"a"}"#,
        r#"{"accessory_ids":["1"]}x"#,
        r#"{"accessory_ids":["1"]"#,
        r#"{"accessory_ids":["\ud800"]}"#,
    ] {
        assert!(json(text).is_none(), "{text}");
    }
    assert!(Batch::read(&api(), Some("accessory_ids=1"), &HeaderMap::new(), b"{}").is_err(), "both forms");
    let coded = HeaderMap::from_iter([(CONTENT_ENCODING, http::HeaderValue::from_static("gzip"))]);
    assert!(Batch::read(&api(), None, &coded, br#"{"accessory_ids":["1"]}"#).is_err());
}

#[test]
fn an_unencoded_plus_is_named_and_written_by_its_spelling() {
    let named = |ids: &[&str]| ids.iter().map(|id| id::name_of_spelling(id)).collect::<Vec<_>>();
    let repeated = "accessory_ids=a+b%2f&accessory_ids=c%20d&group_id=g+h";
    let read = query(repeated).unwrap();
    assert_eq!(names(&read), [named(&["a+b%2f"])[0].as_str(), "c d"]);
    assert_eq!(read.group, Group::Named(named(&["g+h"])[0].as_str().into()));
    assert_eq!(written(&read).0, format!("/path?{repeated}"));
    assert_eq!(names(&query("accessory_ids=1,a+b").unwrap()), ["1", named(&["a+b"])[0].as_str()]);
    assert!(query(&format!("accessory_ids={}", "+".repeat(64))).is_some());
    assert!(query(&format!("accessory_ids={}", "+".repeat(65))).is_none());
    assert_eq!(names(&json(r#"{"accessory_ids":["a+b"]}"#).unwrap()), ["a+b"], "JSON has one reading");
}

#[test]
fn a_group_is_absent_null_or_named_and_may_be_empty() {
    assert_eq!(query("accessory_ids=1&group_id=").unwrap().group, Group::Named("".into()));
    for (text, group) in [
        (r#"{"accessory_ids":["1"]}"#, Group::Absent),
        (r#"{"accessory_ids":["1"],"group_id":null}"#, Group::Null),
        (r#"{"accessory_ids":["1"],"group_id":""}"#, Group::Named("".into())),
    ] {
        let read = json(text).unwrap();
        assert_eq!(read.group, group, "{text}");
        assert_eq!(written(&read), ("/path".to_owned(), text.to_owned()));
    }
}

#[test]
fn lengths_are_counted_in_characters() {
    let id = "附".repeat(64);
    assert!(json(&format!(r#"{{"accessory_ids":["{id}"]}}"#)).is_some());
    assert!(json(&format!(r#"{{"accessory_ids":["{id}附"]}}"#)).is_none());
}

#[test]
fn ids_in_both_query_and_body_are_no_batch() {
    let mut api = api();
    (api.parameters, api.group) = (None, None);
    let read = |query: &'static str| {
        Batch::read(&api, Some(query), &HeaderMap::new(), br#"{"accessory_ids":["1"]}"#).map(|batch| batch.ids.len())
    };
    for query in ["accessory_ids=9", "x=1&accessory%5Fids=9", "accessory_ids[]=9", "accessory_ids"] {
        assert_eq!(read(query), Err(NotABatch::Unreadable(Misfit::Both)), "{query}");
    }
    assert_eq!(read("x=accessory_ids"), Ok(1));
}

#[test]
fn the_rest_of_a_body_is_never_that_of_a_query() {
    let mut api = BatchApi::preset("huawei-osm").unwrap();
    (api.parameters, api.group) = (None, None);
    let read = |query: Option<&'static str>, body: &'static str| {
        Batch::read(&api, query, &HeaderMap::new(), body.as_bytes()).unwrap().rest().to_vec()
    };
    let ids = r#"{"accessory_ids":["1"]}"#;
    assert_eq!(read(None, ids), read(Some("accessory_ids=1"), ""), "one scope, without anything but ids");
    let members = r#"{"x":1,"accessory_ids":["1"]}"#;
    assert_ne!(read(None, members), read(Some("x&1&accessory_ids=1"), ""));
    assert_ne!(read(Some("q"), members), read(Some("q&x&1&accessory_ids=1"), ""));
    assert_ne!(read(Some("q"), ids), read(Some("q&accessory_ids=1"), ""));
}

proptest! {
    #[test]
    fn any_batch_is_its_own_request_again_in_any_form(
        ids in proptest::collection::vec("\\PC{1,64}", 1..8),
        group in proptest::option::of("\\PC{0,32}"),
        form in prop_oneof![Just(Form::Repeated), Just(Form::Comma), Just(Form::Body)],
    ) {
        use crate::demo::origin::interface::{body, target};
        let list = || ids.iter().map(String::as_str);
        let named = Group::from(group.as_deref());
        let (target, body) = (target(form, &named, list()), body(form, &named, list()));
        let uri: http::Uri = target.parse().unwrap();
        let (api, headers) = (api(), HeaderMap::new());
        let read = Batch::read(&api, uri.query(), &headers, &body).unwrap();
        prop_assert_eq!(&names(&read), &ids);
        prop_assert_eq!(&read.group, &named);
        // One id without a comma reads as the repeated form.
        prop_assert!(read.form == form || ids.len() == 1);
        let (again, body_again) = written(&read);
        let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        prop_assert_eq!(again, format!("/path{query}"));
        prop_assert_eq!(body_again.as_bytes(), &body[..]);
    }

    #[test]
    fn a_list_between_encoded_commas_is_its_own_request_again(
        ids in proptest::collection::vec("[^,\\p{C}]{1,32}", 1..8),
        separator in prop_oneof![Just("%2C"), Just("%2c")],
    ) {
        use crate::demo::origin::interface::target;
        let target = target(Form::EncodedComma, &Group::Absent, ids.iter().map(String::as_str)).replace("%2C", separator);
        let query = target.split_once('?').map(|(_, query)| query);
        let read = Batch::read(&with_styles(&[Style::EncodedComma]), query, &HeaderMap::new(), b"").unwrap();
        prop_assert_eq!(read.form, Form::EncodedComma);
        prop_assert_eq!(&names(&read), &ids);
        prop_assert_eq!(written(&read).0, format!("/path?{}", query.unwrap()));
    }

    #[test]
    fn no_request_panics(query in proptest::option::of("[ -~]{0,60}"), body in proptest::collection::vec(any::<u8>(), 0..60)) {
        let _ = Batch::read(&api(), query.as_deref(), &HeaderMap::new(), &body);
    }
}
