//! What the fuzz targets share.

use evenkeel::trace::{Batching, Format, ReadOptions, read_bytes};
use std::io::{Cursor, Write};
use zip::write::SimpleFileOptions;

/// Reads the bytes in each format, with little memory; errors are fine.
pub fn read(formats: &[Format], bytes: &[u8]) {
    let options = ReadOptions {
        memory: 4 << 20,
        batching: Batching::Prefill { tokens: 3 },
        ..ReadOptions::default()
    };
    for &format in formats {
        if let Ok(trace) = read_bytes(format, bytes, &options) {
            for step in 0..trace.steps().len() {
                for layer in 0..trace.layers().len() {
                    assert_eq!(trace.loads(step, layer).len(), trace.experts());
                }
            }
        }
    }
}

/// A zip of stored members.
pub fn zip(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in members {
        let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        zip.start_file(*name, options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}
