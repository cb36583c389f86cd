//! Tests of the report through the public API: well-formed, complete, harmless, small, deterministic.
//!
//! The pages stay in cargo's folder for test files for inspection.

#![allow(clippy::unwrap_used, clippy::panic)]

use evenkeel::cluster::Cluster;
use evenkeel::forecast::HistoryWindow;
use evenkeel::place;
use evenkeel::split::SplitMethod;
use evenkeel_report::SimulationPage;
use evenkeel_simulate::{
    ReplayOptions, SimulationConfig, SimulationResult, SimulationRow, replay_trace, simulate,
};
use evenkeel_trace::{ReadOptions, Trace};
use std::collections::BTreeSet;
use std::time::Duration;

/// Returns skewed loads that drift. Every expert has a weight per layer and a slow wave of its own.
fn trace(layers: &[u32], experts: usize, steps: usize, tokens: f64) -> Trace {
    let noise = |a: usize, b: usize, c: usize| {
        let mut z = (a as u64) << 42 ^ (b as u64) << 21 ^ c as u64;
        z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    let mut loads = vec![];
    for step in 0..steps {
        for (at, _) in layers.iter().enumerate() {
            let skew = 0.7 + 1.2 * noise(9, at, 0);
            let weights: Vec<f64> = (0..experts)
                .map(|e| {
                    let fixed = (noise(1, at, e) - 0.5) * 2.0 * skew;
                    let wave = (step as f64 * 0.05 + 6.3 * noise(2, at, e)).sin() * 0.4;
                    (fixed + wave + (noise(3 + step, at, e) - 0.5) * 0.9).exp()
                })
                .collect();
            let all: f64 = weights.iter().sum();
            loads.extend(weights.iter().map(|w| (w / all * tokens).round() as u64));
        }
    }
    Trace::from_loads(experts, layers.to_vec(), (0..steps).map(|s| s.to_string()).collect(), loads).unwrap()
}

fn outcome(trace: &Trace, cluster: Cluster, policies: &[&str], methods: &[SplitMethod]) -> SimulationResult {
    let config = SimulationConfig::first_part(trace, cluster, methods.to_vec(), 0.4).unwrap();
    let policies: Vec<_> = policies.iter().map(|name| place::policy(name, 1, &cluster).unwrap()).collect();
    let mut outcome = simulate(trace, &config, &policies, &()).unwrap();
    // Replace measured times by constants.
    for planned in &mut outcome.planned {
        planned.plan_time = Duration::from_millis(12);
    }
    outcome
}

fn page(name: &str, trace: &Trace, cluster: &Cluster, outcome: &SimulationResult) -> String {
    let title = format!("{name}: what balances it");
    let command = format!("evenkeel simulate {name}.csv --ranks {} --report r.html", cluster.ranks());
    let html = SimulationPage::new(trace, cluster, outcome).title(title).command(command).to_html();
    std::fs::write(format!("{}/report-{name}.html", env!("CARGO_TARGET_TMPDIR")), &html).unwrap();
    well_formed(&html).unwrap_or_else(|e| panic!("{name}: {e}"));
    html
}

/// Checks that elements are closed in order, attributes are quoted and unique, every `&` is an entity, and
/// ids are unique.
fn well_formed(html: &str) -> Result<(), String> {
    let mut rest = html.strip_prefix("<!DOCTYPE html>").ok_or("no doctype")?;
    let (mut open, mut ids) = (vec![], BTreeSet::new());
    while let Some(at) = rest.find('<') {
        entities(&rest[..at])?;
        if open.is_empty() && !rest[..at].trim().is_empty() {
            return Err(format!("text outside all elements: {:?}", &rest[..at]));
        }
        let end = rest[at..].find('>').ok_or("a tag does not end")? + at;
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            if open.pop() != Some(name) {
                return Err(format!("</{name}> closes something else, {} bytes before the end", rest.len()));
            }
            continue;
        }
        let (tag, alone) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
        let (name, mut attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Err(format!("<{tag}> is no element"));
        }
        let mut seen = BTreeSet::new();
        while !attributes.trim().is_empty() {
            let (key, after) =
                attributes.trim_start().split_once("=\"").ok_or(format!("<{tag}>: unquoted"))?;
            let (value, after) = after.split_once('"').ok_or(format!("<{tag}>: quote not closed"))?;
            if key.contains(|c: char| !(c.is_ascii_alphanumeric() || c == '-')) || !seen.insert(key) {
                return Err(format!("<{tag}>: attribute {key:?}"));
            }
            entities(value)?;
            if key == "id" && !ids.insert(value) {
                return Err(format!("id {value} twice"));
            }
            attributes = after;
        }
        if name == "style" {
            rest = &rest[rest.find("</style>").ok_or("style not closed")?..];
        }
        if !alone {
            open.push(name);
        }
    }
    for reference in html.split("aria-labelledby=\"").skip(1) {
        let id = reference.split('"').next().unwrap_or("");
        if !ids.contains(id) {
            return Err(format!("nothing has the id {id}"));
        }
    }
    if open.is_empty() { Ok(()) } else { Err(format!("never closed: {open:?}")) }
}

