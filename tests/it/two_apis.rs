//! Two batch APIs at once: each is counted, logged and shown by its name.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sidelink::app::App;
use sidelink::clock::Clock;
use sidelink::config::Config;
use tokio::net::TcpListener;

use crate::process::{Files, Process};
use crate::support::{LOOPBACK, TestClient, config, value_of};

/// Two APIs that are described here, beside the one that is built in.
const PHOTOS: &str = r#"
[[batch]]
name = "photos"
path = "/photos"
ids = { query = "ids", styles = ["comma"] }
items = { at = "/items", key = "/id", link = "/url" }
"#;
const VIDEOS: &str = r#"
[[batch]]
name = "videos"
path = "/videos"
ids = { query = "ids", styles = ["comma"] }
items = { at = "/items", key = "/id", link = "/url" }
"#;

/// An endpoint that knows all photos, and answers for videos with 404.
async fn endpoint() -> SocketAddr {
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer));
            tokio::spawn(serving);
        }
    });
    address
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
    let ids = request.uri().query().unwrap_or("").trim_start_matches("ids=").split(',');
    let end = Clock::system().now().unix_seconds() + 3600;
    let url = |id| format!("http://h/{id}?AWSAccessKeyId=k&Expires={end}&Signature=s");
    let items: Vec<Value> = ids.map(|id| json!({"id": id, "url": url(id)})).collect();
    let (status, body) = match request.uri().path() {
        "/photos" => (200, json!({ "items": items })),
        _ => (404, json!({"error_code": "none"})),
    };
    let response = Response::builder().status(status).header(CONTENT_TYPE, "application/json");
    Ok(response.body(Full::from(body.to_string())).unwrap())
}

/// The APIs of a file with these tables.
fn with_apis(config: &mut Config, tables: &str) {
    config.batch = Config::parse(&format!("[upstream]\nendpoint = \"http://h\"\n{tables}")).unwrap().batch;
}

async fn start(tables: &str) -> (App, TestClient, TestClient) {
    let mut config = config(endpoint().await);
    with_apis(&mut config, tables);
    let app = App::start_with(config, Clock::system()).await.unwrap();
    let (client, admin) = (TestClient::new(app.addresses()[0]), TestClient::new(app.admin_address()));
    (app, client, admin)
}

async fn metrics(admin: &TestClient) -> String {
    String::from_utf8(admin.get("/metrics", &[]).await.body.to_vec()).unwrap()
}

const AS_ANN: [(&str, &str); 1] = [("authorization", "Bearer ann")];

/// The series of a page that have this `api`, without it.
fn series_of(api: &str, page: &str) -> BTreeSet<String> {
    let (label, lines) = (format!("api=\"{api}\""), page.lines().filter(|line| !line.starts_with('#')));
    let names = lines.filter(|line| line.contains(&label)).map(|line| line.rsplit_once(' ').unwrap().0);
    names.map(|name| name.replace(&label, "")).collect()
}

#[tokio::test]
async fn batches_and_ids_are_counted_for_the_api_that_they_are_of() {
    let (_app, client, admin) = start(&[PHOTOS, VIDEOS].concat()).await;
    // Three that are fetched, of which two come again; a third time as a whole answer. Nobody has videos.
    assert_eq!(client.get("/photos?ids=1,2,3", &AS_ANN).await.status, 200);
    for _ in 0..3 {
        assert_eq!(client.get("/photos?ids=1,2", &AS_ANN).await.status, 200);
    }
    assert_eq!(client.get("/videos?ids=1,2", &AS_ANN).await.status, 404);
    assert_eq!(client.get("/videos?ids=1,2,3&ids=4", &AS_ANN).await.status, 404);
    assert_eq!(client.get("/videos?ids=1", &[]).await.status, 404);

    let page = metrics(&admin).await;
    let count = |series: &str| value_of(series, &page);
    for (series, photos, videos) in [
        ("sidelink_ids_total{api=\"$\",result=\"fetched\"}", 3.0, 0.0),
        ("sidelink_ids_total{api=\"$\",result=\"hit\"}", 6.0, 0.0),
        ("sidelink_ids_total{api=\"$\",result=\"failed\"}", 0.0, 2.0),
        ("sidelink_batches_total{api=\"$\",outcome=\"miss\"}", 1.0, 0.0),
        ("sidelink_batches_total{api=\"$\",outcome=\"hit\"}", 3.0, 0.0),
        ("sidelink_batches_total{api=\"$\",outcome=\"error\"}", 0.0, 1.0),
        ("sidelink_batches_total{api=\"$\",outcome=\"bypass\"}", 0.0, 2.0),
        ("sidelink_batch_ids_sum{api=\"$\"}", 9.0, 2.0),
        ("sidelink_batch_ids_count{api=\"$\"}", 4.0, 1.0),
        ("sidelink_upstream_calls_total{api=\"$\",result=\"ok\"}", 1.0, 0.0),
        ("sidelink_upstream_calls_total{api=\"$\",result=\"client_error\"}", 0.0, 1.0),
        ("sidelink_upstream_call_ids_sum{api=\"$\"}", 3.0, 2.0),
        ("sidelink_link_life_left_seconds_count{api=\"$\"}", 6.0, 0.0),
        ("sidelink_bypass_total{api=\"$\",reason=\"no-credential\"}", 0.0, 1.0),
        ("sidelink_bypass_total{api=\"$\",reason=\"unreadable\"}", 0.0, 1.0),
    ] {
        for (api, expected) in [("photos", photos), ("videos", videos)] {
            assert_eq!(count(&series.replace('$', api)), expected, "{api}: {series}");
        }
    }
    assert!(count("sidelink_answers_used_total{api=\"photos\"}") >= 1.0);
    assert_eq!(count("sidelink_answers_used_total{api=\"videos\"}"), 0.0);
    // Without the label, a question is about all of them.
    assert_eq!(count("sidelink_ids_total{result=\"fetched\"}"), 3.0);
    // One family each, with the series of all APIs.
    assert_eq!(page.matches("# TYPE sidelink_ids_total counter").count(), 1);
    assert_eq!(series_of("photos", &page), series_of("videos", &page));
}

