//! Exact integer min-max load splitting with certificates.
