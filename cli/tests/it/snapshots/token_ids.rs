//! A small recording of single tokens, for results that counts alone cannot give. No sample trace contains
//! tokens.

use super::program::Sandbox;

/// Tokens, layers, experts that each token visits, and experts, as in Mixtral.
pub(super) const SHAPE: [usize; 4] = [512, 2, 2, 8];

/// Returns the ids `[token][layer][choice]`. They favour some experts and some spans of tokens.
pub(super) fn ids() -> Vec<u8> {
    let [tokens, layers, top_k, experts] = SHAPE;
    let mut state = 1u64;
    let mut draw = |below: usize| {
        // Knuth's constants of a linear congruential generator.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut ids = Vec::with_capacity(tokens * layers * top_k);
    for token in 0..tokens {
        for layer in 0..layers {
            let favourite = (token / 48 + 3 * layer) % experts;
            let first = if draw(3) == 0 { favourite } else { draw(experts).min(draw(experts)) };
            let second = (first + 1 + draw(experts - 1)) % experts;
            ids.extend([first as u8, second as u8]);
        }
    }
    ids
}

/// Writes `ids/routed.npy` and its table of requests into the folder.
pub(super) fn write(sandbox: &Sandbox) {
    let [tokens, layers, top_k, _] = SHAPE;
    let shape = format!("({tokens}, {layers}, {top_k})");
    let header = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(118u16.to_le_bytes());
    bytes.extend(format!("{header:<117}\n").bytes());
    bytes.extend(ids());
    std::fs::create_dir(sandbox.path("ids")).unwrap();
    std::fs::write(sandbox.path("ids/routed.npy"), bytes).unwrap();
    let mut requests = String::from("request,start,tokens\n");
    let mut start = 0;
    for request in 0.. {
        let length = (11 + 7 * request % 23).min(tokens - start);
        if length == 0 {
            break;
        }
        requests += &format!("{request},{start},{length}\n");
        start += length;
    }
    std::fs::write(sandbox.path("ids/requests.csv"), requests).unwrap();
}
