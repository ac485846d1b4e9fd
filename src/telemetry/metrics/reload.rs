//! How the last reload of the configuration went.

use prometheus::IntGauge;

use super::family::families;

families! {
    /// The last reload.
    pub struct Reload {
        /// 1 if the last reload of the configuration succeeded or there was none yet; 0 if it was refused: what was loaded before is still in force.
        pub successful: IntGauge = "config_last_reload_successful", flag();
        /// When the configuration in force was loaded, in seconds since the Unix epoch.
        pub success_timestamp: IntGauge = "config_last_reload_success_timestamp_seconds", gauge();
    }
}

impl Reload {
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
