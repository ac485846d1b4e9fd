use proptest::prelude::*;

use super::*;

fn config() -> config::Freshness {
    config::Freshness::default()
}

const NOW: u64 = 1_790_000_000_000;

fn moment(after: u64) -> Moment {
    Moment { monotonic: 1_000_000 + after, wall: NOW + after }
}

fn source(directives: Directives) -> AnswerFreshness {
    AnswerFreshness { sent: moment(0), now: NOW, skew: 0, age: 0, directives, expires_in: None }
}

fn v2(seconds_left: i64) -> String {
    format!("https://b.obs/x?AccessKeyId=a&Expires={}&Signature=s", (NOW as i64) / 1000 + seconds_left)
}

fn link(url: Option<&str>) -> AnswerItem {
    AnswerItem::of_link("{}", url)
}

fn deadlines(url: &str, directives: Directives) -> Deadlines {
    judge(&link(Some(url)), &source(directives), &config()).unwrap()
}

#[test]
fn a_link_under_the_floor_or_with_no_url_is_passed_on() {
    let pass = |url: Option<&str>| judge(&link(url), &source(Directives::default()), &config());
    assert_eq!(pass(Some(&v2(60))), Err(Reason::UnderFloor));
    assert_eq!(pass(Some(&v2(-5))), Err(Reason::UnderFloor));
    assert!(pass(Some(&v2(61))).is_ok());
    assert_eq!(pass(None), Err(Reason::NoLink));
}

#[test]
fn the_endpoints_cache_control_shortens_and_forbids() {
    let with = |directives| judge(&link(Some(&v2(900))), &source(directives), &config());
    let no_store = Directives { no_store: true, max_age: Some(0), ..Directives::default() };
    assert_eq!(with(no_store), Err(Reason::NoStore));
    assert_eq!(with(Directives { no_cache: true, ..Directives::default() }), Err(Reason::NoStore));
    assert_eq!(with(Directives { max_age: Some(0), ..Directives::default() }), Err(Reason::NoStore));
    let short = deadlines(&v2(900), Directives { max_age: Some(30), ..Directives::default() });
    assert_eq!(short.fresh_left(moment(0)), Some(30_000));
    let overruled = config::Freshness { honour_no_store: false, ..config() };
    assert!(judge(&link(Some(&v2(900))), &source(no_store), &overruled).is_ok());
}

#[test]
fn an_answer_that_must_be_revalidated_is_never_served_stale() {
    let strict = deadlines(&v2(900), Directives { max_age: Some(30), must_revalidate: true, ..Directives::default() });
    assert!(strict.usable(moment(29_999)));
    assert!(!strict.usable(moment(30_000)));
}

#[test]
fn the_latest_clock_counts() {
    const MIDNIGHT: u64 = 1_795_478_400_000;
    let mut headers = HeaderMap::new();
    headers.insert(DATE, "Tue, 24 Nov 2026 00:00:00 GMT".parse().unwrap());
    headers.insert(AGE, "10".parse().unwrap());
    let behind = Moment { monotonic: 5, wall: MIDNIGHT - 3_600_000 };
    let ahead = Moment { monotonic: 5, wall: MIDNIGHT + 3_600_000 };
    assert_eq!(AnswerFreshness::read(&headers, behind).now, MIDNIGHT + 10_999);
    assert_eq!(AnswerFreshness::read(&headers, ahead).now, ahead.wall);
    assert_eq!(AnswerFreshness::read(&headers, behind).skew(), -3_600_000 - 10_500);
    assert_eq!(AnswerFreshness::read(&headers, ahead).skew(), 3_600_000 - 10_500);
    headers.append(DATE, "Tue, 24 Nov 2026 00:00:01 GMT".parse().unwrap());
    assert_eq!(AnswerFreshness::read(&headers, behind).now, behind.wall, "two dates are none");
    headers.insert(DATE, "yesterday".parse().unwrap());
    assert_eq!(
        (AnswerFreshness::read(&headers, behind).now, AnswerFreshness::read(&headers, behind).skew()),
        (behind.wall, 0)
    );
}

#[test]
fn expires_counts_from_the_latest_clock_and_only_without_max_age() {
    let read = |lines: &[(http::HeaderName, &str)]| {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name.clone(), value.parse().unwrap());
        }
        // 00:00:10 here.
        let sent = Moment { monotonic: 5, wall: 1_795_478_410_000 };
        AnswerFreshness::read(&headers, sent).lifetime(&config())
    };
    let expires = || (EXPIRES, "Tue, 24 Nov 2026 00:01:00 GMT");
    assert_eq!(read(&[]), None);
    assert_eq!(read(&[expires()]), Some(50_000));
    assert_eq!(read(&[expires(), (DATE, "Tue, 24 Nov 2026 00:00:20 GMT")]), Some(40_000));
    assert_eq!(read(&[expires(), (DATE, "Tue, 24 Nov 2026 00:00:20 GMT"), (AGE, "30")]), Some(10_000));
    assert_eq!(read(&[expires(), (DATE, "Thu, 01 Jan 1970 00:00:00 GMT")]), Some(50_000));
    assert_eq!(read(&[expires(), (http::header::CACHE_CONTROL, "max-age=7")]), Some(7_000));
    assert_eq!(read(&[expires(), (http::header::CACHE_CONTROL, "private")]), Some(50_000));
    assert_eq!(read(&[expires(), expires()]), Some(0), "two are none");
    for invalid in
        ["0", "-1", "", "2026-11-24T00:01:00Z", "Tue, 24 Nov 2026 00:00:10 GMT", "Wed, 31 Dec 1969 23:59:59 GMT"]
    {
        assert_eq!(read(&[(EXPIRES, invalid)]), Some(0), "{invalid}");
    }
}

