//! How many ids a call takes, by their number and by the bytes of its target.

use super::Wanted;
use crate::api;
use crate::api::request::{self, Form};
use crate::config;

/// How full a call is.
pub(super) struct Load<'c> {
    config: &'c config::Upstream,
    form: Form,
    ids: usize,
    /// Bytes of the target, with room for the path and the longest group.
    bytes: usize,
}

impl<'c> Load<'c> {
    /// An empty call.
    pub(super) fn new(config: &'c config::Upstream, form: Form) -> Self {
        let group = api::GROUP_CHARS * 4 * 3;
        let bytes = api::PATH.len() + api::IDS.len() + api::GROUP.len() + 4 + group;
        Self { config, form, ids: 0, bytes }
    }

    /// Adds `id` if it fits; one id always does.
    pub(super) fn takes(&mut self, id: &str) -> bool {
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

/// The loads of calls for `wanted`.
pub(super) fn split(config: &config::Upstream, form: Form, wanted: &[Wanted]) -> Vec<Vec<Wanted>> {
    let mut loads: Vec<Vec<Wanted>> = Vec::new();
    let mut load = Load::new(config, form);
    for wanted in wanted {
        match loads.last_mut() {
            Some(last) if load.takes(&wanted.id) => last.push(wanted.clone()),
            _ => {
                load = Load::new(config, form);
                load.takes(&wanted.id);
                loads.push(vec![wanted.clone()]);
            }
        }
    }
    loads
}
