//! How the last reload of the configuration went.

use prometheus::{IntGauge, Registry};

use super::gauge;

/// The last reload. The configuration that sidelink has started with counts as one that succeeded.
pub struct Reload {
    /// 1: the last reload succeeded. 0: it was refused, and what was loaded before is still in force.
    pub successful: IntGauge,
    /// When what is in force was loaded, in seconds since the Unix epoch; 0: not known yet.
    pub success_timestamp: IntGauge,
}

impl Reload {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let reload = Self {
            successful: gauge(
                registry,
                "config_last_reload_successful",
                "1 if the last reload of the configuration succeeded or there was none yet; 0 if it was refused: what was loaded before is still in force.",
            )?,
            success_timestamp: gauge(
                registry,
                "config_last_reload_success_timestamp_seconds",
                "When the configuration in force was loaded, in seconds since the Unix epoch.",
            )?,
        };
        reload.successful.set(1);
        Ok(reload)
    }

    /// A configuration is in force since `unix_seconds`.
    pub fn succeeded(&self, unix_seconds: u64) {
        self.successful.set(1);
        self.success_timestamp.set(i64::try_from(unix_seconds).unwrap_or(i64::MAX));
    }

    /// A configuration was refused.
    pub fn failed(&self) {
        self.successful.set(0);
    }
}
