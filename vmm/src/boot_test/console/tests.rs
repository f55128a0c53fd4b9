use proptest::prelude::*;

use super::*;

fn console(never: &[&str]) -> Console {
    let never: Vec<_> = never.iter().map(|text| Pattern::regex(text).unwrap()).collect();
    Console::new(FaultFinder::new(&[]), &never, None)
}

/// How many of the texts, one after the other, are found in the pieces; and the alarm.
fn play(never: &[&str], texts: &[&str], pieces: &[&[u8]]) -> (usize, Option<Alarm>, Vec<String>) {
    let mut console = console(never);
    let mut found = 0;
    let mut texts = texts.iter().map(|text| Pattern::plain(text).unwrap());
    console.look_for(texts.next().as_ref());
    for piece in pieces {
        console.push(piece);
        while console.advance() {
            found += 1;
            match texts.next() {
                Some(next) => console.look_for(Some(&next)),
                None => return (found, console.alarm().cloned(), console.last_lines()),
            }
        }
    }
    found += usize::from(console.end());
    (found, console.alarm().cloned(), console.last_lines())
}

#[test]
fn what_comes_behind_an_expected_text_concerns_the_next_step() {
    let said = b"login: Kernel panic - not syncing: x\n";
    assert_eq!(play(&[], &["login: "], &[said]).1, None);
    let (found, alarm, _) = play(&[], &["login: ", "never said"], &[said]);
    assert_eq!(found, 1);
    assert!(matches!(alarm, Some(Alarm::Kernel(KernelFault::Panic, line)) if line.ends_with(": x")));
}

#[test]
fn what_must_never_be_said_is_an_alarm_where_it_ends() {
    let (found, alarm, _) = play(
        &["[Ee]rror: [0-9]"],
        &["done"],
        &[b"x\nerr", b"or: 5", b" done\n"],
    );
    assert_eq!(found, 0);
    assert_eq!(
        alarm,
        Some(Alarm::Never(
            "/[Ee]rror: [0-9]/".to_owned(),
            "error: 5".to_owned()
        ))
    );
}

#[test]
fn text_is_captured_without_terminal_commands_up_to_its_limit() {
    let mut console = console(&[]);
    console.begin_capture(4);
    console.push(b"a\x1b[31mbc");
    console.advance();
    assert_eq!(console.end_capture().as_deref(), Some(&b"abc"[..]));
    console.begin_capture(4);
    console.push(b"defgh");
    console.advance();
    assert_eq!(console.end_capture(), None);
}

#[test]
fn the_last_lines_are_kept_and_long_ones_are_cut_into_pieces() {
    let mut console = console(&[]);
    for number in 0..100 {
        console.push(format!("line {number}\r\n").as_bytes());
    }
    console.push(&[b'x'; 3 * LINE_MAX]);
    console.push(b"\n# ");
    console.advance();
    let lines = console.last_lines();
    assert_eq!(lines.last().map(String::as_str), Some("# "));
    assert_eq!(lines.iter().filter(|line| line.starts_with('x')).count(), 3);
    assert!(lines.len() <= LINES_MAX + 1);
    assert!(lines.contains(&"line 99".to_owned()));
}

#[test]
fn the_boots_marks_are_noticed_once() {
    let mut console = console(&[]);
    for _ in 0..2 {
        console.push(b"[    0.000000] Linux version 6.12.1 (gcc)\n[    1.0] Run /init as init process\n");
        console.advance();
    }
    assert_eq!(console.marks(), [Mark::Kernel, Mark::Init]);
}

proptest! {
    #[test]
    fn result_and_alarm_do_not_depend_on_how_the_output_was_cut(
        words in prop::collection::vec(prop::sample::select(vec![
            "a", "b", "\r\n", "\x1b[3", "1m", "\x1b", "]0;t\x07", "Kernel panic - not syncing: y", "bad", " ", "login: ", "\n",
        ]), 0..20),
        cuts in prop::collection::vec(0_usize..200, 0..8),
    ) {
        let said = words.concat();
        let said = said.as_bytes();
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(said.len())).collect();
        cuts.extend([0, said.len()]);
        cuts.sort_unstable();
        let pieces: Vec<_> = cuts.windows(2).map(|cut| &said[cut[0]..cut[1]]).collect();
        let expected = ["a", "login: ", "b"];
        prop_assert_eq!(play(&["bad"], &expected, &pieces), play(&["bad"], &expected, &[said]));
    }
}