#[test]
fn an_expiry_beyond_ten_years_or_an_auth_key_of_the_past_is_unreadable() {
    let verdict = |url: String| judge(&link(Some(&url)), &source(Directives::default()), &config());
    const YEAR: i64 = 366 * 24 * 3600;
    assert!(verdict(v2(9 * YEAR)).is_ok());
    assert_eq!(verdict(v2(11 * YEAR)), Err(Reason::Unreadable));
    assert_eq!(verdict(format!("{}&e={}&token=t", v2(900), 4_000_000_000u64)), Err(Reason::Unreadable));
    let auth_key = |left: i64| verdict(format!("https://h/k?auth_key={}-0-0-ab", (NOW as i64) / 1000 + left));
    assert!(auth_key(900).is_ok());
    assert_eq!(auth_key(30), Err(Reason::UnderFloor));
    assert_eq!(auth_key(0), Err(Reason::Unreadable));
    assert_eq!(auth_key(-900), Err(Reason::Unreadable));
}

#[test]
fn deadlines_of_a_peer_are_bounded_by_local_settings() {
    let strict = config::Freshness { absent: Duration::ZERO, unsigned: Duration::ZERO, ..config() };
    let elsewhere =
        |spans, is_absent, config: &config::Freshness| Deadlines::elsewhere(moment(0), spans, is_absent, config);
    assert_eq!(elsewhere([3_600_000; 3], true, &strict), None);
    assert_eq!(elsewhere([60_000, 60_000, u32::MAX], false, &strict), None);
    let absent = elsewhere([3_600_000, 3_600_000, u32::MAX], true, &config()).unwrap();
    assert_eq!(absent.usable_left(moment(0)), Some(5_000));
    let signed = elsewhere([600_000, 840_000, 900_000], false, &strict).unwrap();
    assert_eq!(signed.fresh_left(moment(0)), Some(600_000));
}