#[tokio::test]
async fn an_api_that_comes_with_a_reload_has_all_of_its_series_at_once_and_one_that_goes_keeps_counting_where_it_was() {
    let (app, client, admin) = start(PHOTOS).await;
    assert_eq!(client.get("/photos?ids=1,2", &AS_ANN).await.status, 200);
    let before = metrics(&admin).await;
    assert!(series_of("videos", &before).is_empty());
    let apply = |tables: &str| {
        let mut next = Config::clone(&app.config());
        with_apis(&mut next, tables);
        app.apply(next).unwrap();
    };

    apply(&[PHOTOS, VIDEOS].concat());
    let page = metrics(&admin).await;
    assert_eq!(series_of("videos", &page), series_of("photos", &before));
    let of_videos = page.lines().filter(|line| line.contains("api=\"videos\""));
    assert!(of_videos.clone().count() > 50 && of_videos.clone().all(|line| line.ends_with(" 0")), "they begin at 0");
    let fetched = "sidelink_ids_total{api=\"photos\",result=\"fetched\"}";
    assert_eq!(value_of(fetched, &page), 2.0, "a reload forgets no count");

    apply(VIDEOS);
    assert_eq!(value_of(fetched, &metrics(&admin).await), 2.0);
    apply(PHOTOS);
    assert_eq!(client.get("/photos?ids=3", &AS_ANN).await.status, 200);
    let after = metrics(&admin).await;
    assert_eq!(value_of(fetched, &after), 3.0);
    // The set is closed: no reload of APIs that are known makes a series.
    assert_eq!(series_of("photos", &after), series_of("photos", &before));
    assert_eq!(series_of("videos", &after), series_of("photos", &before));
}

#[tokio::test]
async fn an_access_line_names_the_api_of_a_batch_and_of_nothing_else() {
    let files = Files::new(endpoint().await);
    let mut process = Process::start(&files.write(&[PHOTOS, VIDEOS, "[log]\nlevel = \"debug\""].concat())).await;
    for (target, headers, api) in [
        ("/photos?ids=1", &AS_ANN[..], json!("photos")),
        ("/videos?ids=1", &AS_ANN, json!("videos")),
        ("/videos?ids=1", &[], json!("videos")),
        ("/other", &[], Value::Null),
    ] {
        process.client.get(target, headers).await;
        if headers.is_empty() && !api.is_null() {
            let line = process.says("forwarded untouched").await;
            assert_eq!((&line["api"], &line["reason"]), (&api, &json!("no-credential")));
        }
        let line = process.says("request").await;
        assert_eq!(line.get("api").unwrap_or(&Value::Null), &api, "{line}");
    }
}

#[tokio::test]
async fn the_status_has_a_line_for_each_of_several_apis_and_sums_over_all() {
    let (app, client, admin) = start(PHOTOS).await;
    assert_eq!(client.get("/photos?ids=1,2", &AS_ANN).await.status, 200);
    let status = async || admin.get("/status.json", &[]).await.json();
    assert_eq!(status().await.get("apis"), None, "one API is all that there is");

    let mut next = Config::clone(&app.config());
    with_apis(&mut next, &[PHOTOS, VIDEOS].concat());
    app.apply(next).unwrap();
    for target in ["/photos?ids=1,2", "/photos?ids=1,2", "/videos?ids=7,8,9"] {
        client.get(target, &AS_ANN).await;
    }
    let said = status().await;
    let photos = json!({"api": "photos", "batches": 3, "failed": 0, "ids": 6, "hits": 4});
    let videos = json!({"api": "videos", "batches": 1, "failed": 1, "ids": 3, "hits": 0});
    assert_eq!(said["apis"], json!([photos, videos]));
    let totals = &said["totals"];
    assert_eq!(
        (&totals["ids"]["hit"], &totals["ids"]["fetched"], &totals["ids"]["failed"]),
        (&json!(4), &json!(2), &json!(3))
    );
    assert_eq!((&totals["calls"]["ok"], &totals["calls"]["client_error"]), (&json!(1), &json!(1)));
}

#[tokio::test]
async fn a_reload_that_changes_what_an_api_is_says_so_in_the_log_and_one_that_changes_a_limit_of_it_does_not() {
    let files = Files::new(endpoint().await);
    let mut process = Process::start(&files.write(&[PHOTOS, VIDEOS].concat())).await;
    let changed = "the description of a batch API has changed; its links are fetched again";
    files.write(&[PHOTOS, VIDEOS, "ids_per_call = 7"].concat());
    process.signal("HUP");
    process.says("the configuration was reloaded").await;
    assert!(!process.logged(changed));
    files.write(&[PHOTOS, VIDEOS, "absent = \"/gone\""].concat());
    process.signal("HUP");
    assert_eq!(process.says(changed).await["api"], "videos");
}
