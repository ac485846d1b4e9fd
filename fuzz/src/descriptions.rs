//! Any description against any request and answer.

use std::collections::{BTreeMap, HashSet};
use std::sync::OnceLock;

use http::{HeaderMap, HeaderValue, Uri};
use serde_json::Value;
use sidelink::api::answer::{self, ParsedAnswer};
use sidelink::api::call::CallTemplate;
use sidelink::api::request::{Batch, Form};
use sidelink::api::{BatchApi, id};
use sidelink::batch::check::check;
use sidelink::cache::{Countdown, ItemDetails};
use sidelink::config::Config;
use sidelink::message::recorded::{request, response};

/// The line between the parts of an input: the `[[batch]]` tables, the path and query, the request's body, the answer's.
const BETWEEN: &str = "\n=====\n";

/// A batch that is read is its own request again, once it is written with all of its ids; nothing is kept of an answer that was not
/// in it, and what was kept and merged is read again as it was.
pub fn description(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut parts = text.split(BETWEEN);
    let mut part = || parts.next().unwrap_or_default();
    let (tables, target, body, answer) = (part(), part(), part(), part());
    let Ok(config) = Config::parse(&format!("[upstream]\nendpoint = \"http://h\"\n{tables}")) else { return };
    let Ok(uri) = target.parse::<Uri>() else { return };
    for api in &config.batch {
        let captured = api.path.matches(uri.path());
        assert_eq!(captured, api.path.capture(uri.path(), "").is_some());
        let names = match Batch::read(api, uri.query(), &HeaderMap::new(), body.as_bytes()) {
            Ok(batch) => {
                written_again(api, &uri, body, &batch);
                batch.ids.iter().map(|id| id.name.to_string()).collect()
            }
            Err(_) => vec!["1".to_owned(), "2".to_owned()],
        };
        let names: Vec<&str> = names.iter().map(String::as_str).collect::<HashSet<_>>().into_iter().collect();
        kept(api, answer, &names);
    }
}

fn written_again(api: &BatchApi, uri: &Uri, body: &str, batch: &Batch<'_>) {
    assert!(!batch.ids.is_empty());
    let elements: HashSet<(&str, Option<&str>)> = batch.ids.iter().map(|id| (&*id.name, id.qualifier())).collect();
    let names: HashSet<&str> = batch.ids.iter().map(|id| &*id.name).collect();
    assert_eq!(elements.len(), names.len(), "no id is asked for in two ways");
    let template = CallTemplate::new(uri.path(), batch);
    let ids = || batch.ids.iter().map(|id| id.written);
    let (target, written) = (template.target(ids()), template.body(ids()));
    let longest = template.bytes() + ids().map(|id| template.bytes_of(id)).sum::<usize>();
    assert!(target.len() <= longest, "{target} is longer than {longest} bytes");
    let sent: Uri = target.parse().expect("what was a target is one again");
    let again = Batch::read(api, sent.query(), &HeaderMap::new(), &written).expect("what was read is read again");
    assert_eq!(
        (again.form, &again.group, &again.ids, again.rest()),
        (batch.form, &batch.group, &batch.ids, batch.rest())
    );
    if batch.form == Form::Body {
        assert_eq!(sent.path_and_query(), uri.path_and_query());
        // Byte for byte, but for the space between the elements of the list.
        let begin = written.iter().zip(body.bytes()).take_while(|(one, other)| **one == *other).count();
        assert!(begin > 0 || ids().count() == 0);
        if written.len() == body.len() {
            assert_eq!(written, body.as_bytes());
        }
        if let (Ok(written), Ok(body)) =
            (serde_json::from_slice::<Value>(&written), serde_json::from_str::<Value>(body))
        {
            assert_eq!(written, body);
        }
    } else {
        let pairs = |uri: &Uri| {
            let mut count = BTreeMap::new();
            for pair in uri.query().unwrap_or_default().split('&') {
                *count.entry(pair.to_owned()).or_insert(0) += 1;
            }
            count
        };
        let is_respelled = pairs(&sent) != pairs(uri);
        let has_two_names = uri.query().is_some_and(|query| query.contains('%'));
        assert!(!is_respelled || has_two_names, "{target} is not {uri}");
    }
}

fn kept(api: &BatchApi, answer: &str, names: &[&str]) {
    let _ = answer::error_code(api, answer.as_bytes());
    let ParsedAnswer::Items { items, envelope } = answer::read(api, answer.as_bytes(), None, names) else { return };
    for item in items.iter().flatten() {
        assert!(answer.contains(&*item.text), "it was in the answer");
        assert_eq!(answer::url_of(api, &item.text).as_deref(), item.url.as_deref());
        if let Some(details) = ItemDetails::of(Some(item), 0, envelope.as_ref(), 1) {
            for Countdown { place, seconds } in &details.countdowns {
                let number = item.text.get(place.clone()).expect("a place in the text");
                assert_eq!(number.parse(), Ok(*seconds));
            }
        }
    }
    let own = sidelink::api::envelope::Envelope::of(api);
    let envelope = envelope.as_deref().or(own.as_ref()).expect("an envelope of its own, or the endpoint's");
    let texts: Vec<&[u8]> = items.iter().flatten().map(|item| item.text.as_bytes()).collect();
    let merged = envelope.merge(texts.iter().copied());
    let ParsedAnswer::Items { items: again, .. } = answer::read(api, &merged, None, names) else {
        panic!("what was merged is an answer: {merged:?}");
    };
    assert_eq!(again, items);
    assert!(names.iter().all(|name| !id::shown(name).is_empty()));
}

/// The placeholder for credentials. Inputs that contain it are skipped.
const SECRET: &str = "secret-of-a-caller";

/// A recorded exchange, request and answer, is read by the presets, or refused. Of no credential more is shown than its name.
pub fn recorded(data: &[u8]) {
    static CONFIG: OnceLock<Config> = OnceLock::new();
    let config = CONFIG.get_or_init(|| {
        let tables: String = BatchApi::presets().map(|name| format!("[[batch]]\npreset = \"{name}\"\n")).collect();
        Config::parse(&format!("{tables}[upstream]\nendpoint = \"http://h\"\n")).unwrap()
    });
    let position = |text: &[u8]| data.windows(text.len()).position(|window| window == text);
    let (asked, answered) = data.split_at(position(BETWEEN.as_bytes()).unwrap_or(data.len()));
    let answer = response(answered.get(BETWEEN.len()..).unwrap_or_default()).ok();
    let Ok(mut asked) = request(asked) else { return };
    if position(SECRET.as_bytes()).is_some() {
        return;
    }
    for name in config.batch.iter().flat_map(|api| &api.credentials) {
        if let Some(value) = asked.headers_mut().get_mut(name) {
            *value = HeaderValue::from_static(SECRET);
        }
    }
    let checked = check(config, &asked, answer);
    assert!(!checked.is_kept || config.batch.iter().any(|api| api.path.matches(asked.uri().path())));
    assert!(!checked.text.contains(SECRET), "a credential is shown");
}
