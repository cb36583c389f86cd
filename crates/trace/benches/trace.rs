//! A benchmark of reading a long CSV, compared with the csv crate's own pass and with the disk.
//!
//! `cargo bench -p evenkeel-trace --bench trace` generates a table of about 30 MB. It prints MB/s of a plain
//! read, of the csv crate's record loop (without parsing or storing), and of our reader. Our reader also
//! computes the SHA-256. `EVENKEEL_BENCH_CSV` names another table, for example one of a GB. The ratio of the
//! last two must stay above 60 %.
#![allow(missing_docs, clippy::unwrap_used, reason = "criterion's macros; a benchmark may unwrap")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use evenkeel_trace::{ReadOptions, TraceFormat, read, read_bytes, synth};
use std::fs::File;
use std::hint::black_box;
use std::io::Read;

fn csv(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let path = std::env::var_os("EVENKEEL_BENCH_CSV").map_or_else(
        || {
            let path = folder.path().join("trace.csv");
            let base = synth::SynthSpec::default().steps(160);
            let spec = base.experts(256).top_k(8).layers(58).first_layer(3);
            synth::write(&spec, &path, &()).unwrap();
            path
        },
        std::path::PathBuf::from,
    );
    let bytes = std::fs::metadata(&path).unwrap().len();
    let mut group = criterion.benchmark_group("csv");
    group.throughput(Throughput::BytesDecimal(bytes)).sample_size(10);
    group.bench_function("plain read", |bencher| {
        let mut buffer = vec![0; 1 << 20];
        bencher.iter(|| {
            let mut file = File::open(&path).unwrap();
            let mut total = 0;
            loop {
                let count = file.read(&mut buffer).unwrap();
                if count == 0 {
                    break;
                }
                total += count;
            }
            total
        });
    });
    group.bench_function("csv crate, raw records", |bencher| {
        bencher.iter(|| {
            let mut reader = csv::Reader::from_path(&path).unwrap();
            let mut record = csv::ByteRecord::new();
            let mut rows = 0u64;
            while reader.read_byte_record(&mut record).unwrap() {
                rows += 1;
            }
            rows
        });
    });
    group.bench_function("trace::read", |bencher| {
        let paths = [path.clone()];
        bencher.iter(|| black_box(read(&paths, &ReadOptions::default(), &()).unwrap()));
    });
    group.finish();
}

fn arrays(criterion: &mut Criterion) {
    let (tokens, layers, top_k) = (20_000, 24, 4);
    let mut header =
        format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({tokens}, {layers}, {top_k}), }}");
    header.push('\n');
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend_from_slice(&(header.len() as u16).to_le_bytes());
    file.extend_from_slice(header.as_bytes());
    file.extend((0..tokens * layers * top_k).map(|at| (at * 7 % 32) as u8));
    let mut group = criterion.benchmark_group("npy");
    group.throughput(Throughput::BytesDecimal(file.len() as u64)).sample_size(20);
    group.bench_function("prefill batches", |bencher| {
        bencher.iter(|| black_box(read_bytes(TraceFormat::Npy, &file, &ReadOptions::default()).unwrap()));
    });
    group.finish();
}

criterion_group!(benches, csv, arrays);
criterion_main!(benches);
