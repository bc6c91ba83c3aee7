//! An OCI bundle becomes a confined process.
