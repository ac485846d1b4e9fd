//! Errors of sidelink's own, in the shape of an API's errors.

use bytes::Bytes;
use http::HeaderValue;
use serde_json::Value;

use crate::config::batch::ErrorShape;
use crate::error::Error;

/// The body of `error` in this shape, for the answer of this `X-Request-Id`.
pub fn body(shape: &ErrorShape, error: Error, request_id: &HeaderValue) -> Bytes {
    let request_id = request_id.to_str().unwrap_or_default();
    // A configuration has shapes that are JSON alone.
    let mut body: Value = serde_json::from_str(&shape.body).unwrap_or_default();
    fill(&mut body, error, request_id);
    body.to_string().into()
}

fn fill(value: &mut Value, error: Error, request_id: &str) {
    match value {
        Value::String(text) if text == "{status}" => *value = error.status().as_u16().into(),
        Value::String(text) => {
            *text = text
                .replace("{status}", error.status().as_str())
                .replace("{code}", error.code())
                .replace("{message}", &error.message())
                .replace("{request_id}", request_id);
        }
        Value::Array(values) => values.iter_mut().for_each(|value| fill(value, error, request_id)),
        Value::Object(members) => members.values_mut().for_each(|value| fill(value, error, request_id)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_error_is_filled_into_the_shape_of_its_api() {
        let shape =
            r#"{"error":{"code":"{status}","message":"{message} ({code})","details":[{"id":"{request_id}"},null,1]}}"#;
        let shape = ErrorShape { body: shape.into(), ..crate::api::BatchApi::preset("git-lfs").unwrap().errors };
        let read: Value =
            serde_json::from_slice(&body(&shape, Error::Deadline, &HeaderValue::from_static("r-1"))).unwrap();
        let message = format!("{} (SIDELINK.1002)", Error::Deadline.message());
        assert_eq!(read, json!({"error": {"code": 504, "message": message, "details": [{"id": "r-1"}, null, 1]}}));
    }
}
