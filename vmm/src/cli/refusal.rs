//! What clap refuses, as one sentence in Berth's own form.

use std::error::Error as _;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Error};

use super::args::Cli;

/// What is wrong with the arguments, and what to do.
pub(super) fn sentence(error: &Error) -> String {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        Some(ContextValue::Strings(texts)) => texts.first().map(String::as_str),
        _ => None,
    };
    let argument = text(ContextKind::InvalidArg).map(name).unwrap_or_default();
    let value = text(ContextKind::InvalidValue).unwrap_or_default();
    match error.kind() {
        ErrorKind::ValueValidation => match error.source() {
            Some(source) => format!("{argument}: {source}"),
            None => format!("{argument}: {value:?} cannot be read"),
        },
        ErrorKind::InvalidValue if value.is_empty() => {
            format!("{argument}: the value is missing; write one behind it")
        }
        ErrorKind::InvalidValue => {
            let valid = match error.get(ContextKind::ValidValue) {
                Some(ContextValue::Strings(valid)) => valid.join(", "),
                _ => String::new(),
            };
            let instead = match text(ContextKind::SuggestedValue) {
                Some(suggested) => format!("did you mean {suggested}?"),
                None => format!("use one of {valid}"),
            };
            format!("{argument}: unknown value {value:?}; {instead}")
        }
        ErrorKind::UnknownArgument => {
            let verb = verb(error).unwrap_or_else(|| "run".to_owned());
            unknown(
                text(ContextKind::InvalidArg),
                text(ContextKind::SuggestedArg),
                &verb,
            )
        }
        ErrorKind::InvalidSubcommand => {
            let verb = text(ContextKind::InvalidSubcommand).unwrap_or_default();
            match text(ContextKind::SuggestedSubcommand) {
                Some(suggested) => format!("there is no verb {verb:?}; did you mean {suggested}?"),
                None => format!("there is no verb {verb:?}; berth --help lists them"),
            }
        }
        ErrorKind::ArgumentConflict => match text(ContextKind::PriorArg).map(name) {
            Some(other) if other != argument => {
                format!("{argument} and {other} exclude each other; give one of them")
            }
            _ => format!("{argument}: given more than once; give it once"),
        },
        ErrorKind::InvalidUtf8 => "an argument is not valid UTF-8; only paths may be that".to_owned(),
        _ => first_words(error),
    }
}

/// The verb that the arguments are for, by its usage: `Usage: berth ps [OPTIONS]`.
fn verb(error: &Error) -> Option<String> {
    let Some(ContextValue::StyledStr(usage)) = error.get(ContextKind::Usage) else {
        return None;
    };
    let usage = usage.to_string();
    let mut words = usage.split_whitespace().skip_while(|word| *word != "berth");
    let verb = words.nth(1)?;
    let command = Cli::command();
    command
        .find_subcommand(verb)
        .map(|verb| verb.get_name().to_owned())
}

/// `--memory <SIZE>` as `memory`.
fn name(argument: &str) -> &str {
    let argument = argument.split([' ', '=']).next().unwrap_or_default();
    argument
        .trim_start_matches(['-', '<', '['])
        .trim_end_matches(['>', ']'])
}

fn unknown(argument: Option<&str>, suggested: Option<&str>, verb: &str) -> String {
    let argument = argument.unwrap_or_default();
    match suggested {
        Some(suggested) => format!(
            "unknown argument {argument:?}; did you mean {}?",
            suggested.split(' ').next().unwrap_or_default()
        ),
        None if argument.starts_with('-') => {
            format!("unknown argument {argument:?}; see berth {verb} --help")
        }
        None if verb != "run" && verb != "create" => {
            format!("unexpected argument {argument:?}; see berth {verb} --help")
        }
        None => format!(
            "unexpected argument {argument:?}; a command for the guest goes behind --, as in berth {verb} -- {argument}"
        ),
    }
}

/// Clap's own message, up to its usage.
fn first_words(error: &Error) -> String {
    let text = error.render().to_string();
    let lines = text.lines().take_while(|line| !line.is_empty()).map(str::trim);
    let words = lines.collect::<Vec<_>>().join(" ");
    format!("{}; see berth --help", words.trim_start_matches("error: "))
}
