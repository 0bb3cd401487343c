//! A Chromium without a window, for the tests of the page. It is optional: where there is none, they are left out, and say so.

use std::path::PathBuf;

use crate::setup::tools;

/// Names the browser for the tests, which then must have it.
pub(crate) const BROWSER: &str = "LOCKSTEP_BROWSER";
/// What Debian calls the smallest one.
const PACKAGES: [&str; 1] = ["chromium-headless-shell"];
const NAMES: [&str; 5] = [
    "chromium-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "chrome-headless-shell",
];

/// Installs a browser where that is allowed and none is there. Says what to install where it is not.
pub(crate) fn prepare() {
    if program().is_some() {
        return;
    }
    if tools::may_install() {
        match tools::install(&PACKAGES) {
            Ok(()) if program().is_some() => return,
            Ok(()) => {}
            Err(failure) => println!("setup: {failure}"),
        }
    }
    println!(
        "setup: Chromium is not there, so tests of the page are left out; to have them, run `{}`",
        tools::install_command(&PACKAGES)
    );
}

/// The browser of this machine.
pub(crate) fn program() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os(BROWSER) {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH")?;
    let places: Vec<PathBuf> = std::env::split_paths(&path)
        .flat_map(|folder| NAMES.map(|name| folder.join(name)))
        .collect();
    places.into_iter().find(|place| place.is_file())
}
