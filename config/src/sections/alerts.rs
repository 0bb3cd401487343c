//! `[alerts]`: what people are told about without having asked, and where to.

use std::path::PathBuf;

/// `[alerts]`.
#[derive(Debug, Clone, PartialEq)]
pub struct AlertsSection {
    /// A loss that lies so many of its smoothed deviations above its smoothed mean is a spike.
    pub spike_sigmas: f64,
    /// A run that has committed no step for so many times as long as a step usually takes stalls.
    pub stall_factor: f64,
    /// It never stalls before so many seconds.
    pub stall_seconds: f64,
    /// A rank is a straggler when its peers wait for so much more of their time than it does.
    pub straggler_share: f64,
    /// Data is slow when rank 0 waits for it for so much of its steps.
    pub data_share: f64,
    /// The disk of the run's folder is nearly full below so much free space, in MiB.
    pub disk_mib: u64,
    /// A certificate is about to expire when it is valid for fewer days.
    pub certificate_days: u64,
    /// Where alerts are posted: a URL that anybody may read.
    pub webhook: Option<String>,
    /// A file that holds that URL, where it is secret.
    pub webhook_file: Option<PathBuf>,
}

impl Default for AlertsSection {
    fn default() -> AlertsSection {
        AlertsSection {
            spike_sigmas: 6.0,
            stall_factor: 10.0,
            stall_seconds: 60.0,
            straggler_share: 0.25,
            data_share: 0.2,
            disk_mib: 1024,
            certificate_days: 14,
            webhook: None,
            webhook_file: None,
        }
    }
}
