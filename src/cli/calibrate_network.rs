//! `evenkeel calibrate --network`: what exchanges between processes cost here.

use super::output::Output;
use std::path::Path;

#[cfg(not(feature = "mpi"))]
pub(super) fn run(_: usize, _: usize, _: Option<&Path>, _: Output) -> anyhow::Result<()> {
    anyhow::bail!(super::run::WITHOUT_MPI)
}

#[cfg(feature = "mpi")]
pub(super) fn run(nodes: usize, rounds: usize, path: Option<&Path>, output: Output) -> anyhow::Result<()> {
    use super::output::{Bar, Said};
    use evenkeel::cluster::Cluster;
    use evenkeel::exec::links::{LinkFile, measure};
    use evenkeel::exec::run::Progress;
    use evenkeel::exec::transport::{At, Mpi, Purpose, Transport as _};

    let mpi = Mpi::join(std::time::Duration::from_mins(1))?;
    let first = mpi.rank() == 0;
    let end = || mpi.end(At { step: None, layer: None, purpose: Purpose::Control });
    if mpi.ranks() < 2 {
        end()?;
        anyhow::bail!(
            "--network: one process has nobody to talk to; expected to be started by mpirun -n 2, or more"
        );
    }
    let measured = || -> anyhow::Result<LinkFile> {
        let cluster = Cluster::uneven(mpi.ranks(), nodes, mpi.ranks(), 0)?;
        let bar = first.then(Bar::running);
        let progress: &dyn Progress = bar.as_ref().map_or(&(), |bar| bar);
        let points = measure(&mpi, &cluster, rounds, progress)?;
        Ok(LinkFile::of(format!("{} over MPI, {} processes", mpi.host(), mpi.ranks()), &cluster, points)?)
    };
    match measured() {
        Ok(file) => {
            end()?;
            if first { show(&file, path, output) } else { Ok(()) }
        }
        Err(error) => {
            let why = evenkeel::in_words(error.as_ref());
            super::output::error(&error.context(format!("rank {}", mpi.rank())));
            mpi.give_up(&why);
            Err(Said.into())
        }
    }
}

#[cfg(feature = "mpi")]
fn show(file: &evenkeel::exec::links::LinkFile, path: Option<&Path>, output: Output) -> anyhow::Result<()> {
    use super::output::{document, print, table, write_file};

    if let Some(path) = path {
        let mut text = serde_json::to_string_pretty(file)?;
        text.push('\n');
        write_file(path, &text)?;
    }
    if path == Some(Path::new("-")) {
        return Ok(());
    }
    if output.json() {
        return document(file);
    }
    let (node, cross) = (&file.network.node, &file.network.cross);
    let link = |name: &str, link: &evenkeel::cluster::Link, off: f64| {
        format!(
            "{name}: {:.2} us per message, {:.3} GB/s per rank and direction; worst point off by {:.0} %\n",
            link.message_us,
            link.gb_s,
            100.0 * off
        )
    };
    let row = |p: &evenkeel::exec::links::LinkPoint| {
        let fitted = if p.cross { cross } else { node }.us(p.messages as f64, p.bytes as f64);
        vec![
            if p.cross { "between nodes" } else { "in node" }.to_owned(),
            p.messages.to_string(),
            p.bytes.to_string(),
            format!("{:.1}", p.us),
            format!("{fitted:.1}"),
        ]
    };
    print(&format!(
        "Exchanges of {} in {} nodes\n{}{}\n{}",
        file.network.name,
        file.nodes,
        link("in node", node, file.off[0]),
        link("between nodes", cross, file.off[1]),
        table(
            &["", "messages", "bytes out and in", "us", "fitted us"],
            file.points.iter().map(row).collect(),
            1
        )
    ))?;
    path.iter().for_each(|path| output.note(&format!("written to {}", path.display())));
    Ok(())
}
