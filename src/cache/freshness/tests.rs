use proptest::prelude::*;

use super::*;

fn config() -> config::Freshness {
    config::Freshness::default()
}

const NOW: u64 = 1_790_000_000_000;

fn moment(after: u64) -> Moment {
    Moment { monotonic: 1_000_000 + after, wall: NOW + after }
}

fn source(directives: Directives) -> Source {
    Source { sent: moment(0), now: NOW, age: 0, directives }
}

fn v2(seconds_left: i64) -> String {
    format!("https://b.obs/x?AccessKeyId=a&Expires={}&Signature=s", (NOW as i64) / 1000 + seconds_left)
}

fn kept(url: &str, directives: Directives) -> Deadlines {
    match judge(Some(url), &source(directives), &config()) {
        Verdict::Keep(deadlines) => deadlines,
        Verdict::Pass(reason) => panic!("passed: {reason:?}"),
    }
}

#[test]
fn the_forms_of_presigned_urls_are_read() {
    for (url, expected) in [
        ("https://h/k?AccessKeyId=a&Expires=1532779451&Signature=s", Expiry::At(1_532_779_451_000)),
        ("https://h/k?AWSAccessKeyId=a&Expires=1532779451&Signature=s", Expiry::At(1_532_779_451_000)),
        (
            "https://h/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date=20261124T000000Z&X-Amz-Expires=900&X-Amz-Signature=s",
            Expiry::At(1_795_479_300_000),
        ),
        ("https://h/k?X-Obs-Date=20261124T000000Z&X-Obs-Expires=900&X-Obs-Signature=s", Expiry::At(1_795_479_300_000)),
        ("https://h/k?%45xpires=5&Signature=s", Expiry::At(5_000)),
        ("https://h/k", Expiry::None),
        ("url1", Expiry::None),
        ("https://h/k?response-expires=5", Expiry::None),
        ("https://h/k?response-expires=5&Signature=s", Expiry::Unreadable),
        ("https://h/k?Signature=s", Expiry::Unreadable),
        ("https://h/k?Signature=s#Expires=5", Expiry::Unreadable),
        ("https://h/k?Expires=soon&Signature=s", Expiry::Unreadable),
        ("https://h/k?Expires=&Signature=s", Expiry::Unreadable),
        ("https://h/k?Expires=+5&Signature=s", Expiry::Unreadable),
        ("https://h/k?Expires=5&Expires=6&Signature=s", Expiry::Unreadable),
        ("https://h/k?Expires=99999999999999999999&Signature=s", Expiry::Unreadable),
        ("https://h/k?Expires=18446744073709551615&Signature=s", Expiry::Unreadable),
        ("https://h/k?Policy=e30&Expires=5&Signature=s", Expiry::Unreadable),
        ("https://h/k?X-Amz-Date=20261124T000000Z&X-Amz-Signature=s", Expiry::Unreadable),
        ("https://h/k?X-Amz-Date=20261324T000000Z&X-Amz-Expires=900", Expiry::Unreadable),
        ("https://h/k?X-Amz-Date=20261124T000000+&X-Amz-Expires=900", Expiry::Unreadable),
        ("https://h/k?X-Amz-Expires=900&Expires=5&Signature=s", Expiry::Unreadable),
    ] {
        assert_eq!(expiry(url), expected, "{url}");
    }
}

#[test]
fn the_earlier_of_two_stated_ends_counts() {
    let both = "https://h/k?Expires=1795479200&X-Amz-Date=20261124T000000Z&X-Amz-Expires=900";
    assert_eq!(expiry(both), Expiry::At(1_795_479_200_000));
}

#[test]
fn a_link_under_the_floor_or_with_no_url_is_passed_on() {
    let pass = |url: Option<&str>| judge(url, &source(Directives::default()), &config());
    assert_eq!(pass(Some(&v2(60))), Verdict::Pass(Reason::UnderFloor));
    assert_eq!(pass(Some(&v2(-5))), Verdict::Pass(Reason::UnderFloor));
    assert!(matches!(pass(Some(&v2(61))), Verdict::Keep(_)));
    assert_eq!(pass(None), Verdict::Pass(Reason::Unreadable));
}