fn entities(text: &str) -> Result<(), String> {
    for part in text.split('&').skip(1) {
        let known = ["amp;", "lt;", "gt;", "quot;", "#39;", "#160;"];
        if !known.iter().any(|entity| part.starts_with(entity)) {
            return Err(format!("a bare & before {part:?}"));
        }
    }
    Ok(())
}

#[test]
fn the_checker_finds_what_is_wrong() {
    for bad in
        ["<p>", "<p></b>", "<p a=b></p>", "<p>&x</p>", "<p id=\"a\"/><p id=\"a\"/>", "<p a=\"1\" a=\"2\"/>"]
    {
        assert!(well_formed(&format!("<!DOCTYPE html>{bad}")).is_err(), "{bad}");
    }
}

#[test]
fn every_row_and_figure_is_there_and_nothing_is_fetched() {
    let trace = trace(&(0..24).collect::<Vec<_>>(), 32, 120, 4096.0);
    let cluster = Cluster::new(8, 1, 32, 8).unwrap();
    let outcome = outcome(
        &trace,
        cluster,
        &["contiguous", "eplb", "lplb:ring"],
        &[SplitMethod::Even, SplitMethod::Exact],
    );
    let html = page("small", &trace, &cluster, &outcome);

    let table = &html[html.find("<table class=\"numbers\"").unwrap()..html.find("</table>").unwrap()];
    assert_eq!(table.matches("<th scope=\"row\">").count(), 6);
    for planned in &outcome.planned {
        assert!(table.contains(&format!(">{}</th>", planned.policy)), "{}", planned.policy);
    }
    for row in &outcome.rows {
        assert!(table.contains(&format!("{:.3}", row.imbalance.mean)));
        assert!(table.contains(&format!("{:.3}", row.excess.mean)));
    }
    assert_eq!(html.matches("<div class=\"strip\">").count(), 6);
    assert_eq!(html.matches("class=\"plot heat\"").count(), 2);
    for id in ["numbers", "spread", "ranks", "layers", "experts", "facts"] {
        assert!(html.contains(&format!("<h2 id=\"{id}\">")), "{id}");
    }
    // The headline compares the first row with the best one under the even split, then names the best of all.
    let best = |rows: &mut dyn Iterator<Item = &SimulationRow>| {
        rows.map(|r| r.imbalance.mean).fold(f64::MAX, f64::min)
    };
    let even = best(&mut outcome.rows.iter().filter(|row| row.method == SplitMethod::Even));
    let any = best(&mut outcome.rows.iter());
    let says = |figure: f64, around: [&str; 2]| {
        [format!("{figure:.3}"), format!("{figure:.2}")].iter().any(|x| html.contains(&around.join(x)))
    };
    assert!(says(even, ["<em>", " times</em> the average work instead of"]));
    assert!(says(any, ["and ", " times with the exact one."]));

    // The page has no address, no script and no resource. It supports both colour schemes and print.
    for never in [
        "http:",
        "https:",
        "//",
        "<script",
        "<link",
        "<img",
        "@import",
        "url(",
        "src=",
        "href=",
        "javascript:",
    ] {
        assert!(!html.contains(never), "{never}");
    }
    assert!(html.contains("default-src 'none'"));
    for once in
        ["prefers-color-scheme: dark", "color-scheme: light dark", "@media print", "lang=\"en\"", "viewport"]
    {
        assert!(html.contains(once), "{once}");
    }
    // Texts for screen readers stay inside the scrolling part, so that a phone shows the page at its own
    // width.
    assert!(html.contains(".wide { position: relative;"));
    assert!(!html.contains("every rank within 3 % of the average"));
    // Every figure has a description, or is marked as decoration.
    let figures = html.matches("<svg ").count() - html.matches("preserveAspectRatio").count();
    assert_eq!(
        figures,
        html.matches("role=\"img\" aria-label=").count() + html.matches("aria-hidden").count()
    );

    let again = SimulationPage::new(&trace, &cluster, &outcome)
        .title("small: what balances it")
        .command("evenkeel simulate small.csv --ranks 8 --report r.html");
    assert_eq!(html, again.to_html(), "the same input gives the same bytes");
    assert!(html.len() < 150_000, "{} bytes", html.len());
}

