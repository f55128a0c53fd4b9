//! What clap refuses, as one sentence in Berth's own form.

use std::error::Error as _;
use std::num::{IntErrorKind, ParseIntError};

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
            Some(source) => format!("{argument}: {}", unfit(value, source)),
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
        ErrorKind::UnknownArgument => unknown(
            text(ContextKind::InvalidArg),
            text(ContextKind::SuggestedArg),
            &program(error),
        ),
        ErrorKind::MissingRequiredArgument => {
            let missing = match error.get(ContextKind::InvalidArg) {
                Some(ContextValue::Strings(missing)) => {
                    missing.iter().map(|missing| written(missing)).collect()
                }
                _ => Vec::new(),
            };
            let are = if missing.len() == 1 { "is" } else { "are" };
            format!(
                "{} {are} missing; see {} --help",
                missing.join(" and "),
                program(error)
            )
        }
        ErrorKind::InvalidSubcommand => {
            let verb = text(ContextKind::InvalidSubcommand).unwrap_or_default();
            match text(ContextKind::SuggestedSubcommand) {
                Some(suggested) => format!("there is no verb {verb:?}; did you mean {suggested}?"),
                None => format!("there is no verb {verb:?}; {} --help lists them", program(error)),
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

/// What is wrong with a value, and what to do. Clap's own words on numbers are told in Berth's.
fn unfit(value: &str, source: &(dyn std::error::Error + 'static)) -> String {
    if let Some(error) = source.downcast_ref::<ParseIntError>() {
        return match error.kind() {
            IntErrorKind::PosOverflow => format!("{value:?} is too large; give a smaller number"),
            _ => format!("{value:?} is not a whole number; give one from 0 on"),
        };
    }
    let said = source.to_string();
    let range = said
        .split_once(" is not in ")
        .and_then(|(_, range)| range.split_once("..="));
    match range {
        Some((least, most)) => format!("{value:?} is not {least} to {most}; give a number in that range"),
        None => said,
    }
}

/// The program and verb that the arguments are for, by the usage: `Usage: berth image build [OPTIONS]`.
fn program(error: &Error) -> String {
    let mut program = "berth".to_owned();
    let Some(ContextValue::StyledStr(usage)) = error.get(ContextKind::Usage) else {
        return program;
    };
    let usage = usage.to_string();
    let mut all = Cli::command();
    all.build();
    let mut command = &all;
    for word in usage
        .split_whitespace()
        .skip_while(|word| *word != "berth")
        .skip(1)
    {
        let Some(verb) = command.find_subcommand(word) else {
            break;
        };
        program = format!("{program} {word}");
        command = verb;
    }
    program
}

/// `--memory <SIZE>` as `memory`.
fn name(argument: &str) -> &str {
    let argument = argument.split([' ', '=']).next().unwrap_or_default();
    argument.trim_matches(['-', '<', '[', '>', ']', '.'])
}

/// `--memory <SIZE>` as `--memory`, `<VM>...` as `VM`.
fn written(argument: &str) -> &str {
    if argument.starts_with('-') {
        argument.split([' ', '=']).next().unwrap_or_default()
    } else {
        name(argument)
    }
}

fn unknown(argument: Option<&str>, suggested: Option<&str>, program: &str) -> String {
    let argument = argument.unwrap_or_default();
    let is_number = argument
        .strip_prefix('-')
        .is_some_and(|rest| rest.starts_with(|digit: char| digit.is_ascii_digit()));
    match suggested {
        Some(suggested) => format!(
            "unknown argument {argument:?}; did you mean {}?",
            suggested.split(' ').next().unwrap_or_default()
        ),
        None if is_number => format!("{argument} is negative, and no number here may be; give one from 0 on"),
        None if argument.starts_with('-') && program == "berth" => {
            format!("unknown argument {argument:?}; the verb comes first, see berth --help")
        }
        None if argument.starts_with('-') => {
            format!("unknown argument {argument:?}; see {program} --help")
        }
        None if program != "berth run" && program != "berth create" => {
            format!("unexpected argument {argument:?}; see {program} --help")
        }
        None => format!(
            "unexpected argument {argument:?}; a command for the guest goes behind --, as in {program} -- {argument}"
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
