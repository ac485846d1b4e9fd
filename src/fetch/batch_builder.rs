//! Splits ids into calls, by their number and by the bytes of the call's target.

use super::KeyedId;
use crate::api;
use crate::api::request::{self, Form};
use crate::config::UpstreamConfig;

/// Fills one call.
pub(super) struct BatchBuilder<'c> {
    config: &'c UpstreamConfig,
    form: Form,
    ids: usize,
    /// Bytes of the target, with room for the path and the longest group.
    bytes: usize,
}

impl<'c> BatchBuilder<'c> {
    pub(super) fn new(config: &'c UpstreamConfig, form: Form) -> Self {
        let group = api::GROUP_CHARS * 4 * 3;
        let bytes = api::PATH.len() + api::IDS.len() + api::GROUP.len() + 4 + group;
        Self { config, form, ids: 0, bytes }
    }

    /// Adds `id` if it fits; the first one always does.
    pub(super) fn add(&mut self, id: &str) -> bool {
        let bytes = self.bytes + request::target_bytes(self.form, id);
        let full = self.ids >= self.config.ids_per_call || bytes > self.config.uri_bytes;
        if full && self.ids > 0 {
            return false;
        }
        self.ids += 1;
        self.bytes = bytes;
        true
    }
}

/// The ids of each call that `ids` take.
pub(super) fn split(config: &UpstreamConfig, form: Form, ids: &[KeyedId]) -> Vec<Vec<KeyedId>> {
    let mut batches: Vec<Vec<KeyedId>> = Vec::new();
    let mut builder = BatchBuilder::new(config, form);
    for id in ids {
        match batches.last_mut() {
            Some(last) if builder.add(&id.id) => last.push(id.clone()),
            _ => {
                builder = BatchBuilder::new(config, form);
                builder.add(&id.id);
                batches.push(vec![id.clone()]);
            }
        }
    }
    batches
}