#[test]
fn names_from_outside_stay_text() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("<img src=x onerror=alert(1)>&\"'.csv");
    let mut csv = String::from("step,layer,expert,tokens\n");
    for step in 0..4 {
        for expert in 0..4 {
            csv += &format!("{step},3,{expert},{}\n", 10 + step * expert * expert);
        }
    }
    std::fs::write(&file, csv).unwrap();
    let trace = evenkeel_trace::read(&[file], &ReadOptions::default(), &()).unwrap();
    let cluster = Cluster::new(2, 1, 4, 2).unwrap();
    let mut outcome = outcome(&trace, cluster, &["contiguous", "eplb"], &[SplitMethod::Even]);
    let hostile = "lplb:</title></style><script>alert(1)</script>\u{202e}\"'&amp;.json";
    for planned in &mut outcome.planned {
        planned.policy = hostile.into();
    }
    let title = "</title><script>alert(1)</script>".to_owned();
    let command = "evenkeel simulate '</code><svg onload=alert(1)>' \u{1b}[2J".to_owned();
    let html = SimulationPage::new(&trace, &cluster, &outcome).title(title).command(command).to_html();
    well_formed(&html).unwrap();
    for never in ["<script", "<img", "<svg onload", "\u{202e}", "\u{1b}"] {
        assert!(!html.contains(never), "{never}");
    }
    assert!(html.contains("&lt;img src=x onerror=alert(1)&gt;&amp;&quot;&#39;.csv"));
    assert!(html.contains("lplb:&lt;/title&gt;&lt;/style&gt;"));
}

#[test]
fn large_groups_stay_small_files() {
    let deep = trace(&(3..61).collect::<Vec<_>>(), 256, 8, 65_536.0);
    let cluster = Cluster::new(64, 8, 256, 64).unwrap();
    let result = outcome(
        &deep,
        cluster,
        &["contiguous", "eplb", "lplb:ring"],
        &[SplitMethod::Even, SplitMethod::Exact],
    );
    let html = page("deep", &deep, &cluster, &result);
    assert!(html.len() < 300_000, "{} bytes", html.len());
    assert!(html.contains(">3</text>") && html.contains("layer 60:"), "real layer ids");

    let all = trace(&(0..61).collect::<Vec<_>>(), 256, 4, 262_144.0);
    let cluster = Cluster::new(288, 36, 256, 32).unwrap();
    let result = outcome(&all, cluster, &["contiguous", "eplb"], &[SplitMethod::Even, SplitMethod::Exact]);
    let html = page("wide", &all, &cluster, &result);
    assert!(html.len() < 600_000, "{} bytes", html.len());
    assert!(html.contains("288 columns"));

    // Panels with more cells than can be distinguished are merged.
    let tall = trace(&(0..170).collect::<Vec<_>>(), 8, 3, 65_536.0);
    let cluster = Cluster::new(1024, 1, 8, 1016).unwrap();
    let result = outcome(&tall, cluster, &["contiguous", "eplb"], &[SplitMethod::Even]);
    let html = page("joined", &tall, &cluster, &result);
    assert!(html.contains("256 columns") && html.contains("85 lines"));
    assert!(html.len() < 1_000_000, "{} bytes", html.len());
}

