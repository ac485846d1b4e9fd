//! The command line: `serve`, `check`, `demo`, `origin`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sidelink::app::core_dumps;
use sidelink::app::{self, End, StopSignals, Watch};
use sidelink::config::{Config, ConfigError};
use sidelink::demo;
use sidelink::demo::origin::{self, Origin};
use sidelink::telemetry::log;
use tokio::runtime::{Builder, Runtime};

/// Bad usage or a bad configuration.
const BAD_USAGE: u8 = 2;

/// A sidecar that makes batch link look-ups cheap.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
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
    },
    /// Run a demonstration: a simulated endpoint, a sidelink, and a replay of overlapping batches.
    Demo {
        /// Exit after the replay: 0 if every answer was right.
        #[arg(long)]
        once: bool,
    },
    /// Run the simulated endpoint alone.
    Origin(Box<origin::Options>),
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Serve { config, core_dumps } => serve(&config, core_dumps),
        Command::Check { config } => check(&config),
        Command::Demo { once } => run(None, async move {
            match demo::run(once).await {
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
    let mut watch = Watch::new(path);
    let config = match watch.load(None) {
        Ok(config) => config,
        Err(errors) => return refuse(&errors.to_string()),
    };
    log::init(&config.log);
    run(config.runtime.threads, async move {
        match app::serve(config, watch).await {
            Ok(End::Drained) => ExitCode::SUCCESS,
            Ok(End::CutShort) => ExitCode::FAILURE,
            Err(error) => fail(&error.to_string()),
        }
    })
}

fn check(path: &std::path::Path) -> ExitCode {
    match Config::load(path, None) {
        Ok(config) => {
            for ConfigError { line, key, message, .. } in &config.warnings {
                let _ = writeln!(std::io::stderr().lock(), "{}:{line}: {key}: {message} (a warning)", path.display());
            }
            match writeln!(std::io::stdout().lock(), "{config}") {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            }
        }
        Err(errors) => refuse(&errors.to_string()),
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
    use clap::CommandFactory;

    use super::Arguments;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }
}
