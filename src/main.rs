//! The command line.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::LazyLock;

use clap::{CommandFactory, Parser, Subcommand};
use http::HeaderValue;
use serde_json::Value;
use sidelink::app::{self, End, PassedSockets, StartError, StopSignals, Watch, core_dumps, descriptors};
use sidelink::batch::check;
use sidelink::config::{Config, ConfigError};
use sidelink::demo;
use sidelink::demo::origin::iam::Iam;
use sidelink::demo::origin::shapes::Shape;
use sidelink::demo::origin::{self, Origin};
use sidelink::message::recorded;
use sidelink::telemetry::log;
use sidelink::{AdminClient, ApiIds, Purge};
use tokio::runtime::{Builder, Runtime};

/// With the revision that it was built from.
static VERSION: LazyLock<String> =
    LazyLock::new(|| format!("{} (revision {})", env!("CARGO_PKG_VERSION"), sidelink::REVISION));
/// Bad usage or a bad configuration.
const BAD_USAGE: u8 = 2;
/// A purge that the fleet is not told yet.
const UNTOLD: u8 = 3;

/// A sidecar that makes batch link look-ups cheap.
#[derive(Parser)]
#[command(version = VERSION.as_str(), arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve with a configuration file.
    Serve {
        /// TOML file; config/sidelink.toml shows every key.
        #[arg(long)]
        config: PathBuf,
        /// Allow core dumps, and debuggers of the same user. The memory of this process holds links and keys.
        #[arg(long)]
        core_dumps: bool,
    },
    /// Validate a configuration file and print the effective configuration.
    Check {
        /// TOML file; config/sidelink.toml shows every key.
        #[arg(long)]
        config: PathBuf,
        /// Print errors and warnings alone.
        #[arg(long)]
        quiet: bool,
        /// A recorded HTTP request, head and body. In place of the configuration, print how it is read; exit 1 if it is no batch.
        #[arg(long, value_name = "FILE", conflicts_with = "quiet")]
        request: Option<PathBuf>,
        /// The recorded answer to it: print what would be kept as well; exit 1 if that is not every item, or an expiry seems to be missed.
        #[arg(long, value_name = "FILE", requires = "request")]
        response: Option<PathBuf>,
    },
    /// Ask the running process whether it serves: exit 0 or 1. For health checks of images without a shell.
    Healthcheck {
        /// TOML file of the running process, whose admin listener is asked.
        #[arg(long)]
        config: PathBuf,
    },
    /// Ask the running process what would become of a batch now, and why.
    #[command(group = clap::ArgGroup::new("batch").required(true).args(["ids", "request"]))]
    Explain {
        /// TOML file of the running process, whose admin listener is asked.
        #[arg(long)]
        config: PathBuf,
        /// A recorded HTTP request of any batch API, head and body; "-" reads it from standard input.
        #[arg(long, value_name = "FILE", conflicts_with_all = ["token_file", "group"])]
        request: Option<PathBuf>,
        /// File with the token of the caller; "-" reads it from standard input. Without one, the batch has no caller.
        #[arg(long)]
        token_file: Option<PathBuf>,
        /// The group of the ids.
        #[arg(long)]
        group: Option<String>,
        /// Ids of the batch, in its order; also between commas. They are asked of the first batch API with ids in its query.
        #[arg(value_delimiter = ',')]
        ids: Vec<String>,
    },
    /// Purge links of the running process, and of its fleet: they are fetched again. Exit 3: the fleet is not told yet.
    Purge {
        /// TOML file of the running process, whose admin listener is asked.
        #[arg(long)]
        config: PathBuf,
        #[command(flatten)]
        target: PurgeTarget,
    },
    /// Print a script that completes commands and options in this shell.
    Completions { shell: clap_complete::Shell },
    /// Print the manual page, of sidelink or of one of its commands.
    Man { command: Option<String> },
    /// Run a demonstration: a simulated endpoint, a sidelink, and a replay of overlapping batches.
    Demo {
        /// The batch API that is simulated and asked.
        #[arg(long, value_name = "NAME", default_value = "huawei-osm", value_parser = origin::shape())]
        api: &'static Shape,
        /// Have 8 clients ask, with 8 tokens of one user, without and with callers.identity.
        #[arg(long)]
        tokens: bool,
        /// Exit after the replay: 0 if every answer was right.
        #[arg(long)]
        once: bool,
        /// How many batches the replay has.
        #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        batches: u32,
    },
    /// Run the simulated endpoint alone.
    Origin {
        #[command(flatten)]
        options: Box<origin::Options>,
        /// Run a simulated IAM as well, here unless an address is named. Only its tokens are accepted then.
        #[arg(long, value_name = "IP:PORT", num_args = 0..=1, default_missing_value = "127.0.0.1:9091")]
        iam: Option<SocketAddr>,
    },
}

