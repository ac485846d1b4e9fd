//! The command line.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::LazyLock;

use clap::{CommandFactory, Parser, Subcommand};
use http::HeaderValue;
use sidelink::app::{self, End, PassedSockets, StartError, StopSignals, Watch, core_dumps, descriptors};
use sidelink::config::{Config, ConfigError};
use sidelink::demo;
use sidelink::demo::origin::{self, Origin};
use sidelink::telemetry::log;
use sidelink::{AdminClient, Purge};
use tokio::runtime::{Builder, Runtime};

/// With the revision that it was built from.
static VERSION: LazyLock<String> =
    LazyLock::new(|| format!("{} (revision {})", env!("CARGO_PKG_VERSION"), sidelink::REVISION));
/// Bad usage or a bad configuration.
const BAD_USAGE: u8 = 2;

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
    },
    /// Ask the running process whether it serves: exit 0 or 1. For health checks of images without a shell.
    Healthcheck {
        /// TOML file of the running process, whose admin listener is asked.
        #[arg(long)]
        config: PathBuf,
    },
    /// Ask the running process what would become of a batch now, and why.
    Explain {
        /// TOML file of the running process, whose admin listener is asked.
        #[arg(long)]
        config: PathBuf,
        /// File with the token of the caller; "-" reads it from standard input. Without one, the batch has no caller.
        #[arg(long)]
        token_file: Option<PathBuf>,
        /// The group of the ids.
        #[arg(long)]
        group: Option<String>,
        /// Ids of the batch, in its order; also between commas.
        #[arg(required = true, value_delimiter = ',')]
        ids: Vec<String>,
    },
    /// Purge links of the running process, and of its fleet: they are fetched again.
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
        /// Exit after the replay: 0 if every answer was right.
        #[arg(long)]
        once: bool,
        /// How many batches the replay has.
        #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        batches: u32,
    },
    /// Run the simulated endpoint alone.
    Origin(Box<origin::Options>),
}

/// What is purged: one of three.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct PurgeTarget {
    /// These ids, in every group; also between commas.
    #[arg(value_delimiter = ',')]
    ids: Vec<String>,
    /// Every id of this group.
    #[arg(long)]
    group: Option<String>,
    /// Everything.
    #[arg(long)]
    all: bool,
}

impl From<PurgeTarget> for Purge {
    fn from(PurgeTarget { ids, group, .. }: PurgeTarget) -> Self {
        match group {
            Some(group) => Purge::GroupId(group),
            None if ids.is_empty() => Purge::All(true),
            None => Purge::AccessoryIds(ids),
        }
    }
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Serve { config, core_dumps } => serve(&config, core_dumps),
        Command::Check { config, quiet } => check(&config, quiet),
        Command::Healthcheck { config } => check_health(&config),
        Command::Explain { config, token_file, group, ids } => {
            match token_file.as_deref().map(read_token).transpose() {
                Ok(token) => ask(&config, async |admin| admin.explain(&ids, group.as_deref(), token).await),
                Err(error) => fail(&format!("--token-file: {error}")),
            }
        }
        Command::Purge { config, target } => {
            let purge = Purge::from(target);
            ask(&config, async |admin| admin.purge(&purge).await)
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
        Command::Demo { once, batches } => run(None, async move {
            match demo::run(batches as usize, once).await {
                Ok(true) => ExitCode::SUCCESS,
                Ok(false) => ExitCode::FAILURE,
                Err(error) => fail(&format!("demo: {error}")),
            }
        }),
        Command::Origin(options) => run(None, simulate_endpoint(*options)),
    }
}

fn serve(path: &std::path::Path, core_dumps: bool) -> ExitCode {
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

fn check(path: &std::path::Path, quiet: bool) -> ExitCode {
    match Config::load(path, None) {
        Ok(config) => {
            for ConfigError { line, key, message, .. } in &config.warnings {
                let _ = writeln!(std::io::stderr().lock(), "{}:{line}: {key}: {message} (a warning)", path.display());
            }
            if quiet { ExitCode::SUCCESS } else { print(format!("{config}\n").as_bytes()) }
        }
        Err(errors) => refuse(&errors.to_string()),
    }
}

/// Asks the process whose `[admin]` this file has. The rest of the file may be wrong: the process goes on without it.
fn check_health(path: &std::path::Path) -> ExitCode {
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
fn ask(path: &std::path::Path, question: impl AsyncFnOnce(AdminClient) -> Result<String, String>) -> ExitCode {
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
fn read_token(path: &std::path::Path) -> Result<HeaderValue, String> {
    let text =
        if path.as_os_str() == "-" { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(path) };
    let text = text.map_err(|error| format!("{}: {error}", path.display()))?;
    if text.trim().is_empty() {
        return Err(format!("{} is empty", path.display()));
    }
    let mut token = HeaderValue::try_from(text.trim()).map_err(|_| format!("{} holds no token", path.display()))?;
    token.set_sensitive(true);
    Ok(token)
}

fn print(text: &[u8]) -> ExitCode {
    match std::io::stdout().lock().write_all(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("standard output takes nothing: {error}")),
    }
}

async fn simulate_endpoint(options: origin::Options) -> ExitCode {
    let address = options.address;
    let origin = match Origin::start(options).await {
        Ok(origin) => origin,
        Err(error) => return fail(&format!("cannot listen on {address}: {error}; --address names another")),
    };
    let _ = writeln!(std::io::stdout().lock(), "the simulated endpoint listens on http://{}", origin.address());
    match StopSignals::new() {
        Ok(mut signals) => signals.recv().await,
        Err(error) => return fail(&format!("signals: {error}")),
    }
    origin.stop().await;
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
