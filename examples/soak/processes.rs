//! The processes of a run: the endpoint, sidelink, and Redis; and what can happen to them.

use std::error::Error;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

/// How many kinds of faults there are.
pub(crate) const FAULTS: usize = 6;
/// Bytes that links may take: little, so that eviction works all the time.
pub(crate) const CAPACITY_MIB: u64 = 8;
/// How long its links live; with the floor below they are fresh for a short while only.
const LINK_LIFE: &str = "45s";
/// `freshness.min_remaining`.
pub(crate) const MIN_REMAINING: Duration = Duration::from_secs(15);

/// Everything that runs.
pub(crate) struct Stage {
    /// Where clients connect.
    pub(crate) address: SocketAddr,
    /// Where operators connect.
    pub(crate) admin: SocketAddr,
    folder: TempDir,
    binary: PathBuf,
    endpoint_address: SocketAddr,
    redis_address: SocketAddr,
    endpoint: Child,
    sidelink: Child,
    redis: Option<Child>,
}

/// What has been broken.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    EndpointFrozen,
    EndpointGone,
    RedisFrozen,
    RedisGone,
    ConfigurationBroken,
    Reloaded,
}

impl Stage {
    /// Starts everything, on free ports, beside this program's own binary.
    pub(crate) async fn set() -> Result<Self, Box<dyn Error>> {
        let own = std::env::current_exe()?;
        let target = own.parent().and_then(Path::parent).ok_or("this program has no folder")?;
        let binary = target.join("sidelink");
        if !binary.exists() {
            return Err(format!("{} is not there: build it first", binary.display()).into());
        }
        let folder = TempDir::new()?;
        let (endpoint_address, address, admin) = (free().await?, free().await?, free().await?);
        let redis_address = free().await?;
        let endpoint = endpoint(&binary, endpoint_address)?;
        let redis = redis(redis_address, folder.path()).ok();
        std::fs::write(folder.path().join("secret"), format!("{:064x}\n", 7))?;
        let tier = redis.is_some().then_some(redis_address);
        configure(folder.path(), &text(folder.path(), [address, admin, endpoint_address], tier))?;
        up(endpoint_address).await?;
        if redis.is_some() {
            up(redis_address).await?;
        }
        let sidelink = Command::new(&binary)
            .args(["serve", "--core-dumps", "--config"])
            .arg(folder.path().join("sidelink.toml"))
            .stdout(std::fs::File::create(folder.path().join("log"))?)
            .kill_on_drop(true)
            .spawn()?;
        up(address).await?;
        Ok(Self { address, admin, folder, binary, endpoint_address, redis_address, endpoint, sidelink, redis })
    }

    /// One line about what runs.
    pub(crate) fn describe(&self) -> String {
        let tier = if self.redis.is_some() { "with a Redis" } else { "without a Redis (none is installed)" };
        format!("sidelink {}, {tier}, links of {LINK_LIFE}, {CAPACITY_MIB} MiB of cache", env!("CARGO_PKG_VERSION"))
    }

    /// sidelink's process.
    pub(crate) fn pid(&self) -> u32 {
        self.sidelink.id().unwrap_or_default()
    }

    /// Breaks the `kind`th thing.
    pub(crate) async fn break_something(&mut self, kind: usize) -> Result<Fault, Box<dyn Error>> {
        let fault = match kind {
            0 => Fault::EndpointFrozen,
            1 => Fault::EndpointGone,
            2 if self.redis.is_some() => Fault::RedisFrozen,
            3 if self.redis.is_some() => Fault::RedisGone,
            4 => Fault::ConfigurationBroken,
            _ => Fault::Reloaded,
        };
        match fault {
            Fault::EndpointFrozen => signal(&self.endpoint, "STOP").await?,
            Fault::EndpointGone => self.endpoint.kill().await?,
            Fault::RedisFrozen => signal(self.redis.as_ref().ok_or("no Redis")?, "STOP").await?,
            Fault::RedisGone => self.redis.as_mut().ok_or("no Redis")?.kill().await?,
            Fault::ConfigurationBroken => {
                configure(self.folder.path(), "[listen\n")?;
                signal(&self.sidelink, "HUP").await?;
            }
            Fault::Reloaded => self.reload().await?,
        }
        Ok(fault)
    }

