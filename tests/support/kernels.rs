//! The kernels as a C++ program for the host: built by an available compiler, driven by requests, with its
//! answers read back.
#![allow(dead_code, reason = "each test program uses its own part")]
#![allow(missing_docs, reason = "test support is no public interface")]

use crate::skip_support::skipped;
use evenkeel_cuda::tables::SolveProgram;
use evenkeel_solver::RankSplit;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Orders in which the iterations of each parallel section run.
pub(crate) const ORDERS: [(&str, u32); 3] = [("ascending", 0), ("descending", 1), ("shuffled", 2)];

/// Flags under which undefined behaviour and accesses out of bounds end the program.
pub(crate) const SANITISED: [&str; 4] =
    ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"];

/// Flags for one thread per lane, under which a missing barrier ends the program.
pub(crate) const THREADS: [&str; 5] = ["-O1", "-g", "-DEK_THREADS", "-pthread", "-fsanitize=thread"];

/// Returns the compiler of this machine, if it has one.
fn compiler() -> Option<String> {
    let named = std::env::var("CXX").ok();
    let works =
        |name: &String| Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success());
    named.into_iter().chain(["c++", "g++", "clang++"].map(String::from)).find(works)
}

/// Builds the kernels with these flags. Without a C++ compiler, it reports a skip and returns `None`.
pub(crate) fn build(name: &str, flags: &[&str]) -> Option<PathBuf> {
    let Some(compiler) = compiler() else {
        skipped("no C++ compiler (looked for $CXX, c++, g++ and clang++)");
        return None;
    };
    let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("kernels-{name}"));
    let from = crate::repository::root().join("crates/cuda/tests/cuda-sim/main.cpp");
    let built = Command::new(compiler)
        .args(["-std=c++17", "-Wall", "-Wextra", "-Werror"])
        .arg("-I")
        .arg(crate::repository::root().join("crates/cuda/kernels"))
        .arg("-I")
        .arg(crate::repository::root().join("crates/cuda/tests"))
        .args(flags)
        .arg(from)
        .arg("-o")
        .arg(&to)
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    Some(to)
}

/// Returns whether a program starts. A sanitiser may not support this machine's memory layout.
pub(crate) fn runs(program: &Path) -> bool {
    Command::new(program).stdin(Stdio::null()).output().is_ok_and(|output| output.status.success())
}

/// Requests to the program, in its format (crates/cuda/tests/cuda-sim/main.cpp).
#[derive(Debug, Default)]
pub(crate) struct Requests(Vec<u32>);

impl Requests {
    pub(crate) fn order(&mut self, order: u32, seed: u32) {
        self.0.extend([3, order, seed]);
    }

    pub(crate) fn program(&mut self, program: &SolveProgram) {
        self.0.extend([1, program.words().len() as u32]);
        self.0.extend(program.words());
    }

    /// Adds a split. `counts` is `[sources][items]`.
    pub(crate) fn split(&mut self, counts: &[u32], sources: usize, hot: bool, wide: bool) {
        self.0.extend([2, sources as u32, u32::from(hot), u32::from(wide)]);
        self.0.extend(counts);
    }

    pub(crate) fn words(&mut self, words: &[u32]) {
        self.0.extend(words);
    }

    pub(crate) fn wide(&mut self, numbers: &[u64]) {
        self.0.extend(numbers.iter().flat_map(|&number| [number as u32, (number >> 32) as u32]));
    }

    pub(crate) fn run(self, program: &Path) -> Answers {
        let mut child = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut to = child.stdin.take().unwrap();
        let bytes: Vec<u8> = self.0.into_iter().flat_map(u32::to_ne_bytes).collect();
        let writer = std::thread::spawn(move || to.write_all(&bytes));
        let done = child.wait_with_output().unwrap();
        assert!(done.status.success(), "the kernels ended with {}", done.status);
        writer.join().unwrap().unwrap();
        let words = done.stdout.chunks_exact(4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
        Answers { words: words.collect(), at: 0, sections: Vec::new() }
    }
}

/// Answers of the program.
#[derive(Debug)]
pub(crate) struct Answers {
    words: Vec<u32>,
    at: usize,
    /// Number of parallel sections of each split.
    pub(crate) sections: Vec<u32>,
}

impl Answers {
    pub(crate) fn words(&mut self, count: usize) -> &[u32] {
        self.at += count;
        &self.words[self.at - count..self.at]
    }

    pub(crate) fn wide(&mut self, count: usize) -> Vec<u64> {
        let pairs = self.words(2 * count).chunks_exact(2);
        pairs.map(|pair| u64::from(pair[0]) | u64::from(pair[1]) << 32).collect()
    }

    pub(crate) fn finished(&self) -> bool {
        self.at == self.words.len()
    }

    /// Compares one split with the solver's. Returns the difference as an error.
    pub(crate) fn compare(&mut self, program: &SolveProgram, expected: &RankSplit) -> Result<(), String> {
        let quotas = self.wide(program.pairs());
        let rank_loads = self.wide(program.ranks());
        let peak = self.wide(1)[0];
        let bits = self.words(program.ranks().div_ceil(32)).to_vec();
        let certificate: Vec<u32> = (0..program.ranks() as u32)
            .filter(|rank| bits[*rank as usize / 32] >> (rank % 32) & 1 == 1)
            .collect();
        let state = 4 * self.words(1)[0] as usize;
        let sections = self.words(1)[0];
        self.sections.push(sections);
        let same = [
            ("quotas", quotas == expected.quotas),
            ("rank loads", rank_loads == expected.rank_loads),
            ("peak", peak == expected.peak.load),
            ("certificate", certificate == expected.certificate),
            ("shared bytes", state == program.shared_bytes(false)),
        ];
        match same.iter().find(|(_, same)| !same) {
            Some((what, _)) => Err(format!("other {what}")),
            None => Ok(()),
        }
    }
}
