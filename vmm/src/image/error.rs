//! Why an image cannot be made or read, each as one sentence for the user.

/// Why an image cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// An option has a value that cannot be.
    #[error("{field}: {what}")]
    Option {
        /// The option.
        field: &'static str,
        /// What is wrong with it, and what to do.
        what: String,
    },
}