    /// Puts it right again.
    pub(crate) async fn mend(&mut self, fault: Fault) -> Result<(), Box<dyn Error>> {
        match fault {
            Fault::EndpointFrozen => signal(&self.endpoint, "CONT").await?,
            Fault::EndpointGone => self.endpoint = endpoint(&self.binary, self.endpoint_address)?,
            Fault::RedisFrozen => signal(self.redis.as_ref().ok_or("no Redis")?, "CONT").await?,
            Fault::RedisGone => self.redis = Some(redis(self.redis_address, self.folder.path())?),
            Fault::ConfigurationBroken | Fault::Reloaded => self.reload().await?,
        }
        Ok(())
    }

    async fn reload(&self) -> Result<(), Box<dyn Error>> {
        let tier = self.redis.is_some().then_some(self.redis_address);
        let addresses = [self.address, self.admin, self.endpoint_address];
        configure(self.folder.path(), &text(self.folder.path(), addresses, tier))?;
        signal(&self.sidelink, "HUP").await
    }

    /// Asks sidelink to end, and says how it did.
    pub(crate) async fn end(mut self) -> Result<ExitStatus, Box<dyn Error>> {
        signal(&self.sidelink, "TERM").await?;
        Ok(tokio::time::timeout(Duration::from_secs(30), self.sidelink.wait()).await??)
    }
}

fn endpoint(binary: &Path, address: SocketAddr) -> std::io::Result<Child> {
    Command::new(binary)
        .args(["origin", "--address", &address.to_string(), "--link-life", LINK_LIFE, "--delay", "5ms"])
        .args(["--fail-ratio", "0.02", "--missing", "lost-1,lost-2", "--refuse", "revoked"])
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
}

fn redis(address: SocketAddr, folder: &Path) -> std::io::Result<Child> {
    Command::new("redis-server")
        .args(["--port", &address.port().to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .args(["--maxmemory", "32mb", "--maxmemory-policy", "allkeys-lru"])
        .current_dir(folder)
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
}

fn text(folder: &Path, [address, admin, endpoint]: [SocketAddr; 3], redis: Option<SocketAddr>) -> String {
    let secret = folder.join("secret");
    let shared = redis.map_or(String::new(), |redis| {
        format!("[shared]\nurl = \"redis://{redis}\"\nsecret_file = \"{}\"\n", secret.display())
    });
    format!(
        "[listen]\naddress = \"{address}\"\n[admin]\naddress = \"{admin}\"\n\
         [upstream]\nendpoint = \"http://{endpoint}\"\ndeadline = \"2s\"\n\
         [cache]\ncapacity = \"{CAPACITY_MIB}MiB\"\n\
         [freshness]\nmin_remaining = \"{}s\"\n\
         [limits]\nconnections = 400\nidle_timeout = \"10s\"\nheader_timeout = \"3s\"\ndrain = \"10s\"\n\
         [log]\nlevel = \"warn\"\naccess = false\n{shared}",
        MIN_REMAINING.as_secs(),
    )
}

/// Whole or not at all, as an operator's tools do it.
fn configure(folder: &Path, text: &str) -> std::io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.persist(folder.join("sidelink.toml")).map(drop).map_err(|error| error.error)
}

async fn signal(child: &Child, name: &str) -> Result<(), Box<dyn Error>> {
    let pid = child.id().ok_or("a process has ended by itself")?;
    let status = Command::new("kill").args([format!("-{name}"), pid.to_string()]).status().await?;
    if status.success() { Ok(()) } else { Err(format!("kill -{name} {pid}: {status}").into()) }
}

/// A port that was free a moment ago.
async fn free() -> std::io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?.local_addr()
}

async fn up(address: SocketAddr) -> Result<(), Box<dyn Error>> {
    for _ in 0..500 {
        if TcpStream::connect(address).await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Err(format!("nothing listens on {address}").into())
}