#[test]
fn small_and_odd_cases_have_their_page() {
    // One layer, one rank, one row.
    let one = trace(&[7], 4, 3, 100.0);
    let cluster = Cluster::new(1, 1, 4, 0).unwrap();
    let result = outcome(&one, cluster, &["contiguous"], &[SplitMethod::Exact]);
    let html = page("one", &one, &cluster, &result);
    assert!(html.contains("1.000 times</em> the average work.") && !html.contains("instead of"));
    assert!(html.contains("Only contiguous, exact was judged"));
    // A panel of one colour would look empty, so a text explains it.
    assert!(html.contains("every rank within 3 % of the average") && html.contains("no rank stands out"));
    assert_eq!(html.matches("class=\"plot heat\"").count(), 1);

    // No other row is better.
    let result = outcome(&one, cluster, &["contiguous", "eplb"], &[SplitMethod::Even]);
    assert!(page("tie", &one, &cluster, &result).contains("None of the 2 rows judged does better"));

    // An idle layer, a layer that is idle in the judged part, and a batch without tokens.
    let mut loads = vec![];
    for step in 0..10u64 {
        loads.extend([0, 0, 0, 0]);
        loads.extend(if step < 4 { [4, 3, 2, 1] } else { [0; 4] });
        loads.extend(if step == 5 { [0; 4] } else { [step + 9, 3, 2, 1] });
    }
    let steps = (0..10).map(|s| s.to_string()).collect();
    let idle = Trace::from_loads(4, vec![0, 1, 2], steps, loads).unwrap();
    let cluster = Cluster::new(2, 2, 4, 2).unwrap();
    let result = outcome(&idle, cluster, &["contiguous", "eplb"], &[SplitMethod::Even, SplitMethod::Exact]);
    let html = page("idle", &idle, &cluster, &result);
    assert!(html.contains("1 layer without tokens left out") && html.contains("layer 1: no tokens"));
    assert!(!html.contains("NaN") && !html.contains("inf<"));

    // A judged part without tokens gives no outcome.
    let loads = vec![4, 3, 2, 1, 0, 0, 0, 0];
    let quiet = Trace::from_loads(4, vec![0], vec!["a".into(), "b".into()], loads).unwrap();
    let config = SimulationConfig::first_part(&quiet, cluster, vec![SplitMethod::Even], 0.4).unwrap();
    let policies = [place::policy("contiguous", 1, &cluster).unwrap()];
    assert!(simulate(&quiet, &config, &policies, &()).is_err());
}

#[test]
fn replayed_planning_shows_what_moves_buy() {
    let trace = trace(&[3, 4], 16, 40, 4096.0);
    let cluster = Cluster::new(4, 1, 16, 4).unwrap();
    let config =
        SimulationConfig::first_part(&trace, cluster, vec![SplitMethod::Even, SplitMethod::Exact], 0.4)
            .unwrap();
    let policies: Vec<_> =
        ["contiguous", "eplb"].iter().map(|name| place::policy(name, 1, &cluster).unwrap()).collect();
    let how =
        ReplayOptions { every: 4, window: HistoryWindow::Last(6), max_moves: vec![1, 2], economics: None };
    let replayed = replay_trace(&trace, &config, &how, &policies, &()).unwrap();
    let outcome = simulate(&trace, &config, &policies, &()).unwrap();
    let page = SimulationPage::new(&trace, &cluster, &outcome)
        .title("moves")
        .command("evenkeel simulate replay t.csv --replan-every 4")
        .replayed(&replayed);
    let html = page.to_html();
    well_formed(&html).unwrap();
    // Two policies have five paces each, of the exact split only.
    assert_eq!(
        html.matches("moves per re-planning</title>").count() + html.matches("few moves</title>").count(),
        10
    );
    assert_eq!(html.matches("class=\"s1 full\"").count(), 4);
    assert!(html.contains("The gain of moves") && html.contains("at most 2 per layer"));
    assert!(!html.contains("NaN"));
}
