use proptest::prelude::*;

use super::*;

/// 2026-11-24T00:00:00Z.
const DAY: u64 = 1_795_478_400_000;
const HASH: &str = "0123456789abcdef0123456789abcdef";

fn encode(json: &str) -> String {
    URL_SAFE.encode(json).trim_end_matches('=').to_owned()
}

fn jwt(payload: &str) -> String {
    format!("{}.{}.c2ln", encode(r#"{"alg":"RS256"}"#), encode(payload))
}

fn policy(json: &str) -> String {
    STANDARD.encode(json).replace('+', "-").replace('=', "_").replace('/', "~")
}

fn expect(cases: &[(&str, Expiry)]) {
    for (query, expected) in cases {
        for base in ["https://h/k?", "/k?", "k?"] {
            assert_eq!(expiry(&format!("{base}{query}")), *expected, "{base}{query}");
        }
    }
}

#[test]
fn the_format_by_which_an_expiry_is_read_is_named() {
    for (query, name) in [
        ("AccessKeyId=a&Expires=1532779451&Signature=s", Some("Huawei OBS, V2")),
        ("AWSAccessKeyId=a&Expires=1532779451&Signature=s", Some("Amazon S3, V2")),
        ("expires=1532779451&sig=s", Some("`Expires` of any vendor")),
        ("Expires=1532779451&Signature=s", Some("`Expires` of any vendor")),
        ("Expires=1532779451&Signature=s&token=1", Some("`Expires` of any vendor")),
        (
            "X-Amz-Algorithm=a&X-Amz-Date=20261124T000000Z&X-Amz-Expires=900&X-Amz-Signature=s&token=1",
            Some("Amazon S3, V4"),
        ),
        ("ex=65f7&is=65f0&hm=s", Some("Discord")),
        (&format!("token={}", jwt(r#"{"exp":1795478400}"#)), Some("JSON Web Token in any parameter")),
        ("a=b", None),
        ("sig=s", None),
    ] {
        assert_eq!(format_of(&format!("https://h/k?{query}")), name, "{query}");
    }
}

#[test]
fn the_forms_of_presigned_urls_are_read() {
    expect(&[
        ("AccessKeyId=a&Expires=1532779451&Signature=s", Expiry::At(1_532_779_451_000)),
        ("AccessKeyId=a&Expires=1532779451000&Signature=s", Expiry::At(1_532_779_451_000)),
        ("AWSAccessKeyId=a&Expires=1532779451&Signature=s", Expiry::At(1_532_779_451_000)),
        ("AWSAccessKeyId=a&Expires=5&Signature=s&x-amz-security-token=t", Expiry::At(5_000)),
        ("GoogleAccessId=a&Expires=5&Signature=s", Expiry::At(5_000)),
        ("OSSAccessKeyId=a&Expires=5&Signature=s&security-token=t", Expiry::At(5_000)),
        ("token=HS256-abc&token_path=%2F&expires=5", Expiry::At(5_000)),
        (
            "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date=20261124T000000Z&X-Amz-Expires=900&X-Amz-Signature=s",
            Expiry::At(DAY + 900_000),
        ),
        ("x-amz-date=20261124T000000Z&x-amz-expires=900&x-amz-signature=s", Expiry::At(DAY + 900_000)),
        ("X-Obs-Date=20261124T000000Z&X-Obs-Expires=900&X-Obs-Signature=s", Expiry::At(DAY + 900_000)),
        ("X-Goog-Date=20261124T000000Z&X-Goog-Expires=900&X-Goog-Signature=s", Expiry::At(DAY + 900_000)),
        ("x-oss-date=20261124T000000Z&x-oss-expires=900&x-oss-signature=s", Expiry::At(DAY + 900_000)),
        ("sv=2022-11-02&se=2026-11-24T00%3A00%3A00Z&sr=b&sig=s", Expiry::At(DAY)),
        ("se=2026-11-24T00:00Z&sig=s", Expiry::At(DAY)),
        ("se=2026-11-24&sig=s", Expiry::At(DAY)),
        ("se=2026-11-24T01:00:00.0000000%2B01:00&sig=s", Expiry::At(DAY)),
        ("se=2026-11-25&ske=2026-11-24&st=2026-11-01&skt=2026-11-01&sig=s", Expiry::At(DAY)),
        ("q-sign-algorithm=sha1&q-sign-time=1795478000;1795478400&q-signature=s", Expiry::At(DAY)),
        ("q-sign-time=1795478000%3B1795478400&q-key-time=1795478000%3B1795478500&q-signature=s", Expiry::At(DAY)),
        ("hdnts=st=1795478000~exp=1795478400~acl=/*~hmac=ab", Expiry::At(DAY)),
        ("hdnea=exp%3D1795478400~acl%3D/*~hmac%3Dab", Expiry::At(DAY)),
        ("__token__=exp=1795478400~url=/~hmac=ab", Expiry::At(DAY)),
        ("ours=exp=1795478400~hmac=ab", Expiry::At(DAY)),
        ("edge-cache-token=URLPrefix=aA~Expires=1795478400~KeyName=k~hmac=ab", Expiry::At(DAY)),
        ("e=1795478400&token=ak:sig", Expiry::At(DAY)),
        ("auth_key=1795478400-0-0-0123456789abcdef0123456789abcdef", Expiry::At(DAY)),
        ("ex=6b04d380&is=6b04d1f0&hm=ab", Expiry::At(DAY)),
        ("%45xpires=%35&Signature=s", Expiry::At(5_000)),
    ]);
}

#[test]
fn a_document_in_a_parameter_is_read() {
    let cloudfront =
        |condition: &str| policy(&format!(r#"{{"Statement":[{{"Resource":"*","Condition":{condition}}}]}}"#));
    let less = |at| cloudfront(&format!(r#"{{"DateLessThan":{{"AWS:EpochTime":{at}}}}}"#));
    expect(&[
        (&format!("Policy={}&Signature=s&Key-Pair-Id=K", less("1795478400")), Expiry::At(DAY)),
        (&format!("Policy={}&Expires=5&Signature=s&Key-Pair-Id=K", less("1795478400")), Expiry::At(5_000)),
        (&format!("Policy={}&Signature=s", less("\"soon\"")), Expiry::Unreadable),
        (&format!("Policy={}&Signature=s", cloudfront("{}")), Expiry::Unreadable),
        (&format!("Policy={}&Signature=s", policy(r#"{"Statement":[]}"#)), Expiry::Unreadable),
        (&format!("Policy={}&Signature=s", policy(r#"{"Statement":1}"#)), Expiry::Unreadable),
        (&format!("Policy={}&Signature=s", policy(r#"{"expiration":"2026-11-24T00:00:00.000Z"}"#)), Expiry::At(DAY)),
        ("Policy=e30&Expires=5&Signature=s", Expiry::Unreadable),
        ("Policy=%ff&Expires=5&Signature=s", Expiry::Unreadable),
        (&format!("token={}", jwt(r#"{"exp":1795478400}"#)), Expiry::At(DAY)),
        (&format!("jwt={}", jwt(r#"{"exp":1795478400.75,"iat":1795470000}"#)), Expiry::At(DAY)),
        (&format!("a={}&b={}", jwt(r#"{"exp":1795478400}"#), jwt(r#"{"exp":5}"#)), Expiry::At(5_000)),
        (&format!("Expires=5&token={}", jwt(r#"{"sub":"x"}"#)), Expiry::At(5_000)),
        (&format!("Expires=5&token={}", jwt(r#"{"exp":"never"}"#)), Expiry::Unreadable),
        (&format!("jwt={}", jwt(r#"{"sub":"x"}"#)), Expiry::Unreadable),
        (&format!("jwt={}", jwt("no JSON")), Expiry::Unreadable),
        (&format!("jwt={}", jwt(r#"{"exp":-1}"#)), Expiry::Unreadable),
        (&format!("jwt={}", jwt(r#"{"exp":1e300}"#)), Expiry::Unreadable),
    ]);
}

#[test]
fn a_form_that_is_there_and_cannot_be_read_makes_the_url_unreadable() {
    let unreadable = [
        "Signature=s",
        "response-expires=5&Signature=s",
        "Signature=s#Expires=5",
        "Expires=soon&Signature=s",
        "Expires=&Signature=s",
        "Expires=+5&Signature=s",
        "Expires=5&Expires=6&Signature=s",
        "Expires=99999999999999999999&Signature=s",
        "Expires=18446744073709551615&Signature=s",
        "X-Amz-Date=20261124T000000Z&X-Amz-Signature=s",
        "X-Amz-Date=20261324T000000Z&X-Amz-Expires=900",
        "X-Amz-Date=20261124T000000+&X-Amz-Expires=900",
        "X-Amz-Date=20261124T000000Z&X-Amz-Expires=18446744073709551615",
        "X-Amz-Date=20261124T000000Z&X-Amz-Expires=18446744073709551",
        "X-Amz-Expires=900&Expires=5&Signature=s",
        "X-Amz-Signature=s&Expires=5",
        "X-Goog-Signature=s",
        "x-oss-expires=1795478400&x-oss-signature=s",
        "se=2026-11-24T00:00:00&sig=s",
        "se=1795478400&sig=s",
        "st=2026-11-24&sig=s",
        "sig=s",
        "q-sign-time=1795478400&q-signature=s",
        "q-key-time=1;x&q-sign-time=1;2&q-signature=s",
        "hdnts=acl=/*~hmac=ab",
        "hdnts=exp=soon~hmac=ab",
        "__gda__=1795478400_0123456789abcdef0123456789abcdef",
        "ours=acl=/*~hmac=ab",
        "e=soon&token=ak:sig",
        "token=ak:sig",
        "auth_key=0123456789abcdef0123456789abcdef&timestamp=6b04d380",
        "auth_key=-0-0-0",
        "ex=soon&hm=ab",
        "hm=ab",
        "Policy",
    ];
    unreadable.iter().for_each(|query| expect(&[(query, Expiry::Unreadable)]));
}

#[test]
fn the_earliest_of_several_expiries_counts_and_the_latest_start() {
    let both =
        "k?Expires=1795479200&X-Amz-Date=20261124T000000Z&X-Amz-Expires=900&e=1795479100&token=t&is=6b04d381&hm=a";
    assert_eq!(expiry(both), Expiry::Unreadable, "`is` without `ex`");
    let both = "k?Expires=1795479200&X-Amz-Date=20261124T000000Z&X-Amz-Expires=900&e=1795479100&token=t";
    let validity = read(both).unwrap();
    assert_eq!(validity.expiry, Some((1_795_479_100_000, DAY + 900_000)));
    assert_eq!(validity.start, Some(DAY));
    assert!(!validity.may_be_signing_time);
}

#[test]
fn words_of_a_name_are_signs_and_other_letters_are_not() {
    let signs = "sig SIGN x-signature my_hmac accessToken AuthInfo URLSignature SIGvalue oauthToken amp;Signature x-policy-id \
                 tokenV2 user.auth";
    for name in signs.split(' ') {
        assert!(has_sign_word(name), "{name}");
        assert_eq!(expiry(&format!("https://h/k?{name}=1")), Expiry::Unreadable, "{name}");
        assert_eq!(expiry(&format!("https://h/{name}=1/k")), Expiry::Unreadable, "{name}");
    }
    let others =
        "design assign signal signed SignedHeaders author authority tokens response-expires e se ex policyholder";
    for name in others.split(' ').chain([""]) {
        assert!(!has_sign_word(name), "{name}");
        assert_eq!(expiry(&format!("https://h/k?{name}=1")), Expiry::None, "{name}");
    }
}

#[test]
fn a_hash_beside_a_timestamp_signs_a_path() {
    let sha256 = HASH.repeat(2);
    for path in [
        format!("https://h/1795478400/{HASH}/k"),
        format!("https://h/{HASH}/6b04d380/k"),
        format!("/{sha256}/6B04D380/k?x=1"),
        format!("https://h/202611240000/{HASH}/k"),
        format!("https://h/20261124000000/{HASH}/k"),
        format!("https://h/{HASH}/1795478400000"),
    ] {
        assert_eq!(expiry(&path), Expiry::Unreadable, "{path}");
        // An object's name may look like this: its own signature counts.
        let signed = format!("{}?Expires=5&Signature=s", path.split('?').next().unwrap());
        assert_eq!(expiry(&signed), Expiry::At(5_000), "{signed}");
    }
    for path in [
        format!("https://h/{HASH}/k"),
        format!("https://h/1795478400/x/{HASH}/k"),
        format!("https://h/20261124/{HASH}/k"),
        format!("https://h/{HASH}/{HASH}/k"),
        "https://h/1795478400/0123456789abcdef/k".into(),
        "url1".into(),
        String::new(),
    ] {
        assert_eq!(expiry(&path), Expiry::None, "{path}");
    }
}

#[test]
fn parameters_in_a_path_are_read_like_those_of_a_query() {
    let bunny = "https://h/bcdn_token=HS256-x&expires=1795478400&token_path=%2Fv%2F/v/a.ts";
    assert_eq!(expiry(bunny), Expiry::At(DAY));
    assert_eq!(expiry("https://h/hdntl=exp=1795478400~acl=%2f*~hmac=ab/a.ts"), Expiry::At(DAY));
    assert_eq!(expiry("https://h/a/day=2026-11-24/k"), Expiry::None);
}

/// github.com/git-lfs/git-lfs/issues/904: GitHub's links have `token=1` among the parameters that V4 signs.
#[test]
fn a_sign_of_no_form_beside_a_form_that_is_read_does_not_make_a_url_unreadable() {
    let github = "https://s3/k?X-Amz-Date=20261124T000000Z&X-Amz-Expires=900&X-Amz-Signature=s&actor_id=0&token=1";
    assert_eq!(expiry(github), Expiry::At(DAY + 900_000));
}

proptest! {
    #[test]
    fn no_url_panics(url in ".{0,200}") {
        let _ = expiry(&url);
    }

    #[test]
    fn no_value_of_a_known_parameter_panics(
        format in 0..FORMATS.len(),
        names in proptest::collection::vec(any::<prop::sample::Index>(), 1..4),
        values in proptest::collection::vec("[0-9a-zA-Z;~=%+.\\-_:]{0,40}", 4),
    ) {
        let format = &FORMATS[format];
        let known: Vec<&str> =
            format.times.iter().map(|time| time.name).chain(format.signs.iter().copied()).chain(format.only_with).collect();
        let mut url = "https://h/k?x=1".to_owned();
        for (name, value) in names.iter().zip(&values) {
            if let Some(name) = known.get(name.index(known.len().max(1))) {
                url.push_str(&format!("&{name}={value}"));
            }
        }
        let _ = expiry(&url);
    }

    /// A sign is enough: whatever stands around it, a URL that states no expiry is not taken for unsigned.
    #[test]
    fn a_sign_is_never_overlooked(
        sign in prop::sample::select(SIGN_WORDS.to_vec()), before in "[a-z]{0,5}[-_.]", after in "[-_.][a-z]{0,5}",
        value in "[0-9a-z]{0,20}",
    ) {
        prop_assert_eq!(expiry(&format!("https://h/k?{before}{sign}{after}={value}")), Expiry::Unreadable);
    }
}
