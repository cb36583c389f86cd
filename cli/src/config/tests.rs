//! Tests of the configuration on a small tree of commands, and of its lists on the real one.

use super::file::{ProjectFile, search};
use super::lookup::{Origin, Sources};
use super::options::{
    COMMAND_SPECIFIC, CommandOption, SELECTORS, SHARED_TABLES, command_paths, configurable, is_shared,
    nearest, options_of,
};
use super::resolve::{Failure, Resolved, resolve, with_tokens};
use super::show::{Source, effective_values, render, render_document};
use super::variables::{OTHER_VARIABLES, UnknownVariable, documented, known, unknown, variables_of};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

fn option(name: &'static str) -> Arg {
    Arg::new(name.replace('-', "_")).long(name)
}

fn number(name: &'static str) -> Arg {
    option(name).value_name("N").value_parser(value_parser!(u64))
}

fn flag(name: &'static str) -> Arg {
    option(name).action(ArgAction::SetTrue)
}

fn list(name: &'static str) -> Arg {
    number(name).action(ArgAction::Append).value_delimiter(',')
}

/// Returns a program whose options have all kinds of values and relations.
fn program() -> Command {
    let plan = Command::new("plan")
        .args_conflicts_with_subcommands(true)
        .subcommand_negates_reqs(true)
        .arg(Arg::new("trace").required(true))
        .arg(number("ranks").required(true))
        .arg(number("nodes").default_value("1"))
        .arg(list("redundant"))
        .arg(option("model").conflicts_with("nodes"))
        .arg(option("policy").default_value("recourse"))
        .arg(option("previous").value_parser(value_parser!(PathBuf)))
        .arg(number("max-moves").requires("previous"))
        .arg(number("link").requires("horizon").requires("model"))
        .arg(number("horizon").requires("link"))
        .arg(number("limit").conflicts_with("max_moves"))
        .arg(option("blend").action(ArgAction::Append))
        .arg(flag("uneven").conflicts_with("limit"))
        .arg(flag("even").overrides_with("uneven"))
        .arg(option("report").value_parser(value_parser!(PathBuf)))
        .arg(option("form").value_parser(["short", "long"]))
        .subcommand(Command::new("check").arg(number("ranks")).arg(option("policy")));
    Command::new("evenkeel")
        .subcommand(plan)
        .subcommand(Command::new("bench").arg(number("ranks").default_value("8")))
        .subcommand(Command::new("top").arg(option("token")).arg(option("token-file")))
        .subcommand(Command::new("completions").arg(Arg::new("shell")))
        .arg(flag("json").global(true))
        .arg(option("verbose").short('v').action(ArgAction::Count).global(true))
        .arg(number("threads").global(true))
        .arg(option("config").id(SELECTORS[0]).value_parser(value_parser!(PathBuf)).global(true))
        .arg(flag("no-config").id(SELECTORS[1]).global(true))
}

/// A call of the program above.
#[derive(Debug, Default, Clone)]
struct Case {
    args: String,
    variables: BTreeMap<String, OsString>,
    file: String,
}

fn case(args: &str) -> Case {
    Case { args: args.into(), ..Case::default() }
}

impl Case {
    fn variable(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.variables.insert(format!("EVENKEEL_{name}"), value.into());
        self
    }

    fn file(mut self, text: &str) -> Self {
        self.file += text;
        self
    }

    fn args(&self) -> Vec<OsString> {
        std::iter::once("evenkeel").chain(self.args.split_whitespace()).map(OsString::from).collect()
    }

    fn resolve(&self) -> Result<Resolved, String> {
        let folder = tempfile::tempdir().unwrap();
        if !self.file.is_empty() {
            std::fs::write(folder.path().join("evenkeel.toml"), &self.file).unwrap();
        }
        let variables = self.variables.clone();
        let variable = |name: &str| variables.get(name).cloned();
        let resolved = resolve(&program(), &self.args(), &variable, Some(folder.path()));
        resolved.map_err(|failure| match failure {
            Failure::Arguments(error) => format!("arguments: {error}"),
            Failure::Configuration(error) => format!("{error:#}"),
        })
    }

