//! The batch route of the simulated endpoint.

use std::borrow::Cow;
use std::io::{self, Write};

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::interface;
use super::links::{LinkSigner, Owner, link, signed};
use super::request::{ParsedCall, Unauthenticated, credential, parse, token};
use super::shapes::{Question, Simulated};
use super::{Exchange, RecordedCall, ScriptedReply, UnknownIds, json_answer};
use crate::api::request::Form;
use crate::auth::signature;
use crate::message::body::{Body, whole};

/// The most ids of a call of Huawei's, unless the options say otherwise.
const MOST_IDS: usize = 100;
const MOST_BYTES: usize = 1 << 20;

/// A call that was read.
enum Call {
    Huawei(ParsedCall),
    Other(&'static Simulated, Question),
}

impl Call {
    fn ids(&self) -> Vec<String> {
        match self {
            Self::Huawei(parsed) => parsed.ids.clone(),
            Self::Other(_, question) => question.asked.iter().map(|asked| asked.id.clone()).collect(),
        }
    }

    /// The group; of another API the part of the path that differs.
    fn group(&self) -> Option<String> {
        match self {
            Self::Huawei(parsed) => parsed.group.clone(),
            Self::Other(_, question) => Some(question.place.clone()).filter(|place| !place.is_empty()),
        }
    }

    fn form(&self, parts: &Parts) -> Form {
        match self {
            Self::Huawei(parsed) => parsed.form,
            Self::Other(..) if parts.method == Method::GET => Form::Repeated,
            Self::Other(..) => Form::Body,
        }
    }
}

/// Answers a call: as scripted, or as its options say.
pub(super) async fn answer(mut exchange: Exchange, body: Incoming) -> io::Result<Response<Body>> {
    let body = match Limited::new(body, MOST_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(reason) if reason.is::<LengthLimitError>() => {
            return Ok(exchange.error(413, "APIGW.0201", "Request entity too large"));
        }
        Err(reason) => return Err(io::Error::other(reason)),
    };
    let most = exchange.options.max_ids;
    let (parsed, credential) = match &exchange.options.api.simulated {
        None => {
            let parsed = parse(&exchange.parts, &body, most.unwrap_or(MOST_IDS));
            let keys = std::mem::take(&mut exchange.options.keys);
            let credential = credential(&exchange.parts, &signature::hash(&body), &keys, exchange.now);
            (parsed.map(Call::Huawei), credential.map(str::to_owned))
        }
        Some(api) => {
            let question = api.read(&exchange.parts, &body, most.unwrap_or(api.most));
            let credential = api.credential(&exchange.parts).ok_or(("", "not authenticated"));
            (question.map(|question| Call::Other(api, question)), credential)
        }
    };
    exchange.options = exchange.options.for_caller(credential.as_deref().unwrap_or_default());
    let ids = parsed.as_ref().map(Call::ids).unwrap_or_default();
    let scripted = exchange.arrive(body, parsed.as_ref().ok()).await?;
    let poison_reply = exchange.options.poison_reply.take().filter(|_| exchange.options.is_poisoned(&ids));
    match scripted.or(poison_reply) {
        Some(reply) => reply.play(&exchange.origin.0.stop).await,
        None => Ok(exchange.batch(credential, parsed)),
    }
}

impl Exchange {
    /// Counts and records a call, and waits until it may go on. Returns the reply scripted for it.
    async fn arrive(&self, body: Bytes, parsed: Option<&Call>) -> io::Result<Option<ScriptedReply>> {
        let origin = &self.origin.0;
        let scripted = {
            let mut state = self.origin.state();
            if let Some(parsed) = parsed {
                state.ids_asked += parsed.ids().len();
            }
            if self.options.record {
                state.calls.push(RecordedCall {
                    method: self.parts.method.clone(),
                    target: self.parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
                    headers: self.parts.headers.clone(),
                    body,
                    ids: parsed.map(Call::ids).unwrap_or_default(),
                    group: parsed.and_then(Call::group),
                    form: parsed.map(|parsed| parsed.form(&self.parts)),
                });
            }
            // Before the arrival is told: a reply that is scripted from then on is for the next call.
            state.script.pop_front()
        };
        origin.gate.pass(self.options.delay, &origin.stop).await?;
        Ok(scripted)
    }

    fn batch(&self, credential: Result<String, Unauthenticated>, parsed: Result<Call, &'static str>) -> Response<Body> {
        let credential = match &credential {
            Ok(credential) => credential.as_str(),
            Err((code, message)) => return self.error(401, code, message),
        };
        let ids = parsed.as_ref().map(Call::ids).unwrap_or_default();
        let invalid = self.options.api.simulated.as_ref().map_or(400, |api| api.invalid);
        let options = &self.options;
        if options.refuse.iter().any(|refused| refused == credential) {
            return self.error(401, "APIGW.0301", "Incorrect IAM authentication information");
        }
        // As of now: a token may have been revoked while the call waited.
        let owner = match self.owner(credential) {
            Ok(owner) => owner,
            Err((code, message)) => return self.error(401, code, message),
        };
        if options.fail_ratio > 0.0 && rand::random::<f64>() < options.fail_ratio {
            return self.failure(options.fail_status);
        }
        if options.is_poisoned(&ids) {
            return self.failure(options.poison_status);
        }
        if options.unknown_ids == UnknownIds::Fail && ids.iter().any(|id| options.missing.contains(id)) {
            return self.error(invalid, "OSM.0001", "an accessory does not exist");
        }
        match parsed {
            Ok(Call::Huawei(parsed)) => self.links(&owner, &parsed),
            Ok(Call::Other(api, question)) => self.answer_of(api, &question, &owner),
            Err(reason) => self.error(invalid, "OSM.0001", reason),
        }
    }

