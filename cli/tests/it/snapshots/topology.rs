//! `evenkeel plan topology`.

use super::compare_document;
use super::program::Sandbox;

#[test]
fn topologies() {
    let sandbox = Sandbox::new();
    compare_document("topology", &sandbox, "plan topology ring ring:4 cube hypercube torus:8x4");
    compare_document("topology-ranks", &sandbox, "plan topology ring torus:4x4 designed:2 --ranks 16");
}
