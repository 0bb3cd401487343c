//! The errors of this crate: what libtorch said, and what a closure said.

/// What went wrong at the border to libtorch.
#[derive(Debug, thiserror::Error)]
pub enum AutogradError {
    /// libtorch refused.
    #[error("libtorch, in {what}: {text}")]
    Torch {
        /// What was being done.
        what: &'static str,
        /// libtorch's own words.
        text: String,
    },
    /// A tensor or range does not fit.
    #[error("{0}")]
    Shape(String),
}
