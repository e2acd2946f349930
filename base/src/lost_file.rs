//! How an object store says that waiting does not help: no live server holds a part of the file.
//!
//! Unlike `NotFound` the file's name is there. Unlike other errors the answer is known, not missing:
//! only a server that was given up for dead could bring the content back.

use object_store::Error;

/// The source of an [`object_store::Error::Generic`] that [`is_lost`] recognises.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{path} is lost: {what}")]
pub struct LostFile {
    /// The file.
    pub path: String,
    /// Which part of it, and why.
    pub what: String,
}

/// Whether a read failed because the content is lost, and not because servers are out of reach.
pub fn is_lost(error: &Error) -> bool {
    matches!(error, Error::Generic { source, .. } if source.is::<LostFile>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_said_to_be_lost_is_lost() {
        let generic = |source| Error::Generic { store: "test", source };
        let lost = LostFile { path: "a/b".into(), what: "chunk 7: no live server holds it".into() };
        assert!(is_lost(&generic(Box::new(lost))));
        assert!(!is_lost(&generic("chunk 7: no live server holds it".into())));
        assert!(!is_lost(&Error::NotFound { path: "a/b".into(), source: "deleted".into() }));
    }
}