    /// Whose links a caller with this credential gets: its own; with an IAM, those of the user that its token stands for.
    ///
    /// # Errors
    /// If the IAM does not know the token, or it has expired.
    pub(super) fn owner<'c>(&self, credential: &'c str) -> Result<Cow<'c, str>, Unauthenticated> {
        let Some(iam) = &self.options.iam else { return Ok(credential.into()) };
        let token = match &self.options.api.simulated {
            None if token(&self.parts).is_none() => return Ok(credential.into()),
            None => credential,
            // Without the scheme, and without the values of further headers.
            Some(_) => credential.lines().next().and_then(|value| value.rsplit(' ').next()).unwrap_or_default(),
        };
        let owner =
            iam.owner(token).ok_or(("APIGW.0301", "Incorrect IAM authentication information: decrypt token fail"))?;
        Ok(credential.replacen(token, &owner, 1).into())
    }

    /// A failure of this status, with the code that goes with it.
    fn failure(&self, status: u16) -> Response<Body> {
        let code = match status {
            200 => interface::VALIDATION_FAILED,
            400 => "OSM.0001",
            401 => "OSM.0002",
            403 => "OSM.0003",
            429 => "APIGW.0308",
            503 => "APIGW.0202",
            _ => "OSM.0004",
        };
        self.error(status, code, "failed")
    }

    fn links(&self, owner: &str, parsed: &ParsedCall) -> Response<Body> {
        let header = |name| self.parts.headers.get(name).and_then(|value| value.to_str().ok());
        let owner = Owner {
            name: owner,
            group: parsed.group.as_deref(),
            language: header(interface::LANGUAGE),
            site: header(interface::SITE),
            time_zone: header(interface::TIME_ZONE),
        };
        let options = &self.options;
        let known = parsed.ids.iter().filter(|id| !options.missing.contains(id));
        let mut items: Vec<Value> = known
            .map(|id| {
                let url = link(
                    options.signer.unwrap_or(LinkSigner::V2),
                    &owner,
                    id,
                    self.now,
                    options.link_life,
                    self.serial,
                );
                json!({"accessory_url": url, "accessory_id": id, "accessory_name": format!("{id}.png")})
            })
            .collect();
        if options.reversed {
            items.reverse();
        }
        self.answered(json_answer(200, &json!({"accessory_urls": items})))
    }

    /// The answer of another API than Huawei's.
    fn answer_of(&self, api: &Simulated, question: &Question, owner: &str) -> Response<Body> {
        let (options, serial, now) = (&self.options, self.serial, self.now);
        let is_known = |id: &str| !options.missing.iter().any(|missing| missing == id);
        let signer = options.signer.unwrap_or(api.signer);
        let sign = |url: &str, id: &str, life| signed(signer, &format!("{url}?serial={serial}"), id, now, life, serial);
        let caller = (owner, options.link_life, now);
        let mut response = json_answer(200, &api.answer(question, is_known, options.reversed, sign, caller));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(api.media_type));
        self.answered(response)
    }

    /// An answer with what the options add to it.
    fn answered(&self, response: Response<Bytes>) -> Response<Body> {
        let options = &self.options;
        let mut response = self.stamped(response);
        if !options.no_gzip {
            gzip(&self.parts.headers, &mut response);
        }
        if let Some(Ok(value)) = options.cache_control.as_deref().map(HeaderValue::from_str) {
            response.headers_mut().insert(CACHE_CONTROL, value);
        }
        response.map(whole)
    }
}

/// Compresses `response` where the client accepts gzip.
fn gzip(request: &HeaderMap, response: &mut Response<Bytes>) {
    if !accepts_gzip(request) {
        return;
    }
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    // Writing to memory does not fail.
    if let Ok(coded) = encoder.write_all(response.body()).and_then(|()| encoder.finish()) {
        *response.body_mut() = coded.into();
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
}

fn accepts_gzip(request: &HeaderMap) -> bool {
    let values = request.get_all(ACCEPT_ENCODING).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| {
        let (name, parameters) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = parameters.trim().to_ascii_lowercase();
        let is_refused = weight.strip_prefix("q=").and_then(|weight| weight.parse::<f32>().ok()) == Some(0.0);
        name.trim().eq_ignore_ascii_case("gzip") && !is_refused
    })
}
