//! What must not grow: memory, file descriptors, tasks.

use std::error::Error;
use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

use crate::processes::CAPACITY_MIB;
use crate::traffic::get;

/// Between one printed line and the next.
const LINE: Duration = Duration::from_secs(60);
/// What sidelink takes besides its cache, in MiB: it when idle, connections, what is in flight.
const BESIDES_MIB: f64 = 48.0;
/// By how much the last third of a run may take more than the second: noise, not growth.
const NOISE: f64 = 1.15;
/// What may be left once nobody asks any more: listeners, timers, idle connections to the endpoint and Redis. What leaks
/// with one request in ten thousand comes to more than that within minutes.
const MOST_TASKS_LEFT: f64 = 64.0;
const MOST_FILES_LEFT: usize = 64;

/// One look.
#[derive(Clone, Copy)]
pub(crate) struct Look {
    rss_mib: f64,
    files: usize,
    tasks: f64,
}

/// All looks at one process.
pub(crate) struct Watch {
    pid: u32,
    admin: SocketAddr,
    looks: Vec<Look>,
    lines: u32,
}

impl Watch {
    pub(crate) fn new(pid: u32, admin: SocketAddr) -> Self {
        Self { pid, admin, looks: Vec::new(), lines: 0 }
    }

    /// Looks once; a line now and then.
    pub(crate) async fn look(&mut self, elapsed: Duration) -> Result<Option<String>, Box<dyn Error>> {
        let look = self.now().await?;
        self.looks.push(look);
        if elapsed < LINE * self.lines {
            return Ok(None);
        }
        self.lines += 1;
        Ok(Some(format!(
            "{:>5} s  {:6.1} MiB  {:4} files  {:5.0} tasks",
            elapsed.as_secs(),
            look.rss_mib,
            look.files,
            look.tasks
        )))
    }

    /// A look once all is quiet.
    pub(crate) async fn settled(&self) -> Result<Look, Box<dyn Error>> {
        self.now().await
    }

    async fn now(&self) -> Result<Look, Box<dyn Error>> {
        let page = get(self.admin, "/metrics").await?;
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let kib: Option<f64> =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
        let tasks: Option<f64> = page.lines().find_map(|line| line.strip_prefix("sidelink_tasks ")?.parse().ok());
        Ok(Look {
            rss_mib: kib.ok_or("no VmRSS")? / 1024.0,
            files: std::fs::read_dir(format!("/proc/{}/fd", self.pid))?.count(),
            tasks: tasks.ok_or("no sidelink_tasks")?,
        })
    }

    /// The most of each third of the run.
    fn thirds(&self, value: impl Fn(&Look) -> f64) -> [f64; 3] {
        let third = self.looks.len().div_ceil(3).max(1);
        let mut most = [0.0; 3];
        for (most, looks) in most.iter_mut().zip(self.looks.chunks(third)) {
            *most = looks.iter().map(&value).fold(0.0, f64::max);
        }
        most
    }

    pub(crate) fn report(&self) -> String {
        let mut report = String::from("the most in each third of the run:");
        let mut add = |name: &str, [first, second, third]: [f64; 3]| {
            let _ = write!(report, " {name} {first:.0}, {second:.0}, {third:.0};");
        };
        add("MiB", self.thirds(|look| look.rss_mib));
        add("files", self.thirds(|look| look.files as f64));
        add("tasks", self.thirds(|look| look.tasks));
        report
    }

    /// Within bounds, and not growing.
    pub(crate) fn held(&self) -> bool {
        let [_, second, third] = self.thirds(|look| look.rss_mib);
        let most = self.looks.iter().map(|look| look.rss_mib).fold(0.0, f64::max);
        most <= 1.5 * CAPACITY_MIB as f64 + BESIDES_MIB && third <= second * NOISE
    }
}

impl Look {
    pub(crate) fn report(&self) -> String {
        format!("settled: {:.0} MiB, {} files, {:.0} tasks", self.rss_mib, self.files, self.tasks)
    }

    /// Nothing is left of the traffic.
    pub(crate) fn held(&self) -> bool {
        self.files <= MOST_FILES_LEFT && self.tasks <= MOST_TASKS_LEFT
    }
}
