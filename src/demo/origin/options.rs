//! Options of the simulated endpoint.

use std::net::SocketAddr;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{FromArgMatches, ValueEnum};

use super::ScriptedReply;
use super::iam::Iam;
use super::links::LinkSigner;
use super::shapes::{SHAPES, Shape};
use crate::config::{KeyPair, Secret, parse_duration};

/// Behaviour of the simulated endpoint; also the arguments of `sidelink origin`.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Where it listens; port 0 takes a free one.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:9090")]
    pub address: SocketAddr,
    /// How long its links live, in whole seconds.
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = parse_duration)]
    pub link_life: Duration,
    /// The batch API that it has.
    #[arg(long, value_name = "NAME", default_value = "huawei-osm", value_parser = shape())]
    pub api: &'static Shape,
    /// How its links are signed [default: as the API has it].
    #[arg(long, value_enum)]
    pub signer: Option<LinkSigner>,
    /// How long it takes to answer a batch.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = parse_duration)]
    pub delay: Duration,
    /// Most ids that it takes in one call [default: as the API has it].
    #[arg(long)]
    pub max_ids: Option<usize>,
    /// Ids that it does not know.
    #[arg(long, value_name = "ID,…", value_delimiter = ',')]
    pub missing: Vec<String>,
    /// How it answers a batch that has some of those; an API with errors for single ids has those in place of leaving them out.
    #[arg(long, value_enum, default_value_t = UnknownIds::LeaveOut)]
    pub unknown_ids: UnknownIds,
    /// Tokens and access keys that it refuses with a 401.
    #[arg(long, value_name = "TOKEN,…", value_delimiter = ',')]
    pub refuse: Vec<String>,
    /// A key pair whose signatures it accepts, as ACCESS_KEY:SECRET_KEY; may be given several times.
    #[arg(long = "key", value_name = "ACCESS_KEY:SECRET_KEY", value_parser = key_pair)]
    pub keys: Vec<KeyPair>,
    /// Ids that make it fail the whole call.
    #[arg(long, value_name = "ID,…", value_delimiter = ',')]
    pub poison: Vec<String>,
    /// The status of that failure, 200 to 599; 200 is an error body with a 200, as older codes have it.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u16).range(200..=599))]
    pub poison_status: u16,
    /// Share of calls that fail by chance, 0 to 1.
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    pub fail_ratio: f64,
    /// The status of those failures, 200 to 599.
    #[arg(long, default_value_t = 503, value_parser = clap::value_parser!(u16).range(200..=599))]
    pub fail_status: u16,
    /// Seconds that its clock is ahead of this machine's; it dates its answers and its links by it.
    #[arg(long, default_value_t = 0, allow_hyphen_values = true)]
    pub clock_offset: i64,
    /// `Cache-Control` of its answers.
    #[arg(long)]
    pub cache_control: Option<String>,
    /// It answers in the reverse of the order asked.
    #[arg(long)]
    pub reversed: bool,
    /// It never compresses, even where the client accepts gzip.
    #[arg(long)]
    pub no_gzip: bool,
    /// Whether calls are recorded (memory grows with each).
    #[arg(skip)]
    pub record: bool,
    /// The only token for which [`Options::poison`] fails a call; `None`: for every token.
    #[arg(skip)]
    pub poison_for: Option<String>,
    /// How such a call fails, in place of [`Options::poison_status`].
    #[arg(skip)]
    pub poison_reply: Option<ScriptedReply>,
    /// Requests that one connection serves before it ends gracefully.
    #[arg(skip)]
    pub requests_per_connection: Option<usize>,
    /// A token whose batches take so much longer.
    #[arg(skip)]
    pub slow: Option<(String, Duration)>,
    /// The IAM whose tokens it accepts; `None`: it accepts any token.
    #[arg(skip)]
    pub iam: Option<Iam>,
}

/// The defaults of the command line.
impl Default for Options {
    fn default() -> Self {
        let matches = <Self as clap::Args>::augment_args(clap::Command::new("origin")).get_matches_from(["origin"]);
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }
}

impl Options {
    /// The options for a call with this credential.
    pub(super) fn for_caller(mut self, credential: &str) -> Self {
        if let Some((_, span)) = self.slow.as_ref().filter(|(token, _)| token == credential) {
            self.delay = self.delay.saturating_add(*span);
        }
        if self.poison_for.as_deref().is_some_and(|token| token != credential) {
            self.poison.clear();
        }
        self
    }

    /// Whether any of `ids` fails the whole call.
    pub(super) fn is_poisoned(&self, ids: &[String]) -> bool {
        ids.iter().any(|id| self.poison.contains(id))
    }
}

/// Reads the name of an API, for a command line.
pub fn shape() -> impl TypedValueParser<Value = &'static Shape> {
    PossibleValuesParser::new(SHAPES.iter().map(|shape| shape.name))
        .try_map(|name| Shape::of(&name).ok_or("there is no such API"))
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "a share is a number from 0 to 1".to_owned())
}

fn key_pair(text: &str) -> Result<KeyPair, String> {
    let (access_key, secret_key) = text.split_once(':').ok_or("a key pair is ACCESS_KEY:SECRET_KEY")?;
    Ok(KeyPair { access_key: access_key.to_owned(), secret_key: Secret::new(secret_key.into()), user: None })
}

/// How the endpoint answers a batch with unknown ids, which the reference leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UnknownIds {
    /// They are left out of the answer.
    LeaveOut,
    /// The batch fails with a 400, `OSM.0001`.
    Fail,
}
