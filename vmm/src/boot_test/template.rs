//! `${name}` in texts.
#![forbid(unsafe_code)]

use toml::Value;

use super::file::shown;

/// Why a text with variables has no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum TemplateError {
    /// No such variable.
    #[error("there is no variable {name}; {hint}, or write $${{{name}}} for the guest's own")]
    Unknown {
        /// Its name.
        name: String,
        /// What may have been meant.
        hint: String,
    },
    /// What stands in the braces is no name.
    #[error("${{{0}}} names no variable; write $${{ where the guest is to see ${{")]
    Name(String),
    /// No closing brace.
    #[error(
        "the variable that begins with ${{ does not end; close it with }}, or write $${{ where the guest is to see ${{"
    )]
    Open,
}

/// Whether a variable may be called so.
pub(super) fn is_name(name: &str) -> bool {
    let letter = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    name.chars().all(letter) && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
}

/// The text with the values of its variables.
pub(super) fn fill(
    text: &str,
    value: impl Fn(&str) -> Result<Value, TemplateError>,
) -> Result<String, TemplateError> {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, behind) = rest.split_at(at);
        if let Some(before) = before.strip_suffix('$') {
            filled.push_str(before);
            filled.push_str("${");
            rest = &behind[2..];
            continue;
        }
        filled.push_str(before);
        let (name, behind) = behind[2..].split_once('}').ok_or(TemplateError::Open)?;
        if !is_name(name) {
            return Err(TemplateError::Name(name.to_owned()));
        }
        filled.push_str(&shown(&value(name)?).unwrap_or_default());
        rest = behind;
    }
    filled.push_str(rest);
    Ok(filled)
}

/// The same for any value; a text that is one variable and nothing else becomes what the variable is.
pub(super) fn fill_value(
    value: &mut Value,
    path: &str,
    variable: &impl Fn(&str) -> Result<Value, TemplateError>,
) -> Result<(), (String, TemplateError)> {
    let failed = |error| (path.to_owned(), error);
    match value {
        Value::String(text) => {
            let name = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
            *value = match name.filter(|name| is_name(name)) {
                Some(name) => variable(name).map_err(failed)?,
                None => Value::String(fill(text, variable).map_err(failed)?),
            };
            Ok(())
        }
        Value::Array(values) => values
            .iter_mut()
            .enumerate()
            .try_for_each(|(index, value)| fill_value(value, &format!("{path}[{index}]"), variable)),
        Value::Table(table) => table
            .iter_mut()
            .try_for_each(|(name, value)| fill_value(value, &format!("{path}.{name}"), variable)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value(name: &str) -> Result<Value, TemplateError> {
        match name {
            "a" => Ok(Value::String("1${b}".to_owned())),
            "n" => Ok(Value::Integer(7)),
            name => Err(TemplateError::Unknown {
                name: name.to_owned(),
                hint: "the known ones are a, n".to_owned(),
            }),
        }
    }

    #[test]
    fn variables_are_filled_in_once() {
        for (text, expected) in [
            ("x${a}y${n}", "x1${b}y7"),
            ("no $a, no $$, no {a}", "no $a, no $$, no {a}"),
            ("$${a}${n}", "${a}7"),
            ("", ""),
        ] {
            assert_eq!(fill(text, value).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_variable_is_said_with_what_to_do() {
        for (text, expected) in [
            (
                "${HOME}",
                "there is no variable HOME; the known ones are a, n, or write $${HOME} for the guest's own",
            ),
            ("${a", "close it with }"),
            (
                "${a:-b}",
                "${a:-b} names no variable; write $${ where the guest is to see ${",
            ),
            ("${}", "${} names no variable"),
        ] {
            let error = fill(text, value).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_text_that_is_one_variable_becomes_what_it_is() {
        let mut filled = Value::Array(vec![
            Value::String("${n}".to_owned()),
            Value::String("${n}M".to_owned()),
        ]);
        fill_value(&mut filled, "x", &value).unwrap();
        let expected = vec![Value::Integer(7), Value::String("7M".to_owned())];
        assert_eq!(filled, Value::Array(expected));
    }

    proptest! {
        #[test]
        fn a_text_without_variables_stays_and_an_escaped_one_is_itself(text in "[a-z$ {}]{0,30}") {
            if !text.contains("${") {
                prop_assert_eq!(fill(&text, value), Ok(text.clone()));
            }
            // Doubling what begins a variable keeps any text; a dollar right before would double with it.
            if !text.contains("$${") {
                prop_assert_eq!(fill(&text.replace("${", "$${"), value), Ok(text.clone()));
            }
        }
    }
}
