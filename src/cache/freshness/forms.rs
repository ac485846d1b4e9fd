//! The forms of signed URLs whose expiry is read: one table, from which URLs are read and which docs/LINKS.md repeats.

/// One form of signed URL.
#[derive(Debug)]
pub struct Form {
    /// Vendor and version.
    pub name: &'static str,
    /// The parameters that limit the life of the URL.
    pub times: &'static [Parameter],
    /// Parameters of this form alone, which show that a URL is signed.
    pub signs: &'static [&'static str],
    /// The parameter without which `times` means something else, for names as short as `e`.
    pub only_with: Option<&'static str>,
    /// The values that belong to this form whatever the parameter's name.
    pub shape: Option<Shape>,
    /// When such a URL expires, for the documentation.
    pub expires: &'static str,
    /// Where the vendor says so, in Markdown.
    pub source: &'static str,
}

/// A parameter that limits the life of a URL.
#[derive(Debug)]
pub struct Parameter {
    /// Matched whole and in any case.
    pub name: &'static str,
    /// How its value is read.
    pub value: Value,
}

/// How a value is read.
#[derive(Clone, Copy, Debug)]
pub enum Value {
    /// The expiry.
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
    /// `timestamp-rand-uid-hash`; whether the timestamp is the expiry or the time of signing is up to the CDN.
    AuthKey,
}

/// How a point in time is written.
#[derive(Clone, Copy, Debug)]
pub enum Time {
    /// Unix seconds below 10^11, else Unix milliseconds.
    Unix,
    /// As `Unix`, in hexadecimal.
    Hex,
    /// `20261124T000000Z`.
    Basic,
    /// RFC 3339, also without seconds, or the date alone.
    Rfc3339,
}

/// What a value is recognized by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A JSON Web Token.
    Jwt,
    /// Akamai's fields, `hmac=` among them.
    TildeFields,
}

const fn time(name: &'static str, value: Value) -> Parameter {
    Parameter { name, value }
}

const EXPIRES: &[Parameter] = &[time("Expires", Value::Expiry(Time::Unix))];
const POLICY: &[Parameter] = &[time("Policy", Value::Policy)];

/// What most forms have in common.
const BLANK: Form = Form { name: "", times: &[], signs: &[], only_with: None, shape: None, expires: "", source: "" };

