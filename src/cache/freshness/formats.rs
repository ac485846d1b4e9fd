//! The formats of signed URLs whose expiry is read.
//!
//! **To add a format, add a row to [`FORMATS`]**, and one with the vendor's page to docs/LINKS.md.

/// One format of signed URL.
#[derive(Debug)]
pub struct UrlFormat {
    /// Vendor and version.
    pub name: &'static str,
    /// The parameters that limit the life of the URL.
    pub times: &'static [Parameter],
    /// Parameters of this format alone, which show that a URL is signed.
    pub(super) signs: &'static [&'static str],
    /// A parameter without which `times` means something else, for names as short as `e`.
    pub(super) only_with: Option<&'static str>,
    /// Values of this shape belong to this format, whatever the parameter's name.
    pub(super) shape: Option<Shape>,
}

/// A parameter that limits the life of a URL.
#[derive(Debug)]
pub struct Parameter {
    /// Matched whole and in any case.
    pub name: &'static str,
    pub(super) value: Value,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    Expiry(Time),
    /// When the URL was signed, or from when it is valid.
    Start(Time),
    /// Seconds from the start to the expiry.
    Lifetime,
    /// Start and expiry, with a semicolon between them.
    Interval,
    /// A policy document in base64, as CloudFront and POST policies have it.
    Policy,
    /// Fields separated by tildes, among them `exp=`.
    TildeFields,
    /// `timestamp-rand-uid-hash`; it depends on the CDN whether the timestamp is the expiry or the time of signing.
    AuthKey,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Time {
    /// Unix seconds below 10^11, else Unix milliseconds.
    Unix,
    /// As `Unix`, in hexadecimal.
    Hex,
    /// `20261124T000000Z`.
    Basic,
    /// RFC 3339, also without seconds, or the date alone.
    Rfc3339,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Jwt,
    /// Akamai's fields, `hmac=` among them.
    TildeFields,
}

const fn format(name: &'static str, times: &'static [Parameter], signs: &'static [&'static str]) -> UrlFormat {
    UrlFormat { name, times, signs, only_with: None, shape: None }
}

const fn time(name: &'static str, value: Value) -> Parameter {
    Parameter { name, value }
}

const fn date(name: &'static str) -> Parameter {
    time(name, Value::Start(Time::Basic))
}

const EXPIRES: &[Parameter] = &[time("Expires", Value::Expiry(Time::Unix))];
const POLICY: &[Parameter] = &[time("Policy", Value::Policy)];
const AZURE: &[Parameter] = &[
    time("se", Value::Expiry(Time::Rfc3339)),
    time("st", Value::Start(Time::Rfc3339)),
    time("ske", Value::Expiry(Time::Rfc3339)),
    time("skt", Value::Start(Time::Rfc3339)),
];
const AKAMAI: &[Parameter] = &[
    time("hdnts", Value::TildeFields),
    time("hdnea", Value::TildeFields),
    time("hdntl", Value::TildeFields),
    time("__token__", Value::TildeFields),
    time("__gda__", Value::TildeFields),
];
const DISCORD: &[Parameter] = &[time("ex", Value::Expiry(Time::Hex)), time("is", Value::Start(Time::Hex))];

/// Every format.
pub const FORMATS: [UrlFormat; 19] = [
    format("Huawei OBS, V2", EXPIRES, &["AccessKeyId", "Signature", "x-obs-security-token"]),
    format("Amazon S3, V2", EXPIRES, &["AWSAccessKeyId", "Signature", "x-amz-security-token"]),
    format("Google Cloud Storage, V2", EXPIRES, &["GoogleAccessId", "Signature"]),
    format("Alibaba Cloud OSS, V1", EXPIRES, &["OSSAccessKeyId", "Signature", "security-token"]),
    format("Amazon CloudFront, canned policy", EXPIRES, &["Key-Pair-Id", "Signature"]),
    format("`Expires` of any vendor", EXPIRES, &[]),
    format(
        "Amazon S3, V4",
        &[date("X-Amz-Date"), time("X-Amz-Expires", Value::Lifetime)],
        &["X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Security-Token", "X-Amz-Signature"],
    ),
    format(
        "Huawei OBS, V4",
        &[date("X-Obs-Date"), time("X-Obs-Expires", Value::Lifetime)],
        &["X-Obs-Algorithm", "X-Obs-Credential", "X-Obs-Security-Token", "X-Obs-Signature"],
    ),
    format(
        "Google Cloud Storage, V4",
        &[date("X-Goog-Date"), time("X-Goog-Expires", Value::Lifetime)],
        &["X-Goog-Algorithm", "X-Goog-Credential", "X-Goog-Signature"],
    ),
    format(
        "Alibaba Cloud OSS, V4",
        &[date("x-oss-date"), time("x-oss-expires", Value::Lifetime)],
        &["x-oss-credential", "x-oss-security-token", "x-oss-signature", "x-oss-signature-version"],
    ),
    UrlFormat { only_with: Some("sig"), ..format("Azure Storage, shared access signature", AZURE, &[]) },
    format(
        "Tencent Cloud COS",
        &[time("q-sign-time", Value::Interval), time("q-key-time", Value::Interval)],
        &["q-ak", "q-sign-algorithm", "q-signature", "x-cos-security-token"],
    ),
    format("Amazon CloudFront, custom policy", POLICY, &["Key-Pair-Id", "Signature"]),
    format(
        "Amazon S3 and Huawei OBS, policy document",
        POLICY,
        &["AccessKeyId", "AWSAccessKeyId", "Signature", "x-obs-security-token", "x-amz-security-token"],
    ),
    UrlFormat { shape: Some(Shape::TildeFields), ..format("Akamai", AKAMAI, &[]) },
    UrlFormat { only_with: Some("token"), ..format("Qiniu Kodo", &[time("e", Value::Expiry(Time::Unix))], &[]) },
    format("Huawei Cloud CDN and others, `auth_key`", &[time("auth_key", Value::AuthKey)], &[]),
    UrlFormat { only_with: Some("hm"), ..format("Discord", DISCORD, &["hm"]) },
    UrlFormat { shape: Some(Shape::Jwt), ..format("JSON Web Token in any parameter", &[], &[]) },
];
