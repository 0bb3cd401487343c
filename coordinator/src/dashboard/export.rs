//! The files of the page, and the page of a run as one file that needs no coordinator: style and script are put into it, and
//! the data beside them.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::dashboard::{Board, Story};
use crate::ledger::{LedgerError, Reader};

/// The page.
pub(super) const PAGE: &str = include_str!("page/page.html");
/// Its style.
pub(super) const STYLE: &str = include_str!("page/page.css");
/// Its program: small files, in the order in which they need each other.
pub(super) const SCRIPT: &str = concat!(
    include_str!("page/numbers.js"),
    include_str!("page/columns.js"),
    include_str!("page/chart.js"),
    include_str!("page/charts.js"),
    include_str!("page/panels.js"),
    include_str!("page/source.js"),
    include_str!("page/page.js"),
);
/// Its icon.
pub(super) const ICON: &str = include_str!("page/icon.svg");

/// Points of a history in a file. A run of fewer steps is whole in it.
const POINTS: usize = 10_000;
/// Where style and script stand in the page.
const LINK: &str = r#"<link rel="stylesheet" href="/page.css">"#;
const LOAD: &str = r#"<script type="module" src="/page.js"></script>"#;
const SIGN: &str = r#"<link rel="icon" href="/icon.svg">"#;
/// What the file may do: nothing but show itself.
const POLICY: &str = r#"<meta http-equiv="content-security-policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:">"#;

/// Why a page cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The file.
    #[error("cannot write {}: {cause}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Of the system.
        cause: std::io::Error,
    },
}

/// Writes the page of the run in `folder` into one file that shows it on any machine.
///
/// # Errors
/// When the ledger cannot be read or the file cannot be written.
pub fn export(folder: &Path, file: &Path) -> Result<(), ExportError> {
    let story = Story::of_reader(&Reader::open(folder)?, folder)?;
    let board = Board::new(story, lockstep_config::AlertsSection::default());
    std::fs::write(file, page_of(&board)).map_err(|cause| ExportError::Write {
        path: file.to_owned(),
        cause,
    })
}

/// The page with everything in it.
pub(super) fn page_of(board: &Board) -> String {
    let history = board.lock().history.view(0, u64::MAX, POINTS);
    let data = json!({ "state": board.state(), "history": history }).to_string();
    // Nothing in the data ends the element that it stands in.
    let data = data.replace('<', "\\u003c");
    let icon = ICON.replace('#', "%23").replace('"', "'").replace('\n', "");
    PAGE.replacen(LINK, &format!("{POLICY}<style>{STYLE}</style>"), 1)
        .replacen(
            SIGN,
            &format!("<link rel=\"icon\" href=\"data:image/svg+xml,{icon}\">"),
            1,
        )
        .replacen(
            LOAD,
            &format!(
                "<script type=\"application/json\" id=\"data\">{data}</script><script type=\"module\">{SCRIPT}</script>"
            ),
            1,
        )
}
