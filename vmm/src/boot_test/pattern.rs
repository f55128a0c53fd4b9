//! What is looked for on a console: a text or a regular expression, matched byte by byte as the guest says it.
//!
//! A pattern has matched at the first byte by which it is certain, so the result depends on what the guest said and on
//! nothing else: not on how the output was cut on its way, and not on what came later. A pattern whose end must see the next
//! byte (`$`, `\b`) is certain one byte later, which it leaves to the next pattern. The automaton's state is all that is
//! kept of the past, so lines may be as long as they like.
#![forbid(unsafe_code)]

use std::fmt;

use regex_automata::nfa::thompson::{self, NFA, State};
use regex_automata::util::primitives::StateID;
use regex_automata::util::syntax;
use regex_syntax::hir::Look;

/// How large the automaton of one pattern may be, in bytes.
const SIZE_MAX: usize = 256 << 10;

/// Why a text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Nothing to look for.
    #[error("it is empty, which every output matches; write what the guest says")]
    Empty,
    /// It matches where nothing was said.
    #[error("{0:?} matches an empty text, so it would match at once; write what the guest must say")]
    MatchesNothing(String),
    /// No regular expression.
    #[error("{text:?} is no regular expression: {cause}")]
    Syntax {
        /// The text.
        text: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A regular expression that would take too much memory.
    #[error("{0:?} is too large a regular expression; make its repetitions smaller")]
    TooLarge(String),
}

/// What is looked for.
#[derive(Clone)]
pub struct Pattern {
    text: String,
    is_regex: bool,
    nfa: NFA,
    /// Whether its end is certain only when the byte behind it is known.
    looks_ahead: bool,
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_regex {
            write!(f, "/{}/", self.text)
        } else {
            write!(f, "{:?}", self.text)
        }
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        (&self.text, self.is_regex) == (&other.text, other.is_regex)
    }
}

fn syntax() -> syntax::Config {
    // A console is bytes, and its lines end in CR LF.
    syntax::Config::new()
        .unicode(false)
        .utf8(false)
        .multi_line(true)
        .crlf(true)
}

impl Pattern {
    /// Looks for exactly this text. A line feed in it is the end of a line, with or without a carriage return.
    pub fn plain(text: &str) -> Result<Self, PatternError> {
        if text.is_empty() {
            return Err(PatternError::Empty);
        }
        let expression = regex_syntax::escape(text)
            .replace("\r\n", "\n")
            .replace('\n', "\r*\n");
        Ok(Self {
            is_regex: false,
            text: text.to_owned(),
            ..Self::new(text, &expression)?
        })
    }

    /// Looks for a regular expression, as Rust's regex crate has them, on bytes and with `^` and `$` at each line.
    pub fn regex(text: &str) -> Result<Self, PatternError> {
        if text.is_empty() {
            return Err(PatternError::Empty);
        }
        Self::new(text, text)
    }

    fn new(text: &str, expression: &str) -> Result<Self, PatternError> {
        let wrong = |cause: &str| PatternError::Syntax {
            text: text.to_owned(),
            cause: plain_cause(cause),
        };
        let hir = syntax::parse_with(expression, &syntax()).map_err(|error| wrong(&error.to_string()))?;
        let properties = hir.properties();
        if properties.minimum_len().is_none_or(|least| least == 0) {
            return Err(PatternError::MatchesNothing(text.to_owned()));
        }
        let looks = properties.look_set();
        let looks_ahead = looks
            .iter()
            .any(|look| !matches!(look, Look::Start | Look::StartLF | Look::StartCRLF));
        let nfa = thompson::Compiler::new()
            .configure(
                thompson::Config::new()
                    .utf8(false)
                    .which_captures(thompson::WhichCaptures::None)
                    .nfa_size_limit(Some(SIZE_MAX)),
            )
            .build_from_hir(&hir)
            .map_err(|_| PatternError::TooLarge(text.to_owned()))?;
        Ok(Self {
            text: text.to_owned(),
            is_regex: true,
            nfa,
            looks_ahead,
        })
    }

    /// Whether it matches anywhere in a text that is whole.
    pub fn is_in(&self, text: &[u8]) -> bool {
        let mut search = Search::new(self.clone(), None);
        search.feed(text).is_some() || search.end()
    }
}