    fn matches(&self) -> ArgMatches {
        let matches = self.resolve().unwrap_or_else(|error| panic!("{self:?}: {error}")).matches;
        leaf(&matches).clone()
    }

    fn error(&self) -> String {
        match self.resolve() {
            Err(error) => error,
            Ok(resolved) => panic!("{self:?}: {:?}", resolved.settings),
        }
    }
}

fn leaf(matches: &ArgMatches) -> &ArgMatches {
    matches.subcommand().map_or(matches, |(_, below)| leaf(below))
}

/// Returns the raw values of an option, joined by spaces.
fn raw(matches: &ArgMatches, id: &str) -> String {
    let values = matches.get_raw(id).into_iter().flatten();
    values.map(|value| value.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[test]
fn values_come_from_every_source_and_meet_requirements() {
    let call =
        case("plan t").variable("RANKS", "8").file("[cluster]\nredundant = [0, 32]\n[output]\njson = true\n");
    let matches = call.matches();
    assert_eq!(matches.get_one::<u64>("ranks"), Some(&8));
    assert_eq!(matches.get_many::<u64>("redundant").unwrap().collect::<Vec<_>>(), [&0, &32]);
    assert!(matches.get_flag("json"));
    assert_eq!(matches.value_source("ranks"), Some(ValueSource::DefaultValue));
    assert_eq!(matches.value_source("trace"), Some(ValueSource::CommandLine));
    // The requirement of a stated option is met by a setting.
    let call = case("plan t --max-moves 2").variable("RANKS", "8").file("[plan]\nprevious = \"plan.json\"\n");
    assert_eq!(raw(&call.matches(), "max_moves"), "2");
    // An option that the command line lacks is still missing.
    let message = case("plan").variable("RANKS", "8").error();
    assert!(message.contains("<trace>") && !message.contains("--ranks <N>\n"), "{message}");
    assert!(case("plan t").error().contains("--ranks <N>"));
    // `--` and a global option in front of the command.
    let call = case("--threads 2 plan -- --odd").variable("RANKS", "8").variable("THREADS", "3");
    assert_eq!(
        (raw(&call.matches(), "trace"), raw(&call.matches(), "threads")),
        ("--odd".into(), "2".into())
    );
}

#[test]
fn settings_that_do_not_fit_stated_options_are_left_out() {
    let left = |call: &Case| {
        let mut names: Vec<String> =
            call.resolve().unwrap().settings.into_iter().map(|setting| setting.name).collect();
        names.sort();
        names.join(" ")
    };
    let base = || case("plan t --ranks 4");
    // A conflict with a stated option, from either side.
    assert_eq!(left(&case("plan t --ranks 4 --nodes 2").variable("MODEL", "m")), "");
    assert_eq!(left(&case("plan t --ranks 4 --model m").variable("NODES", "2")), "");
    assert_eq!(left(&case("plan t --ranks 4 --limit 3").variable("UNEVEN", "true")), "");
    // A flag that is off conflicts with nothing.
    assert_eq!(left(&case("plan t --ranks 4 --limit 3").variable("UNEVEN", "false")), "uneven");
    // A setting that would replace a stated flag.
    assert_eq!(left(&case("plan t --ranks 4 --uneven").variable("EVEN", "1")), "");
    // A requirement that nothing meets, that another setting meets, and requirements of each other.
    assert_eq!(left(&base().variable("MAX_MOVES", "2")), "");
    assert_eq!(left(&base().variable("MAX_MOVES", "2").variable("PLAN_PREVIOUS", "p")), "max-moves previous");
    assert_eq!(left(&base().variable("LINK", "1").variable("HORIZON", "2")), "");
    let all = base().variable("LINK", "1").variable("HORIZON", "2").variable("MODEL", "m");
    assert_eq!(left(&all), "horizon link model");
    let without = case("plan t --ranks 4 --nodes 2").variable("LINK", "1").variable("HORIZON", "2");
    assert_eq!(left(&without.variable("MODEL", "m")), "");
    // Among settings the one with the higher precedence stays.
    let both = base().variable("NODES", "2").file("[model]\nmodel = \"m\"\n");
    assert_eq!(left(&both), "nodes");
    let both = base().file("[model]\nmodel = \"m\"\n[plan]\nnodes = 2\n");
    assert_eq!(left(&both), "nodes");
    let message = base().file("[plan]\nmodel = \"m\"\nnodes = 2\n").error();
    assert_eq!(
        message,
        "evenkeel.toml:3: plan.nodes: conflicts with evenkeel.toml:2: plan.model: expected at most one of --nodes and --model"
    );
}

#[test]
fn names_for_fewer_commands_have_precedence() {
    let check = |call: Case| raw(&call.matches(), "ranks");
    let general = || case("plan check").variable("RANKS", "1");
    assert_eq!(check(general()), "1");
    assert_eq!(check(general().variable("PLAN_RANKS", "2")), "2");
    assert_eq!(check(general().variable("PLAN_RANKS", "2").variable("PLAN_CHECK_RANKS", "3")), "3");
    assert_eq!(check(case("plan t").variable("RANKS", "1").variable("PLAN_CHECK_RANKS", "3")), "1");
    let file = "[cluster]\nranks = 1\n";
    assert_eq!(check(case("plan check").file(file)), "1");
    assert_eq!(check(case("plan check").file(file).file("[plan]\nranks = 2\n")), "2");
    assert_eq!(
        check(case("plan check").file(file).file("[plan]\nranks = 2\n[plan.check]\nranks = 3\n")),
        "3"
    );
    assert_eq!(check(case("plan check").file("[plan.check]\nranks = 3\n").variable("RANKS", "1")), "1");
    // An empty variable is not set.
    assert_eq!(check(case("plan check").file(file).variable("RANKS", "")), "1");
    assert_eq!(check(case("bench").file(file).variable("RANKS", "2")), "2");
    assert_eq!(check(case("bench").file("[bench]\nranks = 2\n")), "2");
    assert_eq!(check(case("bench").variable("BENCH_RANKS", "2")), "2");
    // Plug-ins have their own variables.
    let policy = |call: Case| raw(&call.matches(), "policy");
    assert_eq!(policy(case("plan t --ranks 1").variable("POLICY", "off")), "recourse");
    assert_eq!(policy(case("plan t --ranks 1").variable("PLAN_POLICY", "eplb")), "eplb");
}

#[test]
fn values_have_the_types_of_their_options() {
    let plan = || case("plan t --ranks 4");
    let blend = plan().variable("PLAN_BLEND", "a:1,b:2").matches();
    assert_eq!(raw(&blend, "blend"), "a:1 b:2");
    let blend = plan().file("[plan]\nblend = [\"a,b:1\", \"c:2\"]\nreport = \"r.html\"\n").matches();
    assert_eq!(raw(&blend, "blend"), "a,b:1 c:2");
    // A path is relative to the folder of the file.
    assert!(Path::new(&raw(&blend, "report")).is_absolute());
    assert_eq!(raw(&plan().file("[plan]\nreport = \"-\"\n").matches(), "report"), "-");
    assert_eq!(raw(&plan().variable("PLAN_REPORT", "r.html").matches(), "report"), "r.html");
    let text = "[output]\nverbose = 2\n[cluster]\nredundant = \"1,2\"\nnodes = 0x10\n";
    let matches = plan().file(text).matches();
    assert_eq!((matches.get_count("verbose"), raw(&matches, "nodes")), (2, "16".into()));
    assert_eq!(matches.get_many::<u64>("redundant").unwrap().count(), 2);
    for (text, message) in [
        ("[cluster]\nranks = true\n", None),
        (
            "[cluster]\nnodes = \"two\"\n",
            Some("2: cluster.nodes: found `two`, expected N of --nodes: invalid digit"),
        ),
        ("[plan]\nnodes = 1.5\n", Some("2: plan.nodes: found `1.5`, expected N of --nodes")),
        ("[plan]\nnodes = -1\n", Some("2: plan.nodes: found `-1`, expected N of --nodes")),
        ("[plan]\nnodes = [1]\n", Some("2: plan.nodes: found a list, expected one value")),
        ("[plan]\nredundant = []\n", Some("2: plan.redundant: found an empty list")),
        ("[plan]\nredundant = [[1]]\n", Some("2: plan.redundant: found a list in a list")),
        ("[plan]\nuneven = \"true\"\n", Some("2: plan.uneven: found a string, expected true or false")),
        ("[plan]\nform = \"wide\"\n", Some("2: plan.form: found `wide`, expected one of short, long")),
        ("[plan]\nnodes = 1979-05-27\n", Some("2: plan.nodes: found `1979-05-27`")),
        (
            "[output]\nverbose = 256\n",
            Some("2: output.verbose: found `256`, expected a number from 0 to 255"),
        ),
        ("[plan]\nnodes = {}\n", Some("2: plan.nodes is a table, expected a value")),
    ] {
        match message {
            // A stated option hides an invalid value.
            None => assert_eq!(raw(&plan().file(text).matches(), "ranks"), "4"),
            Some(message) => {
                let error = plan().file(text).error();
                assert!(error.starts_with(&format!("evenkeel.toml:{message}")), "{text}: {error}");
            }
        }
    }
    let invalid = OsString::from_vec(vec![b'a', 0xff]);
    for (name, value, message) in [
        (
            "NODES",
            "x".into(),
            "EVENKEEL_NODES: found `x`, expected N of --nodes: invalid digit found in string",
        ),
        ("UNEVEN", "yes".into(), "EVENKEEL_UNEVEN: found `yes`, expected true, false, 1 or 0"),
        ("VERBOSE", "x".into(), "EVENKEEL_VERBOSE: found `x`, expected a number from 0 to 255"),
        ("NODES", invalid.clone(), "EVENKEEL_NODES: found `a\u{fffd}`, expected N of --nodes: not UTF-8"),
        ("PLAN_BLEND", invalid.clone(), "EVENKEEL_PLAN_BLEND: found bytes that are not UTF-8"),
        ("JSON", invalid.clone(), "EVENKEEL_JSON: found `a\u{fffd}`, expected true, false, 1 or 0"),
        ("NO_CONFIG", "yes".into(), "EVENKEEL_NO_CONFIG: found `yes`, expected true, false, 1 or 0"),
    ] {
        let error = plan().variable(name, value).error();
        assert!(error.starts_with(message), "{error}");
    }
    let path = plan().variable("PLAN_REPORT", invalid.clone()).matches();
    assert_eq!(path.get_one::<PathBuf>("report"), Some(&PathBuf::from(invalid)));
}

#[test]
fn unknown_tables_and_keys_name_the_nearest() {
    for (text, message) in [
        ("[clustr]\nranks = 1\n", "1: unknown table [clustr]: the nearest is [cluster]"),
        ("\n[cluster]\nrank = 1\n", "3: unknown field `rank` in [cluster]: the nearest is `ranks`"),
        ("[plan]\nmax_moves = 1\n", "2: unknown field `max_moves` in [plan]: the nearest is `max-moves`"),
        ("[cluster]\nseed = 1\n", "2: unknown field `seed` in [cluster]: it belongs to [batches]"),
        ("[cluster]\njson = true\n", "2: unknown field `json` in [cluster]: it belongs to [output]"),
        ("ranks = 1\n", "1: unknown field `ranks`: it belongs to [cluster]"),
        ("max-moves = 1\n", "1: unknown field `max-moves`: it belongs to [plan]"),
        ("lisen = 1\n", "1: unknown field `lisen`: the nearest is `listen`"),
        ("[plan.chek]\nranks = 1\n", "1: unknown table [plan.chek]: the nearest is [plan.check]"),
        ("[plan]\ncheck = 1\n", "2: unknown field `check` in [plan]: "),
        ("[[plan]]\nranks = 1\n", "1: `plan` is a list, expected a table"),
        ("cluster = 1\n", "1: `cluster` is a number, expected a table"),
        ("[plan]\nconfig = \"x\"\n", "2: unknown field `config` in [plan]: "),
        ("[zebra]\n", "1: unknown table [zebra]: expected one of cluster, model, batches, output, plan, "),
        ("[plan\n", "1: "),
        ("[plan]\nranks = 1\nranks = 2\n", "3: duplicate key"),
        ("[plan]\nnodes = \n", "2: "),
    ] {
        let error = case("plan t --ranks 4").file(text).error();
        assert!(error.starts_with(&format!("evenkeel.toml:{message}")), "{text}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
    // The service reads its tables itself.
    let service =
        "listen = \"x\"\n[decide]\nanything = 1\n[models.a]\nranks = 8\n[[source]]\nmodel = \"a\"\n";
    assert!(case("plan t --ranks 4").file(service).resolve().unwrap().settings.is_empty());
    assert_eq!(nearest(&"r".repeat(5000), ["ranks"]), None);
}

#[test]
fn secrets_are_not_printed() {
    let call = case("top").variable("TOKEN", "public").variable("TOP_TOKEN", "hush");
    let resolved = call.resolve().unwrap();
    assert_eq!(raw(leaf(&resolved.matches), "token"), "hush");
    let variables = call.variables;
    let variable = |name: &str| variables.get(name).cloned();
    let sources = Sources { variable: &variable, file: None };
    let values = effective_values(&program(), sources, &[], &["top"]).unwrap();
    let unknown =
        [UnknownVariable { name: "EVENKEEL_TOKN".into(), suggestion: Some("EVENKEEL_TOKEN".into()) }];
    let texts =
        [render(&values, &unknown, None, false), render_document(&values, &unknown, None, true).to_string()];
    for text in texts {
        assert!(
            !text.contains("hush") && text.contains("set") && text.contains("EVENKEEL_TOP_TOKEN"),
            "{text}"
        );
    }
    // A file with tokens is not secret, an invalid secret is.
    let program = Command::new("evenkeel").subcommand(Command::new("top").arg(number("token")));
    let option = options_of(&program, &["top"])[0];
    let sources = Sources { variable: &|_| Some("hush".into()), file: None };
    let error = sources.setting(&["top"], option).unwrap_err().to_string();
    assert_eq!(error, "EVENKEEL_TOP_TOKEN: found a secret, expected N of --token");
}

#[test]
fn show_lists_what_differs_and_its_source() {
    let program = program();
    let file = ProjectFile::parse(
        "[cluster]\nranks = 8\n[plan]\nform = \"long\"\n[output]\njson = true\n[bench]\njson = false\n",
        Path::new("evenkeel.toml"),
        &program,
    )
    .unwrap();
    let variable = |name: &str| (name == "EVENKEEL_REDUNDANT").then(|| OsString::from("0,32"));
    let sources = Sources { variable: &variable, file: Some(&file) };
    let stated = [("threads".to_owned(), vec![OsString::from("3")])];
    let values = effective_values(&program, sources, &stated, &[]).unwrap();
    let text = render(&values, &[], Some(&file.path), false);
    let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    for row in [
        vec!["json", "true", "evenkeel.toml:6", "every", "command"],
        vec!["threads", "3", "flag", "every", "command"],
        vec!["ranks", "8", "evenkeel.toml:2", "plan,", "plan", "check,", "bench"],
        vec!["redundant", "0,32", "EVENKEEL_REDUNDANT", "plan"],
        vec!["form", "long", "evenkeel.toml:4", "plan"],
        vec!["json", "false", "evenkeel.toml:8", "bench"],
    ] {
        assert!(words.contains(&row), "{row:?}\n{text}");
    }
    assert_eq!(words.len(), 8, "{text}");
    let defaults = values.iter().filter(|value| value.source == Source::Default).count();
    assert!(render(&values, &[], None, true).lines().count() >= defaults + 6);
    let json = render_document(&values, &[], None, false);
    let redundant =
        json["values"].as_array().unwrap().iter().find(|value| value["option"] == "redundant").unwrap();
    assert_eq!(redundant["value"], serde_json::json!(["0", "32"]));
    assert_eq!(redundant["source"]["variable"], "EVENKEEL_REDUNDANT");
}

#[test]
fn the_file_is_searched_upward_and_named_by_options() {
    let folder = tempfile::tempdir().unwrap();
    let below = folder.path().join("a/b");
    std::fs::create_dir_all(&below).unwrap();
    let run = |args: &str, folder: &Path, variables: &[(&str, &Path)]| {
        let args: Vec<OsString> = args.split_whitespace().map(OsString::from).collect();
        let variable = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_os_str().to_owned())
        };
        resolve(&program(), &args, &variable, Some(folder)).map_err(|failure| match failure {
            Failure::Arguments(error) => error.to_string(),
            Failure::Configuration(error) => format!("{error:#}"),
        })
    };
    assert_eq!(search(&below), None);
    let file = folder.path().join("evenkeel.toml");
    std::fs::write(&file, "[cluster]\nranks = 8\n").unwrap();
    assert_eq!(search(&below), Some(file.clone()));
    let found = run("evenkeel plan t", &below, &[]).unwrap();
    assert_eq!((found.location.path, found.settings.len()), (Some(file.clone()), 1));
    let other = folder.path().join("other.toml");
    std::fs::write(&other, "[cluster]\nranks = 9\n").unwrap();
    let ranks = |found: Result<Resolved, String>| raw(leaf(&found.unwrap().matches), "ranks");
    let named = format!("evenkeel plan t --config {}", other.display());
    assert_eq!(ranks(run(&named, &below, &[])), "9");
    assert_eq!(ranks(run(&named, &below, &[("EVENKEEL_CONFIG", &file)])), "9");
    assert_eq!(ranks(run("evenkeel plan t", &below, &[("EVENKEEL_CONFIG", &other)])), "9");
    let on = Path::new("1");
    for (args, variables) in [
        ("evenkeel --no-config plan t", vec![]),
        ("evenkeel plan t", vec![("EVENKEEL_NO_CONFIG", on)]),
        ("evenkeel plan t --no-config", vec![("EVENKEEL_CONFIG", other.as_path())]),
    ] {
        assert!(run(args, &below, &variables).unwrap_err().contains("--ranks <N>"), "{args}");
    }
    let message = run("evenkeel plan t --config nothing.toml", &below, &[]).unwrap_err();
    assert!(message.starts_with("nothing.toml: No such file"), "{message}");
    // A nearer file hides the one above, whatever it is.
    let hostile = below.join("evenkeel.toml");
    std::fs::create_dir(&hostile).unwrap();
    assert!(run("evenkeel plan t", &below, &[]).unwrap_err().contains("a folder, expected a regular file"));
    // Some commands read no file.
    assert!(run("evenkeel completions bash", &below, &[]).unwrap().file.is_none());
    std::fs::remove_dir(&hostile).unwrap();
    std::fs::write(&hostile, "# ".repeat(5 << 20)).unwrap();
    assert!(run("evenkeel plan t", &below, &[]).unwrap_err().contains("larger than 1048576 bytes"));
    std::fs::write(&hostile, b"[plan]\npolicy = \"\xff\"\n").unwrap();
    assert!(run("evenkeel plan t", &below, &[]).unwrap_err().contains("line 2 is not UTF-8"));
    std::fs::write(&hostile, format!("[plan]\nranks = {}", "[".repeat(100_000))).unwrap();
    assert!(run("evenkeel plan t", &below, &[]).unwrap_err().contains("evenkeel.toml:2: "));
    std::fs::remove_file(&hostile).unwrap();
    // The link leads to itself, so not even the superuser can read it.
    std::os::unix::fs::symlink(&hostile, &hostile).unwrap();
    let args = format!("evenkeel plan t --config {}", hostile.display());
    assert!(run(&args, &below, &[]).unwrap_err().contains("evenkeel.toml: "));
}

#[test]
fn variables_are_known_or_have_a_suggestion() {
    let program = program();
    let names = ["EVENKEEL_RANKS", "EVENKEEL_RANK", "EVENKEEL_TOKEN", "EVENKEEL_PLAN_CHECK_RANKS", "PATH"];
    let found = unknown(&program, names.map(str::to_owned));
    let expected =
        UnknownVariable { name: "EVENKEEL_RANK".into(), suggestion: Some("EVENKEEL_RANKS".into()) };
    assert_eq!(found, [expected]);
    assert_eq!(unknown(&program, ["EVENKEEL_ABCDEFGH".to_owned()])[0].suggestion, None);
}

/// Returns the long and the short help of every command.
fn helps(program: &Command) -> Vec<(Vec<String>, String, String)> {
    let mut program = program.clone();
    program.build();
    let paths =
        command_paths(&program).into_iter().map(|path| path.iter().map(ToString::to_string).collect());
    let paths: Vec<Vec<String>> = paths.collect();
    paths
        .into_iter()
        .map(|path| {
            let command = path.iter().fold(&program, |command, name| command.find_subcommand(name).unwrap());
            let mut command = command.clone();
            (path, command.render_long_help().to_string(), command.render_help().to_string())
        })
        .collect()
}

#[test]
fn long_help_names_the_variable_of_every_option() {
    let program = super::command();
    for (path, long, short) in helps(&program) {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        assert!(!short.contains("[env: "), "{path:?}");
        for CommandOption { arg, name, depth } in options_of(&program, &path) {
            let variable = documented(&path[..depth], name);
            assert!(
                arg.is_hide_set() || long.contains(&format!("[env: {variable}]")),
                "{path:?} --{name}: {long}"
            );
        }
        assert!(long.contains("[env: EVENKEEL_CONFIG]") && long.contains("[env: EVENKEEL_NO_CONFIG]"));
    }
}

#[test]
fn every_variable_has_one_meaning() {
    let program = super::command();
    // Each variable, with the options that read it.
    let mut readers: BTreeMap<String, BTreeSet<(String, bool)>> = BTreeMap::new();
    for path in command_paths(&program) {
        for CommandOption { arg, name, .. } in options_of(&program, &path) {
            for variable in variables_of(&path, name) {
                let takes_values = arg.get_action().takes_values();
                readers.entry(variable).or_default().insert((name.to_owned(), takes_values));
            }
        }
    }
    for (variable, options) in &readers {
        assert_eq!(options.len(), 1, "{variable} is read by {options:?}: see COMMAND_SPECIFIC");
        assert!(!OTHER_VARIABLES.contains(&variable.as_str()), "{variable}");
        assert!(!["EVENKEEL_CONFIG", "EVENKEEL_NO_CONFIG"].contains(&variable.as_str()), "{variable}");
    }
    assert_eq!(known(&program).len(), readers.len() + 2);
    // Variables of tests and of the build have other names.
    for name in [
        "API",
        "ATTACK",
        "BIN",
        "FUZZ_CORPUS",
        "H",
        "JOB",
        "KILLS",
        "NVRTC",
        "REAL_TRACES",
        "SKIP_FOR",
        "TORCH",
    ] {
        assert!(!readers.contains_key(&format!("EVENKEEL_{name}")), "EVENKEEL_{name}");
    }
}

#[test]
fn lists_name_options_that_exist() {
    let program = super::command();
    let paths = command_paths(&program);
    for (table, keys) in SHARED_TABLES {
        assert!(program.find_subcommand(table).is_none(), "[{table}] is the table of a command too");
        for key in keys {
            let reads = |path: &Vec<&str>| {
                is_shared(key) && options_of(&program, path).iter().any(|option| option.name == *key)
            };
            assert!(paths.iter().any(reads), "{table}.{key}");
        }
    }
    for name in COMMAND_SPECIFIC {
        let has = |path: &Vec<&str>| options_of(&program, path).iter().any(|option| option.name == name);
        assert!(paths.iter().any(has), "{name}");
    }
    let selectors: Vec<&str> = program
        .get_arguments()
        .filter(|arg| configurable(arg).is_none())
        .map(|arg| arg.get_id().as_str())
        .collect();
    for selector in SELECTORS {
        assert!(selectors.contains(&selector), "{selector}");
    }
    // Subcommands and options of one name differ by their type in the file.
    for path in &paths {
        for option in options_of(&program, path) {
            assert!(!option.name.contains('.'), "{}", option.name);
        }
    }
}

proptest! {
    /// The flag goes before the variable, the variable before the file, the file before the default.
    #[test]
    fn the_source_with_the_highest_precedence_wins(
        flag in prop::option::of(10u64..20),
        variables in prop::collection::vec(prop::option::of(20u64..30), 2),
        tables in prop::collection::vec(prop::option::of(30u64..40), 2),
        others in prop::bool::ANY,
    ) {
        let mut call = case("plan t --ranks 1");
        if let Some(value) = flag {
            call.args += &format!(" --nodes {value}");
        }
        for (name, value) in ["PLAN_NODES", "NODES"].into_iter().zip(&variables) {
            if let Some(value) = value {
                call = call.variable(name, value.to_string());
            }
        }
        for (table, value) in ["plan", "cluster"].into_iter().zip(&tables) {
            if let Some(value) = value {
                call = call.file(&format!("[{table}]\nnodes = {value}\n"));
            }
        }
        if others {
            call = call.file("[output]\njson = true\n").variable("REDUNDANT", "1,2").variable("MAX_MOVES", "1");
        }
        let configured = variables.iter().chain(&tables).flatten().copied().next();
        let matches = call.matches();
        prop_assert_eq!(matches.get_one::<u64>("nodes").copied(), flag.or(configured).or(Some(1)));
        let explicit = matches.value_source("nodes") == Some(ValueSource::CommandLine);
        prop_assert_eq!(explicit, flag.is_some());
        prop_assert_eq!(matches.get_flag("json"), others);
        prop_assert_eq!(matches.get_many::<u64>("redundant").map_or(0, Iterator::count), if others { 2 } else { 0 });
        prop_assert_eq!(matches.get_one::<u64>("max_moves"), None);
        // `config show` names the source.
        let settings = call.resolve().unwrap().settings;
        let nodes = settings.iter().find(|setting| setting.name == "nodes").map(|setting| &setting.origin);
        prop_assert_eq!(nodes.is_some(), flag.is_none() && configured.is_some());
        prop_assert_eq!(
            nodes.is_some_and(|origin| matches!(origin, Origin::Variable(_))),
            flag.is_none() && variables.iter().any(Option::is_some)
        );
    }

    /// Any values are an error or have an effect, never a panic, and matches hold together.
    #[test]
    fn any_configuration_is_read_or_refused(
        args in prop::collection::vec(prop::sample::select(vec![
            "plan", "t", "--ranks", "4", "--uneven", "--even", "--limit", "3", "--model", "m", "--max-moves", "--previous",
            "p", "--", "check", "bench", "--json", "-v", "--help", "--threads=2",
        ]), 0..8),
        variables in prop::collection::btree_map(prop::sample::select(vec![
            "RANKS", "NODES", "MODEL", "LIMIT", "UNEVEN", "EVEN", "MAX_MOVES", "PLAN_PREVIOUS", "LINK", "HORIZON", "VERBOSE",
        ]), prop::sample::select(vec!["1", "0", "m", ""]), 0..6),
        lines in prop::collection::vec(prop::sample::select(vec![
            "[plan]", "[cluster]", "[plan.check]", "ranks = 3", "limit = 4", "uneven = true", "model = 'x'", "link = 1",
            "horizon = 1", "previous = 'p'", "blend = ['a', 'b']", "= 1",
        ]), 0..6),
    ) {
        let mut call = case(&args.join(" ")).file(&lines.join("\n"));
        for (name, value) in variables {
            call = call.variable(name, value);
        }
        if let Ok(resolved) = call.resolve() {
            let matches = leaf(&resolved.matches);
            for setting in &resolved.settings {
                prop_assert_eq!(matches.value_source(&setting.id), Some(ValueSource::DefaultValue));
                prop_assert!(matches.get_raw(&setting.id).is_some());
            }
            // The settings have the values that they would have on the command line.
            let settings: Vec<_> = resolved.settings.iter().collect();
            let stated = program().try_get_matches_from(with_tokens(&call.args(), &settings)).unwrap();
            for id in matches.ids() {
                prop_assert_eq!(raw(matches, id.as_str()), raw(leaf(&stated), id.as_str()));
            }
        }
    }

    #[test]
    fn any_text_is_a_file_or_an_error(text in "\\PC{0,120}|[\\[\\]a-z.=\"'\\n{}1, -]{0,80}") {
        let _ = ProjectFile::parse(&text, Path::new("evenkeel.toml"), &program());
    }
}
