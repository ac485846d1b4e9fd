//! A parser of Prometheus' text format, for what sidelink writes.

use std::collections::{BTreeMap, BTreeSet};

/// The labels of one series, without `le`.
pub type Labels = BTreeMap<String, String>;

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Family {
    pub kind: String,
    pub help: String,
    /// Upper bounds of a histogram, without the infinite one.
    pub buckets: Vec<String>,
    pub series: BTreeSet<Labels>,
}

impl Family {
    /// The names of its series.
    pub fn names(&self, name: &str) -> Vec<String> {
        let suffixes: &[&str] = if self.kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
        suffixes.iter().map(|suffix| format!("{name}{suffix}")).collect()
    }
}

/// The families of `page`, by name.
pub fn families(page: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    for line in page.lines() {
        if let Some(said) = line.strip_prefix("# ") {
            let (what, said) = said.split_once(' ').unwrap();
            let (name, said) = said.split_once(' ').unwrap();
            let family = families.entry(name.to_owned()).or_default();
            match what {
                "HELP" => said.clone_into(&mut family.help),
                "TYPE" => said.clone_into(&mut family.kind),
                _ => panic!("neither help nor type: {line}"),
            }
            continue;
        }
        let series = line.rsplit_once(' ').unwrap().0;
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let labels = labels.strip_suffix('}').unwrap().split(',').filter(|label| !label.is_empty());
        let labels = labels.map(|label| label.split_once('=').unwrap());
        let mut labels: Labels =
            labels.map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned())).collect();
        let (_, family) = families
            .iter_mut()
            .find(|(family, said)| said.names(family).iter().any(|series| series == name))
            .unwrap_or_else(|| panic!("neither help nor type before: {line}"));
        if let Some(bucket) = labels.remove("le").filter(|bucket| bucket != "+Inf" && !family.buckets.contains(bucket))
        {
            family.buckets.push(bucket);
        }
        family.series.insert(labels);
    }
    families
}