/// The syntax error's last line, which says what is wrong; those above it draw where.
fn plain_cause(cause: &str) -> String {
    let last = cause.lines().rev().find(|line| !line.trim().is_empty());
    let last = last.unwrap_or(cause).trim();
    last.strip_prefix("error: ").unwrap_or(last).to_owned()
}

/// A set of states that is emptied at no cost.
struct SparseSet {
    dense: Vec<StateID>,
    sparse: Vec<usize>,
}

impl SparseSet {
    fn new(states: usize) -> Self {
        Self {
            dense: Vec::with_capacity(states),
            sparse: vec![0; states],
        }
    }

    fn clear(&mut self) {
        self.dense.clear();
    }

    /// Says if it was not there yet.
    fn insert(&mut self, id: StateID) -> bool {
        let at = self.sparse[id.as_usize()];
        if self.dense.get(at) == Some(&id) {
            return false;
        }
        self.sparse[id.as_usize()] = self.dense.len();
        self.dense.push(id);
        true
    }

    fn iter(&self) -> impl Iterator<Item = StateID> {
        self.dense.iter().copied()
    }
}

/// A search for one pattern in a stream: the automaton's states that the stream may have led to.
pub struct Search {
    pattern: Pattern,
    /// Those reached by the last byte; what can be reached from them without one is known when the next byte is.
    reached: Vec<StateID>,
    before: Option<u8>,
    closed: SparseSet,
    stack: Vec<StateID>,
}

impl Search {
    /// Begins to look for `pattern` behind the byte `before`, or at the stream's beginning.
    pub fn new(pattern: Pattern, before: Option<u8>) -> Self {
        let states = pattern.nfa.states().len();
        Self {
            reached: vec![pattern.nfa.start_unanchored()],
            before,
            closed: SparseSet::new(states),
            stack: Vec::new(),
            pattern,
        }
    }

    /// What is looked for.
    pub fn pattern(&self) -> &Pattern {
        &self.pattern
    }

    /// Reads on. If the pattern is complete, says how many of `bytes` it and what was before it took.
    pub fn feed(&mut self, bytes: &[u8]) -> Option<usize> {
        for (at, &byte) in bytes.iter().enumerate() {
            if self.close(Some(byte)) {
                return Some(at);
            }
            self.step(byte);
            if !self.pattern.looks_ahead && self.close(None) {
                return Some(at + 1);
            }
        }
        None
    }

    /// Nothing more comes: whether what was said so far ends with the pattern.
    pub fn end(&mut self) -> bool {
        self.close(None)
    }

    /// Goes where no byte is needed to go, with `next` behind it. Says if the pattern is complete.
    fn close(&mut self, next: Option<u8>) -> bool {
        let nfa = &self.pattern.nfa;
        // What an assertion looks at.
        let mut around = [0; 2];
        let behind = usize::from(self.before.is_some());
        let mut length = 0;
        for byte in self.before.into_iter().chain(next) {
            around[length] = byte;
            length += 1;
        }
        let around = &around[..length];
        self.closed.clear();
        self.stack.clear();
        self.stack.extend(self.reached.iter().rev());
        while let Some(id) = self.stack.pop() {
            if !self.closed.insert(id) {
                continue;
            }
            match nfa.state(id) {
                State::Match { .. } => return true,
                State::Look { look, next } => {
                    if nfa.look_matcher().matches(*look, around, behind) {
                        self.stack.push(*next);
                    }
                }
                State::Union { alternates } => self.stack.extend(alternates.iter().rev()),
                State::BinaryUnion { alt1, alt2 } => self.stack.extend([*alt2, *alt1]),
                State::Capture { next, .. } => self.stack.push(*next),
                State::ByteRange { .. } | State::Sparse(_) | State::Dense(_) | State::Fail => {}
            }
        }
        false
    }

    fn step(&mut self, byte: u8) {
        let nfa = &self.pattern.nfa;
        let led = |id| match nfa.state(id) {
            State::ByteRange { trans } => trans.matches_byte(byte).then_some(trans.next),
            State::Sparse(transitions) => transitions.matches_byte(byte),
            State::Dense(transitions) => transitions.matches_byte(byte),
            _ => None,
        };
        self.reached.clear();
        self.reached.extend(self.closed.iter().filter_map(led));
        self.before = Some(byte);
    }
}

#[cfg(test)]
mod tests;
