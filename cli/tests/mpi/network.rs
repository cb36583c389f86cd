//! `evenkeel calibrate network` as processes over MPI.
#![cfg(all(feature = "mpi", target_os = "linux"))]
#![allow(clippy::unwrap_used, reason = "tests")]

use crate::mpirun_support::EVENKEEL;
use evenkeel::cluster::Network;
use std::process::Command;

/// Two processes measure a network, and the written file is read.
#[test]
fn processes_measure_a_network() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("net.json");
    let mut command = Command::new("timeout");
    command.args(["--kill-after=10", "300", "mpirun", "--oversubscribe", "-n", "2", EVENKEEL]);
    command.args(["calibrate", "network", "--nodes", "2", "--rounds", "2", "-o"]).arg(&file);
    // Open MPI refuses to run as root without these variables.
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let network = Network::from_json(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert!(network.cross.gb_s > 0.0 && network.cross.message_us > 0.0);
    let alone = Command::new(EVENKEEL).args(["calibrate", "network"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&alone.stderr);
    assert!(!alone.status.success() && stderr.contains("mpirun -n 2"), "{stderr}");
}
