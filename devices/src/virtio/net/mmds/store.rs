//! What the service knows: one JSON document, put and changed by who controls the VM, read by the guest.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value};

use super::counts::{Counters, Event, MMDS_COUNTS};

/// The most that the document may have, as JSON text in bytes, if nobody says otherwise.
pub const DEFAULT_LIMIT: usize = 51200;

/// Why the document does not become what it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// Too much.
    #[error("it would hold {length} bytes, and its limit is {limit}")]
    TooLarge {
        /// Bytes of the new document.
        length: usize,
        /// The most there may be.
        limit: usize,
    },
    /// There is nothing to change yet.
    #[error("there is no metadata yet")]
    Empty,
}

/// The document, shared by cards and the control side. Each call sees all of a change or nothing of it.
#[derive(Debug)]
pub struct MetadataStore {
    inner: Mutex<Inner>,
    counters: Counters,
}

#[derive(Debug)]
struct Inner {
    document: Option<Value>,
    limit: usize,
}

impl Default for MetadataStore {
    fn default() -> Self {
        Self {
            inner: Mutex::new(Inner {
                document: None,
                limit: DEFAULT_LIMIT,
            }),
            counters: Counters::default(),
        }
    }
}

impl MetadataStore {
    /// The document; an empty object before there is one.
    pub fn get(&self) -> Value {
        let document = self.lock().document.clone();
        document.unwrap_or_else(|| Value::Object(Map::new()))
    }

    /// Whether nothing was put yet.
    pub fn is_empty(&self) -> bool {
        self.lock().document.is_none()
    }

    /// Replaces the document.
    pub fn put(&self, document: Value) -> Result<(), MetadataError> {
        self.lock().put(document)
    }

    /// Merges `change` into the document as RFC 7396 has it: null removes, objects are merged, anything else replaces.
    pub fn patch(&self, change: Value) -> Result<(), MetadataError> {
        let mut inner = self.lock();
        let mut document = inner.document.clone().ok_or(MetadataError::Empty)?;
        merge(&mut document, change);
        inner.put(document)
    }

    /// Sets the most that the document may have from now on, in bytes of JSON text.
    pub fn set_limit(&self, limit: usize) {
        self.lock().limit = limit;
    }

    /// What `read` makes of the part of the document at `pointer` (RFC 6901).
    pub(super) fn at<T>(&self, pointer: &str, read: impl FnOnce(&Value) -> T) -> Option<T> {
        let inner = self.lock();
        inner.document.as_ref()?.pointer(pointer).map(read)
    }

    /// What the service has done on all cards, in the order of [`MMDS_COUNTS`].
    pub fn counts(&self) -> [u64; MMDS_COUNTS.len()] {
        self.counters.get()
    }

    pub(super) fn count(&self, event: Event) {
        self.counters.add(event, 1);
    }

    pub(super) fn count_many(&self, event: Event, count: usize) {
        self.counters.add(event, count as u64);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A change is one assignment, so what a panic left is whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn put(&mut self, document: Value) -> Result<(), MetadataError> {
        let (length, limit) = (document.to_string().len(), self.limit);
        if length > limit {
            return Err(MetadataError::TooLarge { length, limit });
        }
        self.document = Some(document);
        Ok(())
    }
}

fn merge(value: &mut Value, change: Value) {
    let Value::Object(change) = change else {
        *value = change;
        return;
    };
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    if let Value::Object(own) = value {
        for (key, change) in change {
            if change.is_null() {
                own.remove(&key);
            } else {
                merge(own.entry(key).or_insert(Value::Null), change);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_patch_merges_objects_removes_by_null_and_replaces_the_rest() {
        let store = MetadataStore::default();
        store
            .put(json!({"a": {"b": 1, "c": 2}, "d": [1], "e": "x"}))
            .unwrap();
        store
            .patch(json!({"a": {"b": null, "f": {"g": null, "h": 3}}, "d": {"i": 4}}))
            .unwrap();
        assert_eq!(
            store.get(),
            json!({"a": {"c": 2, "f": {"h": 3}}, "d": {"i": 4}, "e": "x"})
        );
    }

    #[test]
    fn an_empty_store_reads_as_an_empty_object_and_cannot_be_patched() {
        let store = MetadataStore::default();
        assert_eq!(store.get(), json!({}));
        assert_eq!(store.patch(json!({"a": 1})), Err(MetadataError::Empty));
    }

    #[test]
    fn what_does_not_fit_is_refused_and_changes_nothing() {
        let store = MetadataStore::default();
        store.put(json!({"kept": true})).unwrap();
        let large = "x".repeat(DEFAULT_LIMIT);
        let refused = store.patch(json!({"large": large})).unwrap_err();
        assert!(
            matches!(
                refused,
                MetadataError::TooLarge {
                    limit: DEFAULT_LIMIT,
                    ..
                }
            ),
            "{refused}"
        );
        assert_eq!(store.get(), json!({"kept": true}));
        store.set_limit(2 * DEFAULT_LIMIT);
        assert_eq!(store.patch(json!({"large": large})), Ok(()));
        store.set_limit(12);
        assert_eq!(
            store.put(json!({"a": 12345})),
            Ok(()),
            "twelve bytes hold so much"
        );
    }
}
