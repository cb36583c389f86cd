//! Pictures: one self-contained HTML file per simulation or plan.