/// What is purged: one of three.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("target").required(true))]
struct PurgeTarget {
    /// The batch API whose ids they are; without it, those of every API.
    #[arg(long, value_name = "NAME", requires = "ids")]
    api: Option<String>,
    /// These ids, in every group; also between commas.
    #[arg(value_delimiter = ',', group = "target")]
    ids: Vec<String>,
    /// Every id of this group.
    #[arg(long, group = "target")]
    group: Option<String>,
    /// Everything.
    #[arg(long, group = "target")]
    all: bool,
}

impl From<PurgeTarget> for Purge {
    fn from(PurgeTarget { api, ids, group, .. }: PurgeTarget) -> Self {
        match (api, group) {
            (Some(api), _) => Purge::OfApi(ApiIds { api, ids }),
            (None, Some(group)) => Purge::GroupId(group),
            (None, None) if ids.is_empty() => Purge::All(true),
            (None, None) => Purge::AccessoryIds(ids),
        }
    }
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Serve { config, core_dumps } => serve(&config, core_dumps),
        Command::Check { config, quiet, request, response } => match request {
            Some(request) => check_exchange(&config, &request, response.as_deref()),
            None => check(&config, quiet),
        },
        Command::Healthcheck { config } => check_health(&config),
        Command::Explain { config, request: Some(request), .. } => match read_file(&request) {
            Ok(request) => ask(&config, async |admin| admin.explain_request(request).await),
            Err(error) => fail(&format!("--request: {error}")),
        },
        Command::Explain { config, token_file, group, ids, request: None } => {
            match token_file.as_deref().map(read_token).transpose() {
                Ok(token) => ask(&config, async |admin| admin.explain(&ids, group.as_deref(), token).await),
                Err(error) => fail(&format!("--token-file: {error}")),
            }
        }
        Command::Purge { config, target } => {
            let (purge, mut is_pending) = (Purge::from(target), false);
            let code = ask(&config, async |admin| {
                let done = admin.purge(&purge).await?;
                is_pending = serde_json::from_str::<Value>(&done)
                    .is_ok_and(|done| done.get("fleet").is_some_and(|fleet| fleet == "pending"));
                Ok(done)
            });
            if !is_pending {
                return code;
            }
            let _ = fail(
                "purged at this sidecar; its fleet is not told yet, as the shared tier does not take it: it is told as soon as it does",
            );
            ExitCode::from(UNTOLD)
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "sidelink", &mut script);
            print(&script)
        }
        Command::Man { command } => {
            let (mut page, mut arguments) = (Vec::new(), Arguments::command());
            arguments.build();
            let found = match &command {
                Some(name) => arguments.find_subcommand(name).cloned(),
                None => Some(arguments),
            };
            let Some(found) = found else { return fail("there is no such command") };
            match clap_mangen::Man::new(found).render(&mut page) {
                Ok(()) => print(&page),
                Err(error) => fail(&error.to_string()),
            }
        }
        Command::Demo { api, tokens, once, batches } => run(None, async move {
            let ended = match tokens {
                false => demo::run(api, batches as usize, once).await,
                true => demo::tokens::run(api, batches as usize, once).await,
            };
            match ended {
                Ok(true) => ExitCode::SUCCESS,
                Ok(false) => ExitCode::FAILURE,
                Err(error) => fail(&format!("demo: {error}")),
            }
        }),
        Command::Origin { options, iam } => run(None, simulate_endpoint(*options, iam)),
    }
}

fn serve(path: &Path, core_dumps: bool) -> ExitCode {
    // Before any secret is read.
    if !core_dumps && let Err(error) = core_dumps::forbid() {
        return fail(&format!("core dumps cannot be turned off ({error}); --core-dumps leaves them on"));
    }
    // Without it, fewer connections are served, as a line says then.
    let _ = descriptors::raise_limit();
    let mut watch = Watch::new(path);
    let config = match watch.load(None) {
        Ok(config) => config,
        Err(errors) => return refuse(&errors.to_string()),
    };
    let sockets = match PassedSockets::take() {
        Ok(sockets) => sockets,
        Err(error) => return fail(&StartError::PassedSocket(error).to_string()),
    };
    // Written to its end when everything else has ended.
    let _log = log::init(&config.log);
    run(config.runtime.threads, async move {
        match app::serve(config, watch, sockets).await {
            Ok(End::Drained) => ExitCode::SUCCESS,
            Ok(End::CutShort) => ExitCode::FAILURE,
            Err(error) => fail(&error.to_string()),
        }
    })
}

fn check(path: &Path, quiet: bool) -> ExitCode {
    match load_and_warn(path) {
        Ok(_) if quiet => ExitCode::SUCCESS,
        Ok(config) => print(format!("{config}\n").as_bytes()),
        Err(code) => code,
    }
}

/// Shows how the batch APIs of a configuration read a recorded exchange.
fn check_exchange(path: &Path, request: &Path, response: Option<&Path>) -> ExitCode {
    let config = match load_and_warn(path) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let read = |path: &Path| std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
    let named = |path: &Path, error| format!("{}: {error}", path.display());
    let request = match read(request).and_then(|text| recorded::request(&text).map_err(|error| named(request, error))) {
        Ok(request) => request,
        Err(error) => return fail(&format!("--request: {error}")),
    };
    let response =
        response.map(|path| read(path).and_then(|text| recorded::response(&text).map_err(|error| named(path, error))));
    let response = match response.transpose() {
        Ok(response) => response,
        Err(error) => return fail(&format!("--response: {error}")),
    };
    let checked = check::check(&config, &request, response);
    match print(checked.text.as_bytes()) {
        code if checked.is_kept => code,
        _ => ExitCode::FAILURE,
    }
}

