//! A route: a verb and a path, what it takes, what it answers, and what it does. The server serves the table of routes and
//! the OpenAPI document describes it, so that neither knows of one that the other does not.

use std::fmt;

use hyper::StatusCode;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::ApiError;
use super::side::Side;
use crate::machine::Machine;
use crate::spec;

/// The verbs that any path knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Get,
    Put,
    Patch,
    Post,
    Delete,
}

impl Verb {
    pub(crate) fn of(method: &hyper::Method) -> Option<Self> {
        match *method {
            hyper::Method::GET => Some(Self::Get),
            hyper::Method::PUT => Some(Self::Put),
            hyper::Method::PATCH => Some(Self::Patch),
            hyper::Method::POST => Some(Self::Post),
            hyper::Method::DELETE => Some(Self::Delete),
            _ => None,
        }
    }

    /// As HTTP writes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Post => "POST",
            Self::Delete => "DELETE",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a request is about, once it has been read whole.
#[derive(Debug, Default)]
pub(crate) struct Request {
    /// What stands in the path where the route has a name in braces.
    pub(crate) id: String,
    pub(crate) query: String,
    pub(crate) body: Vec<u8>,
}

/// What a handler works on, on the control thread.
pub(crate) struct Scene<'a> {
    pub(crate) machine: &'a mut Machine,
    pub(crate) side: &'a mut Side,
}

/// What is left to wait for.
pub(crate) struct Later(Box<dyn FnOnce() -> Result<Reply, ApiError> + Send>);

impl Later {
    /// Waits, and says what became of it. Not on the control thread, nor on the server's.
    pub(crate) fn wait(self) -> Result<Reply, ApiError> {
        (self.0)()
    }
}

impl fmt::Debug for Later {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Later")
    }
}

/// A success.
#[derive(Debug)]
pub(crate) enum Reply {
    /// 204: done, nothing to say.
    Done,
    /// 200 and a JSON document.
    Json(Vec<u8>),
    /// 200 and a text of this type.
    Text(&'static str, Vec<u8>),
    /// The machine has done its part, and something else must be waited for.
    Later(Later),
}

impl Reply {
    /// What `wait` says when it is done with waiting.
    pub(crate) fn later(wait: impl FnOnce() -> Result<Reply, ApiError> + Send + 'static) -> Self {
        Self::Later(Later(Box::new(wait)))
    }

    pub(crate) fn json<T: Serialize>(value: &T) -> Result<Self, ApiError> {
        serde_json::to_vec(value).map(Self::Json).map_err(|cause| {
            ApiError::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("the answer cannot be written as JSON: {cause}"),
            )
        })
    }
}

