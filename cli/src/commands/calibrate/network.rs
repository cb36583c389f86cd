//! `evenkeel calibrate network`: measures the cost of exchanges between processes.

use crate::output::Output;
use clap::Args;
use std::path::PathBuf;

/// Measure the cost of exchanges between the processes of an MPI job
///
/// The links in a node and between nodes are measured and fitted separately. `evenkeel simulate network
/// --network FILE` reads the file. The command needs a build with the feature `mpi`, and is started by
/// mpirun.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  mpirun -n 2 evenkeel calibrate network -o network.json\n  evenkeel simulate network \
                             traces/sample-decode.csv.zst --ranks 8 --nodes 2 --network network.json --model gpt-oss-20b,h100"
)]
#[cfg_attr(not(feature = "mpi"), allow(dead_code, reason = "read over MPI alone"))]
pub(crate) struct NetworkArgs {
    /// Nodes that hold the processes
    #[arg(long, value_name = "N", default_value_t = 1)]
    nodes: usize,
    /// Repetitions of each measurement; the median counts
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
    rounds: u64,
    /// Write the fit to this file, as JSON; `-` is stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[cfg(not(feature = "mpi"))]
pub(super) fn run(_: &NetworkArgs, _: Output) -> anyhow::Result<()> {
    anyhow::bail!(crate::commands::run::WITHOUT_MPI)
}

#[cfg(feature = "mpi")]
pub(super) fn run(args: &NetworkArgs, output: Output) -> anyhow::Result<()> {
    use crate::commands::run::exit_stuck_process;
    use crate::output::{ReportedError, StderrBar, print_error};
    use evenkeel::cluster::Cluster;
    use evenkeel_exec::calibrate::network::{LinkFile, measure_links};
    use evenkeel_exec::comm::{CallContext, Communicator as _, MpiCommunicator, Purpose};
    use evenkeel_exec::run::StepProgress;

    let mpi = MpiCommunicator::join(std::time::Duration::from_mins(1), exit_stuck_process)?;
    let first = mpi.rank() == 0;
    let end = || mpi.leave(CallContext::outside(Purpose::Control));
    if mpi.ranks() < 2 {
        end()?;
        anyhow::bail!("one process has no peer: expected to be started by mpirun -n 2, or more");
    }
    let measure_links = || -> anyhow::Result<LinkFile> {
        mpi.meet()?;
        let cluster = Cluster::with_uneven_slots(mpi.ranks(), args.nodes, mpi.ranks(), 0)?;
        let bar = first.then(StderrBar::for_execution);
        let progress: &dyn StepProgress = bar.as_ref().map_or(&(), |bar| bar);
        let points = measure_links(&mpi, &cluster, args.rounds as usize, progress)?;
        Ok(LinkFile::from_points(
            format!("{} over MPI, {} processes", mpi.host(), mpi.ranks()),
            &cluster,
            points,
        )?)
    };
    match measure_links() {
        Ok(file) => {
            end()?;
            if first { print_links(&file, args.output.as_deref(), output) } else { Ok(()) }
        }
        Err(error) => {
            let reason = evenkeel::error_chain(error.as_ref());
            print_error(&error.context(format!("rank {}", mpi.rank())));
            mpi.abort(&reason);
            Err(ReportedError.into())
        }
    }
}

#[cfg(feature = "mpi")]
fn print_links(
    file: &evenkeel_exec::calibrate::network::LinkFile,
    path: Option<&std::path::Path>,
    output: Output,
) -> anyhow::Result<()> {
    use crate::output::{is_stdout, pretty_json, print_json, print_text, write_file};
    use crate::render::table::render_table;

    if let Some(path) = path {
        write_file(path, &pretty_json(file)?)?;
    }
    if path.is_some_and(is_stdout) {
        return Ok(());
    }
    if output.is_json() {
        return print_json(file);
    }
    let (node, cross) = (&file.network.node, &file.network.cross);
    let link = |name: &str, link: &evenkeel::cluster::LinkParameters, off: f64| {
        format!(
            "{name}: {:.2} us per message, {:.3} GB/s per rank and direction; worst point off by {:.0} %\n",
            link.message_us,
            link.gb_s,
            100.0 * off
        )
    };
    let row = |p: &evenkeel_exec::calibrate::network::LinkPoint| {
        let fitted = if p.cross { cross } else { node }.exchange_us(p.messages as f64, p.bytes as f64);
        vec![
            if p.cross { "between nodes" } else { "in node" }.to_owned(),
            p.messages.to_string(),
            p.bytes.to_string(),
            format!("{:.1}", p.us),
            format!("{fitted:.1}"),
        ]
    };
    print_text(&format!(
        "Exchanges of {} in {} nodes\n{}{}\n{}",
        file.network.name,
        file.nodes,
        link("in node", node, file.off.node),
        link("between nodes", cross, file.off.cross),
        render_table(
            &["", "messages", "bytes out and in", "us", "fitted us"],
            file.points.iter().map(row).collect(),
            1
        )
    ))?;
    path.iter().for_each(|path| output.print_note(&format!("written to {}", path.display())));
    Ok(())
}
