//! The batch APIs that are built in: files as an operator writes them, read as an operator's are.
//!
//! **To add a preset**, add a file to `presets` that says everything and names its public source, a line to [`PRESETS`], and a row
//! to the table of `docs/BATCH_APIS.md`.

use toml::de::DeTable;

use super::BatchApi;
use crate::config::diagnostics::{Diagnostics, SIMILAR, nearest};
use crate::config::table;

/// Name and file of each.
const PRESETS: [(&str, &str); 6] = [
    ("huawei-osm", include_str!("presets/huawei-osm.toml")),
    ("git-lfs", include_str!("presets/git-lfs.toml")),
    ("google-photos", include_str!("presets/google-photos.toml")),
    ("autodesk-oss", include_str!("presets/autodesk-oss.toml")),
    ("supabase-storage", include_str!("presets/supabase-storage.toml")),
    ("discord-cdn", include_str!("presets/discord-cdn.toml")),
];

impl BatchApi {
    /// The preset of this name.
    pub fn preset(name: &str) -> Option<Self> {
        PRESETS.iter().find(|(known, _)| *known == name).and_then(|(_, text)| read(text))
    }

    /// The names of all presets.
    pub fn presets() -> impl Iterator<Item = &'static str> {
        PRESETS.iter().map(|(name, _)| *name)
    }

    /// Why there is no preset of this name.
    pub(super) fn no_preset(name: &str) -> String {
        let known: Vec<&str> = Self::presets().collect();
        let shown = name.escape_debug();
        match nearest(&known, name, SIMILAR) {
            Some((_, nearest)) => format!("there is no preset \"{shown}\"; did you mean \"{nearest}\"?"),
            None => format!("there is no preset \"{shown}\"; known: {}", known.join(", ")),
        }
    }
}

/// The batch API of a file with one `[[batch]]`. A test holds each file to be one.
fn read(text: &str) -> Option<BatchApi> {
    let (document, syntax) = DeTable::parse_recoverable(text);
    let (report, mut apis) = (Diagnostics::new(text), Vec::new());
    table::visit(Some(document.get_ref()), &report, |table| {
        table.list("batch", "", &mut apis, BatchApi::blank, BatchApi::visit);
    });
    let is_sound = syntax.is_empty() && report.finish().is_ok();
    apis.pop().filter(|_| is_sound)
}
