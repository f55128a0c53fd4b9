use proptest::prelude::*;

use super::*;

/// Where `patterns`, one after the other, are found in the pieces of a stream: offsets from its beginning.
fn found(patterns: &[Pattern], pieces: &[&[u8]]) -> Vec<usize> {
    let mut offsets = Vec::new();
    let mut patterns = patterns.iter();
    let (mut passed, mut before) = (0, None);
    let Some(mut search) = patterns.next().map(|first| Search::new(first.clone(), None)) else {
        return offsets;
    };
    for piece in pieces {
        let mut rest = *piece;
        while let Some(taken) = search.feed(rest) {
            passed += taken;
            offsets.push(passed);
            before = rest[..taken].last().copied().or(before);
            rest = &rest[taken..];
            match patterns.next() {
                Some(next) => search = Search::new(next.clone(), before),
                None => return offsets,
            }
        }
        passed += rest.len();
        before = rest.last().copied().or(before);
    }
    if search.end() {
        offsets.push(passed);
    }
    offsets
}

fn regex(text: &str) -> Pattern {
    Pattern::regex(text).unwrap()
}

#[test]
fn a_prompt_matches_with_its_last_byte_and_nothing_behind_it() {
    let pattern = Pattern::plain("login: ").unwrap();
    let mut search = Search::new(pattern, None);
    assert_eq!(search.feed(b"debian login:"), None);
    assert_eq!(search.feed(b" and more"), Some(1));
}

#[test]
fn a_text_means_itself_whatever_regular_expressions_would_make_of_it() {
    let pattern = Pattern::plain("[  OK  ] a.b*").unwrap();
    assert!(pattern.is_in(b"..[  OK  ] a.b*.."));
    assert!(!pattern.is_in(b"[  OK  ] aXb*"));
}

#[test]
fn a_line_feed_in_a_text_is_the_end_of_a_line_of_either_kind() {
    let pattern = Pattern::plain("a\nb").unwrap();
    assert!(pattern.is_in(b"a\nb") && pattern.is_in(b"a\r\nb") && pattern.is_in(b"a\r\r\nb"));
}

#[test]
fn anchors_are_at_lines_that_end_in_either_way() {
    let pattern = regex("^done$");
    for (text, expected) in [
        (&b"x\r\ndone\r\ny"[..], true),
        (b"x\ndone\ny", true),
        (b"done", true),
        (b"done more\n", false),
        (b"un\nundone\n", false),
    ] {
        assert_eq!(pattern.is_in(text), expected, "{}", text.escape_ascii());
    }
}

#[test]
fn what_must_see_the_next_byte_waits_for_it_and_leaves_it() {
    let mut search = Search::new(regex(r"v\d+$"), None);
    assert_eq!(search.feed(b"v1"), None);
    assert_eq!(search.feed(b"2\r\n"), Some(1));
    let mut search = Search::new(regex(r"ready\b"), None);
    assert_eq!(search.feed(b"ready"), None);
    assert_eq!(search.feed(b"!"), Some(0));
}

#[test]
fn the_next_search_sees_the_byte_before_it() {
    assert_eq!(found(&[regex("a"), regex("^b")], &[b"ab\nb"]), [1, 4]);
}

#[test]
fn what_no_pattern_can_be_is_said_in_a_sentence() {
    for (text, expected) in [
        ("", "it is empty"),
        ("a*", "matches an empty text"),
        ("(", "unclosed group"),
        ("[z-a]", "invalid character class range"),
        (r"\p{Greek}", "Unicode not allowed"),
        (
            "((((((((a{99}){99}){99}){99}){99}){99}){99}){99})",
            "regular expression",
        ),
    ] {
        let error = Pattern::regex(text).unwrap_err().to_string();
        assert!(
            error.contains(expected) && !error.contains('\n'),
            "{text}: {error}"
        );
    }
}

proptest! {
    #[test]
    fn what_matches_where_does_not_depend_on_how_the_output_was_cut(
        text in "[ab\r\n:x ]{0,60}",
        cuts in prop::collection::vec(0_usize..61, 0..8),
        patterns in prop::collection::vec(prop::sample::select(vec![
            "a+b", "^a", "b$", "a.*b", r"\bx", r"x\b", "(ab|aba|b:)+", "a\n", "[^a]a", "x{2,3}", r"\Ba", ":",
        ]), 1..5),
    ) {
        let patterns: Vec<_> = patterns.into_iter().map(regex).collect();
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let pieces: Vec<_> = cuts.windows(2).map(|cut| &text.as_bytes()[cut[0]..cut[1]]).collect();
        let bytes: Vec<_> = text.as_bytes().chunks(1).collect();
        prop_assert_eq!(found(&patterns, &pieces), found(&patterns, &[text.as_bytes()]));
        prop_assert_eq!(found(&patterns, &bytes), found(&patterns, &[text.as_bytes()]));
    }

    #[test]
    fn a_text_is_found_where_it_first_ends(text in "[abc]{0,40}", wanted in "[abc]{1,4}") {
        let pattern = Pattern::plain(&wanted).unwrap();
        let expected = text.find(&wanted).map(|at| at + wanted.len());
        prop_assert_eq!(Search::new(pattern, None).feed(text.as_bytes()), expected);
    }
}

#[test]
fn an_endless_line_is_read_in_little_memory() {
    let mut search = Search::new(regex("(x[ab]{1,40})+end"), None);
    let chunk = b"xabbaababbaxbbbabababbabxa".repeat(1000);
    for _ in 0..40 {
        assert_eq!(search.feed(&chunk), None);
    }
    assert!(search.reached.len() <= search.pattern.nfa.states().len());
    assert_eq!(search.feed(b"xaend"), Some(5));
}