#[test]
fn the_endpoints_cache_control_shortens_and_forbids() {
    let with = |directives| judge(Some(&v2(900)), &source(directives), &config());
    let no_store = Directives { no_store: true, max_age: Some(0), ..Directives::default() };
    assert_eq!(with(no_store), Verdict::Pass(Reason::NoStore));
    assert_eq!(with(Directives { no_cache: true, ..Directives::default() }), Verdict::Pass(Reason::NoStore));
    assert_eq!(with(Directives { max_age: Some(0), ..Directives::default() }), Verdict::Pass(Reason::NoStore));
    let short = kept(&v2(900), Directives { max_age: Some(30), ..Directives::default() });
    assert_eq!(short.fresh_left(moment(0)), Some(30_000));
    let overruled = config::Freshness { honour_no_store: false, ..config() };
    assert!(matches!(judge(Some(&v2(900)), &source(no_store), &overruled), Verdict::Keep(_)));
}

#[test]
fn an_answer_that_must_be_revalidated_is_never_served_stale() {
    let strict = kept(&v2(900), Directives { max_age: Some(30), must_revalidate: true, ..Directives::default() });
    assert!(strict.usable(moment(29_999)));
    assert!(!strict.usable(moment(30_000)));
}

#[test]
fn the_endpoints_clock_counts_not_ours() {
    let mut headers = HeaderMap::new();
    headers.insert(DATE, "Tue, 24 Nov 2026 00:00:00 GMT".parse().unwrap());
    headers.insert(AGE, "10".parse().unwrap());
    let sent = Moment { monotonic: 5, wall: 1_795_478_400_000 + 3_600_000 };
    let source = Source::read(&headers, sent);
    assert_eq!(source.now, 1_795_478_400_000 + 10_999);
    assert_eq!(source.skew(), 3_600_000 - 10_500);
    headers.append(DATE, "Tue, 24 Nov 2026 00:00:01 GMT".parse().unwrap());
    assert_eq!(Source::read(&headers, sent).now, sent.wall, "two dates are none");
    headers.insert(DATE, "yesterday".parse().unwrap());
    assert_eq!(Source::read(&headers, sent).now, sent.wall);
}

proptest! {
    #[test]
    fn no_url_panics(url in ".{0,200}") {
        let _ = expiry(&url);
    }

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
        let source = Source { sent, now: NOW, age: 0, directives };
        let verdict = judge(Some(&url), &source, &config());

        let floor = left - 60;
        let fresh = floor.min(600).min(max_age.map_or(i64::MAX, |age| age as i64));
        if fresh <= 0 {
            prop_assert!(matches!(verdict, Verdict::Pass(_)));
            return Ok(());
        }
        let Verdict::Keep(deadlines) = verdict else { panic!("passed on") };
        let now = Moment { monotonic: sent.monotonic + elapsed, wall: sent.wall + elapsed };
        prop_assert_eq!(deadlines.fresh_left(now).is_some(), (elapsed as i64) < fresh * 1000);
        let stale = if must_revalidate { fresh } else { floor.min(fresh + 300) };
        prop_assert_eq!(deadlines.usable(now), (elapsed as i64) < stale * 1000);
        // Never a dead link, whatever else holds.
        if deadlines.usable(now) {
            prop_assert!(left * 1000 - elapsed as i64 > 60_000 - 1);
        }
    }

    #[test]
    fn neither_a_suspend_nor_a_clock_step_lengthens_a_life(monotonic in 0u64..2_000_000, wall in -5_000_000i64..5_000_000) {
        let deadlines = kept(&v2(900), Directives::default());
        let sent = moment(0);
        let now = Moment { monotonic: sent.monotonic + monotonic, wall: sent.wall.saturating_add_signed(wall) };
        if deadlines.usable(now) {
            prop_assert!(monotonic < 840_000 && wall < 840_000);
        }
    }
}