/// The configuration, whose warnings are printed; or how to exit.
fn load_and_warn(path: &Path) -> Result<Config, ExitCode> {
    let config = Config::load(path, None).map_err(|errors| refuse(&errors.to_string()))?;
    for ConfigError { line, key, message, .. } in &config.warnings {
        let _ = writeln!(std::io::stderr().lock(), "{}:{line}: {key}: {message} (a warning)", path.display());
    }
    Ok(config)
}

/// Asks the process whose `[admin]` this file has. The rest of the file may be wrong: the process goes on without it.
fn check_health(path: &Path) -> ExitCode {
    run(Some(1), async {
        let admin = Config::load_admin(path).and_then(|admin| AdminClient::for_probes(&admin));
        let checked = match admin {
            Ok(admin) => admin.check_health().await,
            Err(error) => Err(error),
        };
        match checked {
            Ok(()) => print(b"serving\n"),
            Err(error) => fail(&error),
        }
    })
}

/// Asks the process that runs with this configuration, and prints its answer.
fn ask(path: &Path, question: impl AsyncFnOnce(AdminClient) -> Result<String, String>) -> ExitCode {
    let config = match Config::load(path, None) {
        Ok(config) => config,
        Err(errors) => return refuse(&errors.to_string()),
    };
    run(Some(1), async {
        let answer = match AdminClient::new(&config.admin) {
            Ok(admin) => question(admin).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(answer) => print(format!("{}\n", answer.trim_end()).as_bytes()),
            Err(error) => fail(&error),
        }
    })
}

/// A caller's token. Not an argument, which all users of a machine can see.
fn read_token(path: &Path) -> Result<HeaderValue, String> {
    let text = String::from_utf8(read_file(path)?).map_err(|_| format!("{} is not UTF-8", path.display()))?;
    if text.trim().is_empty() {
        return Err(format!("{} is empty", path.display()));
    }
    let mut token = HeaderValue::try_from(text.trim()).map_err(|_| format!("{} holds no token", path.display()))?;
    token.set_sensitive(true);
    Ok(token)
}

/// A whole file; "-" is standard input.
fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    let read = match path.as_os_str() == "-" {
        true => std::io::stdin().lock().read_to_end(&mut text).map(|_| text),
        false => std::fs::read(path),
    };
    read.map_err(|error| format!("{}: {error}", path.display()))
}

fn print(text: &[u8]) -> ExitCode {
    match std::io::stdout().lock().write_all(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("standard output takes nothing: {error}")),
    }
}

async fn simulate_endpoint(mut options: origin::Options, iam: Option<SocketAddr>) -> ExitCode {
    if let Some(address) = iam {
        match Iam::start(address).await {
            Ok(iam) => options.iam = Some(iam),
            Err(error) => return fail(&format!("cannot listen on {address}: {error}; --iam names another address")),
        }
    }
    let (address, iam) = (options.address, options.iam.clone());
    let origin = match Origin::start(options).await {
        Ok(origin) => origin,
        Err(error) => return fail(&format!("cannot listen on {address}: {error}; --address names another")),
    };
    let usage = iam.as_ref().map(Iam::usage).unwrap_or_default();
    let _ = write!(std::io::stdout().lock(), "the simulated endpoint listens on http://{}\n{usage}", origin.address());
    match StopSignals::new() {
        Ok(mut signals) => signals.recv().await,
        Err(error) => return fail(&format!("signals: {error}")),
    }
    origin.stop().await;
    if let Some(iam) = iam {
        iam.stop().await;
    }
    ExitCode::SUCCESS
}

fn run(threads: Option<usize>, main: impl Future<Output = ExitCode>) -> ExitCode {
    match runtime(threads) {
        Ok(runtime) => {
            let code = runtime.block_on(main);
            // Does not wait for flights that nobody waits for.
            runtime.shutdown_background();
            code
        }
        Err(error) => fail(&format!("the runtime does not start: {error}")),
    }
}

/// Threads without `runtime.threads`: a sidecar needs no more than these, on whatever machine.
const MOST_THREADS: usize = 4;

/// With one thread, tasks need no synchronization.
fn runtime(threads: Option<usize>) -> std::io::Result<Runtime> {
    let cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get().min(MOST_THREADS));
    let threads = threads.unwrap_or_else(cores);
    let mut builder = if threads == 1 { Builder::new_current_thread() } else { Builder::new_multi_thread() };
    builder.worker_threads(threads).enable_all().build()
}

fn refuse(message: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr().lock(), "{}", message.trim_end());
    ExitCode::from(BAD_USAGE)
}

fn fail(message: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr().lock(), "sidelink: {message}");
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }
}
