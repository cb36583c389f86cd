//! The service's part of the project file.
//!
//! In: the text of the file. Out: the text without the tables of the program, for `evenkeel_serve::Config`.
//! Lines keep their numbers, so that errors of the service name the right ones. Unknown tables stay, so that
//! the service refuses them.

use super::file::is_program_table;
use clap::Command;
use std::borrow::Cow;
use toml::de::DeTable;
use toml_parser::Source;
use toml_parser::parser::{Event, EventKind, parse_document};

/// Returns the text with the tables of the program blank. Text that is not TOML stays as it is.
pub(super) fn service_text(text: &str, program: &Command) -> String {
    // The events below are neither checked nor limited in depth, so the text is parsed first.
    if DeTable::parse(text).is_err() {
        return text.to_owned();
    }
    let statements = statements(text);
    let ends = statements.iter().skip(1).map(|(start, _)| *start).chain([text.len()]);
    let mut bytes = text.as_bytes().to_vec();
    for ((start, name), end) in statements.iter().zip(ends) {
        if is_program_table(name, program) {
            let is_text = |byte: &&mut u8| !matches!(**byte, b'\n' | b'\r');
            bytes[*start..end].iter_mut().filter(is_text).for_each(|byte| *byte = b' ');
        }
    }
    // Statements begin and end at ASCII characters, so the text stays UTF-8.
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

/// Returns the start of every statement at the top of a document, with the first part of its key: each table
/// with a header, and each pair in front of the first header.
fn statements(text: &str) -> Vec<(usize, String)> {
    let source = Source::new(text);
    let mut events: Vec<Event> = Vec::new();
    parse_document(&source.lex().into_vec(), &mut events, &mut ());
    let mut statements: Vec<(usize, String)> = Vec::new();
    let (mut depth, mut is_below_header) = (0, false);
    // The start of a statement whose key follows.
    let mut start: Option<usize> = Some(0);
    for event in events {
        match event.kind() {
            EventKind::StdTableOpen | EventKind::ArrayTableOpen => {
                is_below_header = true;
                start = Some(event.span().start());
            }
            EventKind::SimpleKey => {
                if let Some(begin) = start.take() {
                    let begin = if is_below_header { begin } else { event.span().start() };
                    let mut name = Cow::Borrowed("");
                    if let Some(raw) = source.get(event) {
                        raw.decode_key(&mut name, &mut ());
                    }
                    statements.push((begin, name.into_owned()));
                }
            }
            EventKind::InlineTableOpen | EventKind::ArrayOpen => depth += 1,
            EventKind::InlineTableClose | EventKind::ArrayClose => depth -= 1,
            EventKind::Newline if depth == 0 && !is_below_header => start = Some(event.span().end()),
            _ => {}
        }
    }
    statements
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn program() -> Command {
        Command::new("evenkeel").subcommand(Command::new("plan").subcommand(Command::new("check")))
    }

    #[test]
    fn program_tables_are_blank_and_lines_stay() {
        let text = "# ours\nlisten = \"a\" # b\ncluster.ranks = 8\nbatches = { order = \"x\",\n  seed = 1 }\n\
                    [plan.check] # é\nranks = 8\n[models.plan]\nranks = 1\n[ 'plan' ]\nfor = '''\n[models.b]\n'''\n\
                    [[source]]\nmodel = \"m\"\n[clustr]\nranks = 8\n";
        let left = service_text(text, &program());
        assert_eq!(left.lines().count(), text.lines().count());
        let kept: Vec<(usize, &str)> =
            left.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).collect();
        let expected = [
            (0, "# ours"),
            (1, "listen = \"a\" # b"),
            (7, "[models.plan]"),
            (8, "ranks = 1"),
            (13, "[[source]]"),
            (14, "model = \"m\""),
            (15, "[clustr]"),
            (16, "ranks = 8"),
        ];
        assert_eq!(kept, expected);
        assert_eq!(service_text("[plan\n", &program()), "[plan\n");
    }

    proptest! {
        /// The remaining text means the document without the program's tables.
        #[test]
        fn the_remaining_text_is_the_rest_of_the_document(
            parts in prop::collection::vec((0..6usize, 0..4usize), 0..12),
        ) {
            let mut text = String::new();
            for (index, (table, form)) in parts.into_iter().enumerate() {
                let name = ["plan", "cluster", "models", "decide", "\"plan\"", "listen"][table];
                text += &match form {
                    0 => format!("[{name}.t{index}]\na = 1\n"),
                    1 => format!("[{name}.t{index}.u] # [plan]\nb = '''\n[models]\n'''\n"),
                    2 => format!("[[{name}.s{index}]]\nc = [\n[1], {{ d = 2 }}\n]\n"),
                    _ => format!("\r\n[ {name} . v{index} ]\n"),
                };
            }
            let mut rest: toml::Table = toml::from_str(&text).unwrap();
            rest.retain(|name, _| !is_program_table(name, &program()));
            prop_assert_eq!(toml::from_str::<toml::Table>(&service_text(&text, &program())).unwrap(), rest);
        }

        #[test]
        fn any_text_is_read(text in "\\PC{0,80}|[\\[\\]a-z.=\"'\\n{}1, ]{0,60}") {
            prop_assert_eq!(service_text(&text, &program()).lines().count(), text.lines().count());
        }
    }
}
