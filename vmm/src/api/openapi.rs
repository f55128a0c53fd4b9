//! The OpenAPI document: made from the table of routes and the types that they take and answer, and from nothing else.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::configure::BERTH;
use super::error::Fault;
use super::route::{Answer, Route};
use super::server::OWN;

/// Describes `routes` in OpenAPI 3.1.
pub(crate) fn document(routes: &[Route]) -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let fault = reference::<Fault>(&mut generator);
    let mut paths = Map::new();
    for route in routes {
        let operation = operation(route, &fault, &mut generator);
        let path = paths
            .entry(route.path)
            .or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(verbs) = path {
            verbs.insert(route.verb.name().to_lowercase(), operation);
        }
    }
    let schemas = generator.take_definitions(true);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Berth",
            "version": BERTH,
            "description": "One VM, on its Unix socket. Firecracker's API, and Berth's own below /berth/v1.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://localhost"}],
        "paths": paths,
        "components": {"schemas": schemas},
    })
}

fn reference<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    generator.subschema_for::<T>().to_value()
}

fn operation(route: &Route, fault: &Value, generator: &mut SchemaGenerator) -> Value {
    let mut operation = Map::new();
    operation.insert("summary".to_owned(), route.summary.into());
    operation.insert("operationId".to_owned(), operation_id(route).into());
    let tag = if route.path.starts_with(OWN) {
        "berth"
    } else {
        "firecracker"
    };
    operation.insert("tags".to_owned(), json!([tag]));
    let mut parameters = Vec::new();
    if let Some(name) = name(route) {
        let schema = json!({"type": "string", "pattern": "^[A-Za-z0-9_-]+$"});
        parameters.push(json!({"name": name, "in": "path", "required": true, "schema": schema}));
    }
    if let Some((name, about)) = route.query {
        let schema = json!({"type": "boolean", "default": false});
        parameters.push(json!({"name": name, "in": "query", "description": about, "schema": schema}));
    }
    if !parameters.is_empty() {
        operation.insert("parameters".to_owned(), parameters.into());
    }
    if let Some(body) = route.body {
        let schema = body(generator).to_value();
        let body =
            json!({"required": !route.optional_body, "content": {"application/json": {"schema": schema}}});
        operation.insert("requestBody".to_owned(), body);
    }
    let (status, success) = match route.answer {
        Answer::Nothing => ("204", json!({"description": "Done."})),
        Answer::Json(schema) => {
            let schema = schema(generator).to_value();
            let content = json!({"application/json": {"schema": schema}});
            ("200", json!({"description": "The answer.", "content": content}))
        }
        Answer::Content(kind) => {
            let content = json!({kind: {"schema": {"type": "string"}}});
            ("200", json!({"description": "The answer.", "content": content}))
        }
    };
    let faults = json!({"application/json": {"schema": fault}});
    let refusal = |description: &str| json!({"description": description, "content": faults});
    operation.insert(
        "responses".to_owned(),
        json!({
            status: success,
            "400": refusal("What was asked for is wrong, or not possible in this state."),
            "408": refusal("The body did not come in time."),
            "413": refusal("The body is too large."),
            "500": refusal("The host or Berth failed."),
        }),
    );
    Value::Object(operation)
}

/// The name in the path's braces.
fn name(route: &Route) -> Option<&'static str> {
    let (_, rest) = route.path.split_once('{')?;
    Some(rest.split_once('}')?.0)
}

/// The verb and the path in one word.
fn operation_id(route: &Route) -> String {
    let mut id = route.verb.name().to_lowercase();
    let words = route.path.split(|c: char| !c.is_ascii_alphanumeric());
    for word in words.filter(|word| !word.is_empty()) {
        id.push('_');
        id.push_str(word);
    }
    id
}
