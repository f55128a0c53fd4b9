//! The store of the metadata service: any JSON object, put, patched and read by the API, read by the guest.

use std::sync::{Arc, Mutex, PoisonError};

use hyper::StatusCode;
use serde_json::{Map, Value};

use super::configure::before_start;
use super::error::ApiError;
use super::route::Scene;
use super::types::{MmdsConfig, MmdsContents};

/// The most that the store holds, as JSON text.
const LIMIT: usize = 50 << 10;

/// The service: what it says, to whom and where.
#[derive(Debug, Default)]
pub(crate) struct Mmds {
    contents: Arc<Mutex<Option<Value>>>,
    config: Option<MmdsConfig>,
}

impl Mmds {
    /// How it answers the guest.
    pub(crate) fn config(&self) -> Option<&MmdsConfig> {
        self.config.as_ref()
    }

    fn get(&self) -> Value {
        let contents = self.contents.lock().unwrap_or_else(PoisonError::into_inner);
        contents.clone().unwrap_or_else(|| Value::Object(Map::new()))
    }

    fn put(&self, new: Value) -> Result<(), ApiError> {
        let length = new.to_string().len();
        if length > LIMIT {
            return Err(ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!(
                    "The MMDS patch or data request doesn't fit: the store would hold {length} bytes, and its limit is {LIMIT}."
                ),
            ));
        }
        *self.contents.lock().unwrap_or_else(PoisonError::into_inner) = Some(new);
        Ok(())
    }

    fn patch(&self, change: Map<String, Value>) -> Result<(), ApiError> {
        let old = self
            .contents
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let Some(mut value) = old else {
            return Err(ApiError::bad("The MMDS data store is not initialized."));
        };
        merge(&mut value, Value::Object(change));
        self.put(value)
    }
}

/// Merges `change` into `value` as RFC 7396 has it: null removes, objects are merged, anything else replaces.
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

/// `GET /mmds`
pub(crate) fn get(scene: &mut Scene<'_>) -> Result<MmdsContents, ApiError> {
    match scene.side.mmds.get() {
        Value::Object(contents) => Ok(MmdsContents(contents)),
        _ => Ok(MmdsContents::default()),
    }
}

/// `PUT /mmds`
pub(crate) fn put(scene: &mut Scene<'_>, _: &str, contents: MmdsContents) -> Result<(), ApiError> {
    scene.side.mmds.put(Value::Object(contents.0))
}

/// `PATCH /mmds`
pub(crate) fn patch(scene: &mut Scene<'_>, _: &str, change: MmdsContents) -> Result<(), ApiError> {
    scene.side.mmds.patch(change.0)
}

/// `PUT /mmds/config`
pub(crate) fn put_config(scene: &mut Scene<'_>, _: &str, config: MmdsConfig) -> Result<(), ApiError> {
    before_start(scene)?;
    check(&config, scene)?;
    Err(ApiError::bad(
        "mmds/config: Berth keeps the metadata, but does not answer the guest on its network interfaces yet.",
    ))
}

fn check(config: &MmdsConfig, scene: &Scene<'_>) -> Result<(), ApiError> {
    if config.network_interfaces.is_empty() {
        return Err(ApiError::bad(
            "network_interfaces: The list of network interface IDs that allow forwarding MMDS requests is empty.",
        ));
    }
    let nets = &scene.machine.spec().nets;
    let known = |id: &String| nets.iter().any(|net| net.id.as_ref() == Some(id));
    if let Some(id) = config.network_interfaces.iter().find(|id| !known(id)) {
        return Err(ApiError::bad(format!(
            "network_interfaces: there is no network interface {id:?}; PUT /network-interfaces/{id} first."
        )));
    }
    let [first, second, third, _] = config.ipv4_address.octets();
    if (first, second) != (169, 254) || third == 0 || third == 255 {
        return Err(ApiError::bad(format!(
            "ipv4_address: The MMDS IPv4 address is not link local: {}; give one from 169.254.1.0 to 169.254.254.255.",
            config.ipv4_address
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_patch_merges_objects_removes_by_null_and_replaces_the_rest() {
        let mut value = json!({"a": {"b": 1, "c": 2}, "d": [1], "e": "x"});
        merge(
            &mut value,
            json!({"a": {"b": null, "f": {"g": null, "h": 3}}, "d": {"i": 4}}),
        );
        assert_eq!(
            value,
            json!({"a": {"c": 2, "f": {"h": 3}}, "d": {"i": 4}, "e": "x"})
        );
    }

    #[test]
    fn an_empty_store_reads_as_an_empty_object_and_cannot_be_patched() {
        let mmds = Mmds::default();
        assert_eq!(mmds.get(), json!({}));
        let refused = mmds.patch(Map::new()).unwrap_err();
        assert_eq!(refused.message, "The MMDS data store is not initialized.");
    }

    #[test]
    fn what_does_not_fit_is_refused_and_changes_nothing() {
        let mmds = Mmds::default();
        mmds.put(json!({"kept": true})).unwrap();
        let mut change = Map::new();
        change.insert("large".to_owned(), Value::String("x".repeat(LIMIT)));
        let refused = mmds.patch(change).unwrap_err();
        assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(mmds.get(), json!({"kept": true}));
    }
}