/// What is left to do on the control thread.
pub(crate) type Job = Box<dyn FnOnce(&mut Scene<'_>) -> Result<Reply, ApiError> + Send>;

/// Makes a type's schema.
pub(crate) type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// How a route does what it does.
pub(crate) enum Action {
    /// On the control thread, with the machine at hand.
    Machine(Box<dyn Fn(Request) -> Result<Job, ApiError>>),
    /// The OpenAPI document.
    OpenApi,
    /// The stream of events.
    Events,
}

/// What a success looks like.
#[derive(Clone, Copy)]
pub(crate) enum Answer {
    /// 204.
    Nothing,
    /// 200 and JSON.
    Json(SchemaOf),
    /// 200 and another type of content.
    Content(&'static str),
}

/// A route.
pub(crate) struct Route {
    pub(crate) verb: Verb,
    /// With at most one name in braces.
    pub(crate) path: &'static str,
    pub(crate) summary: &'static str,
    /// None where a body makes no sense.
    pub(crate) body: Option<SchemaOf>,
    /// Whether the body may be left out.
    pub(crate) optional_body: bool,
    /// A switch in the query, and what it is for.
    pub(crate) query: Option<(&'static str, &'static str)>,
    pub(crate) answer: Answer,
    pub(crate) action: Action,
}

impl Route {
    fn machine(
        verb: Verb,
        path: &'static str,
        summary: &'static str,
        action: impl Fn(Request) -> Result<Job, ApiError> + 'static,
    ) -> Self {
        Self {
            verb,
            path,
            summary,
            body: None,
            optional_body: false,
            query: None,
            answer: Answer::Nothing,
            action: Action::Machine(Box::new(action)),
        }
    }

    /// A question: no body, an answer of type `T`.
    pub(crate) fn get<T: JsonSchema + Serialize + 'static>(
        path: &'static str,
        summary: &'static str,
        ask: fn(&mut Scene<'_>) -> Result<T, ApiError>,
    ) -> Self {
        let action = move |request: Request| -> Result<Job, ApiError> {
            if !request.body.is_empty() {
                return Err(ApiError::bad("GET request cannot have a body."));
            }
            Ok(Box::new(move |scene| Reply::json(&ask(scene)?)))
        };
        Self {
            answer: Answer::Json(schema_of::<T>),
            ..Self::machine(Verb::Get, path, summary, action)
        }
    }

    /// An order with a body of type `B` and nothing to answer. The handler gets the name in the path too.
    pub(crate) fn order<B: JsonSchema + DeserializeOwned + Send + 'static>(
        verb: Verb,
        path: &'static str,
        summary: &'static str,
        obey: fn(&mut Scene<'_>, &str, B) -> Result<(), ApiError>,
    ) -> Self {
        let action = move |request: Request| -> Result<Job, ApiError> {
            if path.contains('{') {
                check_id(&request.id)?;
            }
            let body: B = read(verb, &request.body)?;
            let id = request.id;
            Ok(Box::new(move |scene| {
                obey(scene, &id, body).map(|()| Reply::Done)
            }))
        };
        Self {
            body: Some(schema_of::<B>),
            ..Self::machine(verb, path, summary, action)
        }
    }

    /// An order of which more than the machine's part may be waited for ([`Reply::Later`]).
    pub(crate) fn long<B: JsonSchema + DeserializeOwned + Send + 'static>(
        verb: Verb,
        path: &'static str,
        summary: &'static str,
        obey: fn(&mut Scene<'_>, &str, B) -> Result<Reply, ApiError>,
    ) -> Self {
        let action = move |request: Request| -> Result<Job, ApiError> {
            let body: B = read(verb, &request.body)?;
            let id = request.id;
            Ok(Box::new(move |scene| obey(scene, &id, body)))
        };
        Self {
            body: Some(schema_of::<B>),
            ..Self::machine(verb, path, summary, action)
        }
    }

    /// An order whose body may be left out.
    pub(crate) fn optional<B: JsonSchema + DeserializeOwned + Default + Send + 'static>(
        verb: Verb,
        path: &'static str,
        summary: &'static str,
        obey: fn(&mut Scene<'_>, B) -> Result<(), ApiError>,
    ) -> Self {
        let action = move |request: Request| -> Result<Job, ApiError> {
            let body: B = if request.body.is_empty() {
                B::default()
            } else {
                read(verb, &request.body)?
            };
            Ok(Box::new(move |scene| obey(scene, body).map(|()| Reply::Done)))
        };
        Self {
            body: Some(schema_of::<B>),
            optional_body: true,
            ..Self::machine(verb, path, summary, action)
        }
    }

    /// An order that needs no body.
    pub(crate) fn plain(
        verb: Verb,
        path: &'static str,
        summary: &'static str,
        obey: fn(&mut Scene<'_>, &str) -> Result<(), ApiError>,
    ) -> Self {
        Self::machine(verb, path, summary, move |request: Request| {
            let id = request.id;
            Ok(Box::new(move |scene| obey(scene, &id).map(|()| Reply::Done)))
        })
    }

    /// A question that is answered with a text.
    pub(crate) fn text(
        path: &'static str,
        summary: &'static str,
        content: &'static str,
        ask: fn(&mut Scene<'_>) -> String,
    ) -> Self {
        let action = move |_: Request| -> Result<Job, ApiError> {
            Ok(Box::new(move |scene| {
                Ok(Reply::Text(content, ask(scene).into_bytes()))
            }))
        };
        Self {
            answer: Answer::Content(content),
            ..Self::machine(Verb::Get, path, summary, action)
        }
    }

    /// A route that does not need the machine.
    pub(crate) fn own(path: &'static str, summary: &'static str, answer: Answer, action: Action) -> Self {
        Self {
            verb: Verb::Get,
            path,
            summary,
            body: None,
            optional_body: false,
            query: None,
            answer,
            action,
        }
    }

    /// Whether `path` is this route's; what then stands where it has a name.
    pub(crate) fn matches<'a>(&self, path: &'a str) -> Option<&'a str> {
        let Some((before, rest)) = self.path.split_once('{') else {
            return (self.path == path).then_some("");
        };
        let after = rest.split_once('}').map_or("", |(_, after)| after);
        let id = path.strip_prefix(before)?.strip_suffix(after)?;
        (!id.contains('/')).then_some(id)
    }
}

fn schema_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// Reads a body.
fn read<B: DeserializeOwned>(verb: Verb, body: &[u8]) -> Result<B, ApiError> {
    if body.is_empty() {
        return Err(ApiError::bad(format!("Empty {verb} request.")));
    }
    let text = std::str::from_utf8(body).map_err(|_| ApiError::bad("The body is not UTF-8 text."))?;
    spec::json(text, "the body").map_err(|error| {
        let field = error.field.map(|field| format!("{field}: ")).unwrap_or_default();
        ApiError::bad(format!(
            "An error occurred when deserializing the json body of a request: {field}{}.",
            error.message
        ))
    })
}

/// Names in paths are letters, digits and underscores, as Firecracker has them; Berth also lets a hyphen pass.
fn check_id(id: &str) -> Result<(), ApiError> {
    if id.is_empty() {
        return Err(ApiError::bad("The ID cannot be empty."));
    }
    if !id.chars().all(|c| c == '_' || c == '-' || c.is_alphanumeric()) {
        return Err(ApiError::bad(
            "API Resource IDs can only contain alphanumeric characters, underscores and hyphens.",
        ));
    }
    Ok(())
}