/// Every form.
pub const FORMS: [Form; 19] = [
    Form {
        name: "Huawei OBS, V2",
        times: EXPIRES,
        signs: &["AccessKeyId", "Signature", "x-obs-security-token"],
        expires: "`Expires`",
        source: "[Authentication of Signature in a URL](https://support.huaweicloud.com/intl/en-us/api-obs/obs_04_0011.html)",
        ..BLANK
    },
    Form {
        name: "Amazon S3, V2",
        times: EXPIRES,
        signs: &["AWSAccessKeyId", "Signature", "x-amz-security-token"],
        expires: "`Expires`",
        source: "[Signing and authenticating REST requests](https://docs.aws.amazon.com/AmazonS3/latest/API/RESTAuthentication.html)",
        ..BLANK
    },
    Form {
        name: "Google Cloud Storage, V2",
        times: EXPIRES,
        signs: &["GoogleAccessId", "Signature"],
        expires: "`Expires`",
        source: "[V2 signing process](https://cloud.google.com/storage/docs/access-control/signed-urls-v2)",
        ..BLANK
    },
    Form {
        name: "Alibaba Cloud OSS, V1",
        times: EXPIRES,
        signs: &["OSSAccessKeyId", "Signature", "security-token"],
        expires: "`Expires`",
        source: "[Include a V1 signature in a URL](https://www.alibabacloud.com/help/en/oss/developer-reference/ddd-signatures-to-urls)",
        ..BLANK
    },
    Form {
        name: "Amazon CloudFront, canned policy",
        times: EXPIRES,
        signs: &["Key-Pair-Id", "Signature"],
        expires: "`Expires`",
        source: "[Signed URL with a canned policy](https://docs.aws.amazon.com/AmazonCloudFront/latest/DeveloperGuide/private-content-creating-signed-url-canned-policy.html)",
        ..BLANK
    },
    Form {
        name: "any other with `Expires`",
        times: EXPIRES,
        expires: "`Expires`",
        source: "for one, [bunny.net](https://docs.bunny.net/docs/cdn-token-authentication)",
        ..BLANK
    },
    Form {
        name: "Amazon S3, V4",
        times: &[time("X-Amz-Date", Value::Start(Time::Basic)), time("X-Amz-Expires", Value::Lifetime)],
        signs: &["X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Security-Token", "X-Amz-Signature"],
        expires: "`X-Amz-Date` and `X-Amz-Expires` seconds",
        source: "[Authenticating requests: using query parameters](https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html)",
        ..BLANK
    },
    Form {
        name: "Huawei OBS, V4",
        times: &[time("X-Obs-Date", Value::Start(Time::Basic)), time("X-Obs-Expires", Value::Lifetime)],
        signs: &["X-Obs-Algorithm", "X-Obs-Credential", "X-Obs-Security-Token", "X-Obs-Signature"],
        expires: "`X-Obs-Date` and `X-Obs-Expires` seconds",
        source: "none: taken to be like Amazon S3, V4",
        ..BLANK
    },
    Form {
        name: "Google Cloud Storage, V4",
        times: &[time("X-Goog-Date", Value::Start(Time::Basic)), time("X-Goog-Expires", Value::Lifetime)],
        signs: &["X-Goog-Algorithm", "X-Goog-Credential", "X-Goog-Signature"],
        expires: "`X-Goog-Date` and `X-Goog-Expires` seconds",
        source: "[Signed URLs](https://cloud.google.com/storage/docs/access-control/signed-urls)",
        ..BLANK
    },
    Form {
        name: "Alibaba Cloud OSS, V4",
        times: &[time("x-oss-date", Value::Start(Time::Basic)), time("x-oss-expires", Value::Lifetime)],
        signs: &["x-oss-credential", "x-oss-security-token", "x-oss-signature", "x-oss-signature-version"],
        expires: "`x-oss-date` and `x-oss-expires` seconds",
        source: "[V4 signatures in presigned URLs](https://www.alibabacloud.com/help/en/oss/developer-reference/add-signatures-to-urls)",
        ..BLANK
    },
    Form {
        name: "Azure Storage, shared access signature",
        times: &[
            time("se", Value::Expiry(Time::Rfc3339)),
            time("st", Value::Start(Time::Rfc3339)),
            time("ske", Value::Expiry(Time::Rfc3339)),
            time("skt", Value::Start(Time::Rfc3339)),
        ],
        only_with: Some("sig"),
        expires: "`se`, and `ske` of a user delegation key, where `sig` is there",
        source: "[Create a service SAS](https://learn.microsoft.com/en-us/rest/api/storageservices/create-service-sas)",
        ..BLANK
    },
    Form {
        name: "Tencent Cloud COS",
        times: &[time("q-sign-time", Value::Interval), time("q-key-time", Value::Interval)],
        signs: &["q-ak", "q-sign-algorithm", "q-signature", "x-cos-security-token"],
        expires: "the end of `q-sign-time` and of `q-key-time`",
        source: "[Request signature](https://www.tencentcloud.com/document/product/436/7778)",
        ..BLANK
    },
    Form {
        name: "Amazon CloudFront, custom policy",
        times: POLICY,
        signs: &["Key-Pair-Id", "Signature"],
        expires: "`DateLessThan` of each statement in `Policy`",
        source: "[Signed URL with a custom policy](https://docs.aws.amazon.com/AmazonCloudFront/latest/DeveloperGuide/private-content-creating-signed-url-custom-policy.html)",
        ..BLANK
    },
    Form {
        name: "Amazon S3 and Huawei OBS, policy document",
        times: POLICY,
        signs: &["AccessKeyId", "AWSAccessKeyId", "Signature", "x-obs-security-token", "x-amz-security-token"],
        expires: "`expiration` in `Policy`",
        source: "[POST policy](https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-HTTPPOSTConstructPolicy.html)",
        ..BLANK
    },
    Form {
        name: "Akamai",
        times: &[
            time("hdnts", Value::TildeFields),
            time("hdnea", Value::TildeFields),
            time("hdntl", Value::TildeFields),
            time("__token__", Value::TildeFields),
            time("__gda__", Value::TildeFields),
        ],
        shape: Some(Shape::TildeFields),
        expires: "`exp=` in these, or in any parameter that has `hmac=` among fields separated by `~`",
        source: "[Auth Token 2.0 Verification](https://techdocs.akamai.com/property-mgr/docs/auth-token-2-0-ver)",
        ..BLANK
    },
    Form {
        name: "Qiniu Kodo",
        times: &[time("e", Value::Expiry(Time::Unix))],
        only_with: Some("token"),
        expires: "`e`, where `token` is there",
        source: "[Download token](https://developer.qiniu.com/kodo/manual/1202/download-token)",
        ..BLANK
    },
    Form {
        name: "Huawei Cloud CDN and others, `auth_key`",
        times: &[time("auth_key", Value::AuthKey)],
        expires: "the number that `auth_key` begins with, if it lies ahead; else unreadable, since it is the time of signing",
        source: "[Signing method A](https://support.huaweicloud.com/intl/en-us/usermanual-cdn/cdn_01_0040.html)",
        ..BLANK
    },
    Form {
        name: "Discord",
        times: &[time("ex", Value::Expiry(Time::Hex)), time("is", Value::Start(Time::Hex))],
        signs: &["hm"],
        only_with: Some("hm"),
        expires: "`ex`, in hexadecimal, where `hm` is there",
        source: "[Signed attachment CDN URLs](https://discord.com/developers/docs/reference#signed-attachment-cdn-urls)",
        ..BLANK
    },
    Form {
        name: "JSON Web Token in any parameter",
        shape: Some(Shape::Jwt),
        expires: "its `exp`; its signature is not verified",
        source: "[RFC 7519, section 4.1.4](https://www.rfc-editor.org/rfc/rfc7519#section-4.1.4)",
        ..BLANK
    },
];
