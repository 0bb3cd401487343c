//! `[alerts]`: its keys, their defaults and ranges.

use std::path::PathBuf;

use toml::Value;

use crate::error::ConfigError;
use crate::fields::{Fields, MAX};
use crate::read::POSITIVE;
use crate::sections::AlertsSection;

const SHARE: &str = "a number above 0 and below 1";
const URL: &str = "an address such as \"https://HOST/PATH\"";
const FILE: &str = "the path of a file that holds such an address";

/// Reads the section of a run.
pub(super) fn read(mut fields: Fields<'_>) -> Result<AlertsSection, ConfigError> {
    let usual = AlertsSection::default();
    let is_share = |share: f64| share > 0.0 && share < 1.0;
    let section = AlertsSection {
        spike_sigmas: fields.number("spike_sigmas", Some(usual.spike_sigmas), POSITIVE, |x| x > 0.0)?,
        stall_factor: fields.number(
            "stall_factor",
            Some(usual.stall_factor),
            "a number of at least 1",
            |x| x >= 1.0,
        )?,
        stall_seconds: fields.number(
            "stall_seconds",
            Some(usual.stall_seconds),
            "a number of seconds from 1 to 86400",
            |x| (1.0..=86_400.0).contains(&x),
        )?,
        straggler_share: fields.number("straggler_share", Some(usual.straggler_share), SHARE, is_share)?,
        data_share: fields.number("data_share", Some(usual.data_share), SHARE, is_share)?,
        disk_mib: fields.integer("disk_mib", 0..=MAX, Some(usual.disk_mib))?,
        certificate_days: fields.integer("certificate_days", 0..=36_500, Some(usual.certificate_days))?,
        webhook: webhook(&mut fields)?,
        webhook_file: fields.optional_text("webhook_file", FILE)?.map(PathBuf::from),
    };
    if let (Some(_), Some(file)) = (&section.webhook, &section.webhook_file) {
        return Err(fields.refuse_with(
            "webhook_file",
            &Value::String(file.display().to_string()),
            "absent where alerts.webhook says where alerts are posted",
            "keep one of alerts.webhook and alerts.webhook_file",
        ));
    }
    fields.done()?;
    Ok(section)
}

fn webhook(fields: &mut Fields<'_>) -> Result<Option<String>, ConfigError> {
    let url = fields.optional_text("webhook", URL)?;
    match url {
        // What was written there may be a secret in the wrong place: it is not repeated.
        Some(url) if !is_address(&url) => Err(fields.refuse("webhook", &Value::String("…".to_owned()), URL)),
        Some(url) if url.contains('@') || url.contains('?') => Err(fields.refuse_with(
            "webhook",
            &Value::String("…".to_owned()),
            "an address without a user, a password or a query, since the run's config is kept and shown",
            "write the address into a file and name that in alerts.webhook_file",
        )),
        url => Ok(url),
    }
}

/// Whether it is an address that something can be posted to.
pub(super) fn is_address(url: &str) -> bool {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/') && !rest.contains(char::is_whitespace))
}
