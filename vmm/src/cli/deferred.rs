//! Arguments of a verb that clap is told of when the verb is given, or when somebody asks about all verbs: most of a start's time with
//! the command line would go into describing those that are not.
#![forbid(unsafe_code)]

use std::ops::Deref;

use clap::builder::{Resettable, StyledStr};
use clap::{ArgMatches, Args, Command, Error, FromArgMatches};

/// Arguments that are described when they are needed.
///
/// Derived `defer = true` is not it: what is said of the arguments' type would stand in the place of what is said of the verb.
#[derive(Debug)]
pub struct Deferred<T>(pub T);

impl<T> Deref for Deferred<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Args> Args for Deferred<T> {
    fn augment_args(verb: Command) -> Command {
        verb.defer(describe::<T>)
    }

    fn augment_args_for_update(verb: Command) -> Command {
        T::augment_args_for_update(verb)
    }
}

/// Tells clap of the arguments. What the verb says of itself stands.
fn describe<T: Args>(verb: Command) -> Command {
    let (about, long_about) = (verb.get_about().cloned(), verb.get_long_about().cloned());
    let after = [verb.get_after_help(), verb.get_after_long_help()].map(Option::<&StyledStr>::cloned);
    let [after_help, after_long_help] = after;
    let mut verb = T::augment_args(verb)
        .about(Resettable::from(about))
        .long_about(Resettable::from(long_about));
    if let Some(help) = after_help {
        verb = verb.after_help(help);
    }
    if let Some(help) = after_long_help {
        verb = verb.after_long_help(help);
    }
    verb
}

impl<T: FromArgMatches> FromArgMatches for Deferred<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        T::from_arg_matches(matches).map(Self)
    }

    fn from_arg_matches_mut(matches: &mut ArgMatches) -> Result<Self, Error> {
        T::from_arg_matches_mut(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        self.0.update_from_arg_matches(matches)
    }

    fn update_from_arg_matches_mut(&mut self, matches: &mut ArgMatches) -> Result<(), Error> {
        self.0.update_from_arg_matches_mut(matches)
    }
}