/// A URL of one of the formats: its signing date and expiry, in Unix seconds, and whether it states the former.
fn signed(format: usize, start: u64, end: u64) -> (String, bool) {
    use base64::Engine;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    let date = |at: u64| crate::clock::basic_date(at);
    let v4 = |vendor: &str| {
        let life = end - start;
        format!("X-{vendor}-Date={}&X-{vendor}-Expires={life}&X-{vendor}-Signature=s", date(start))
    };
    let condition =
        format!(r#"{{"DateLessThan":{{"AWS:EpochTime":{end}}},"DateGreaterThan":{{"AWS:EpochTime":{start}}}}}"#);
    let policy = STANDARD.encode(format!(r#"{{"Statement":[{{"Condition":{condition}}}]}}"#));
    let (header, payload) = (r#"{"alg":"none"}"#, format!(r#"{{"iat":{start},"exp":{end}}}"#));
    let rfc3339 = |at: u64| crate::clock::rfc3339(at * 1000);
    let (query, states_start) = match format {
        0 => (format!("AccessKeyId=a&Expires={end}&Signature=s"), false),
        1 => (format!("AccessKeyId=a&Expires={end}000&Signature=s"), false),
        2 => (v4("Amz"), true),
        3 => (v4("Obs"), true),
        4 => (v4("Goog"), true),
        5 => (v4("Oss"), true),
        6 => (format!("se={}&st={}&sig=s", rfc3339(end), rfc3339(start)), true),
        7 => (format!("q-sign-time={start};{end}&q-key-time={start};{end}&q-signature=s"), true),
        8 => (format!("Policy={policy}&Signature=s&Key-Pair-Id=k"), true),
        9 => (format!("hdnts=st={start}~exp={end}~hmac=ab"), true),
        10 => (format!("e={end}&token=ak:s"), false),
        11 => (format!("auth_key={end}-0-0-ab"), false),
        12 => (format!("ex={end:x}&is={start:x}&hm=ab"), true),
        _ => (format!("t={}.{}.s", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload)), true),
    };
    (format!("https://h/k?{query}"), states_start)
}

proptest! {
    /// The plain model: a link is fresh until the least of four ends, and usable a while longer, never past its floor.
    #[test]
    fn deadlines_agree_with_a_plain_model(
        left in -100i64..2000,
        max_age in proptest::option::of(0u64..1000),
        must_revalidate: bool,
        skew in -4_000_000i64..4_000_000,
        elapsed in 0u64..2_500_000,
    ) {
        let directives = Directives { max_age, must_revalidate, ..Directives::default() };
        let url = format!("https://h/k?Expires={}&Signature=s", NOW as i64 / 1000 + left);
        // The local wall clock is off by `skew`; the endpoint's says NOW.
        let sent = Moment { monotonic: 7, wall: NOW.saturating_add_signed(skew) };
        let now = NOW.max(sent.wall);
        let source = AnswerFreshness { sent, now, ..source(directives) };
        let verdict = judge(&link(Some(&url)), &source, &config());

        // A local clock that is ahead shortens lives.
        let left = left * 1000 - (now - NOW) as i64;
        let floor = left - 60_000;
        let fresh = floor.min(600_000).min(max_age.map_or(i64::MAX, |age| age as i64 * 1000));
        if fresh <= 0 {
            prop_assert!(verdict.is_err());
            return Ok(());
        }
        let deadlines = verdict.unwrap();
        let now = Moment { monotonic: sent.monotonic + elapsed, wall: sent.wall + elapsed };
        prop_assert_eq!(deadlines.fresh_left(now).is_some(), (elapsed as i64) < fresh);
        let stale = if must_revalidate { fresh } else { floor.min(fresh + 300_000) };
        prop_assert_eq!(deadlines.usable(now), (elapsed as i64) < stale);
    }

    /// Whichever of the three clocks is right and however wrong the others are, a link that may be served, fresh or stale,
    /// has its floor left by the right one.
    #[test]
    fn no_link_of_any_form_is_served_with_less_than_its_floor_left(
        format in 0usize..14,
        life in 0u64..200_000,
        right in 0..3,
        [local, endpoint] in [-2_000_000_000_000i64..4_000_000_000, -2_000_000_000_000..4_000_000_000],
        age in prop_oneof![Just(0u64), 0u64..4000],
        min_remaining in prop_oneof![Just(60u64), 0u64..4000],
        headers in proptest::collection::vec(prop::sample::select(vec![
            "cache-control: max-age=86400", "cache-control: must-revalidate", "expires: Fri, 31 Dec 9999 23:59:59 GMT",
        ]), 0..3),
        [monotonic, wall] in [0u64..200_000_000, 0u64..200_000_000],
    ) {
        let config = config::Freshness {
            min_remaining: Duration::from_secs(min_remaining), max: Duration::from_secs(86_400), ..config()
        };
        // Signed at this moment, whatever clocks say.
        let start = NOW / 1000;
        let (url, states_start) = signed(format, start, start + life);
        let off = |by: i64| NOW.saturating_add_signed(by);
        let (local, endpoint) = match right {
            0 => (NOW, off(endpoint)),
            1 => (off(local), NOW),
            _ if states_start => (off(local), off(endpoint)),
            _ => (NOW, NOW),
        };
        let mut map = HeaderMap::new();
        let date = SystemTime::UNIX_EPOCH + Duration::from_millis(endpoint);
        map.insert(DATE, httpdate::fmt_http_date(date).parse().unwrap());
        map.insert(AGE, age.to_string().parse().unwrap());
        for line in headers {
            let (name, value) = line.split_once(": ").unwrap();
            map.append(http::HeaderName::from_static(name), value.parse().unwrap());
        }
        let sent = Moment { monotonic: 7, wall: local };
        let Ok(deadlines) = judge(&link(Some(&url)), &AnswerFreshness::read(&map, sent), &config) else { return Ok(()) };
        let now = Moment { monotonic: 7 + monotonic, wall: local + wall };
        if deadlines.usable(now) || deadlines.fresh_left(now).is_some() {
            let left = (life * 1000).checked_sub(monotonic.max(wall));
            prop_assert!(left.is_some_and(|left| left > min_remaining * 1000), "{:?} ms left of {}", left, url);
        }
        // A peer allows no more.
        let (sent, spans) = deadlines.parts();
        if let Some(elsewhere) = Deadlines::elsewhere(sent, spans, false, &config) {
            prop_assert!(elsewhere.usable_left(now) <= deadlines.usable_left(now));
        }
    }

    /// Whatever a URL is, a link whose expiry cannot be read is not stored.
    #[test]
    fn an_unreadable_link_is_never_stored(url in "https://h/k\\?([a-zA-Z-]{1,8}=[a-z0-9]{0,12}&){0,3}(Expires|token|Policy|X-Amz-Date|auth_key)=[a-z0-9]{0,12}") {
        if expiry(&url) == Expiry::Unreadable {
            let verdict = judge(&link(Some(&url)), &source(Directives::default()), &config());
            prop_assert_eq!(verdict, Err(Reason::Unreadable));
        }
    }

    #[test]
    fn neither_a_suspend_nor_a_clock_step_lengthens_a_life(monotonic in 0u64..2_000_000, wall in -5_000_000i64..5_000_000) {
        let fixed = deadlines(&v2(900), Directives::default());
        let sent = moment(0);
        let now = Moment { monotonic: sent.monotonic + monotonic, wall: sent.wall.saturating_add_signed(wall) };
        if fixed.usable(now) {
            prop_assert!(monotonic < 840_000 && wall < 840_000);
        }
    }
}
