//! The parts that the whole-system tests and the demo are made of: a fault proxy, a double of the Kubernetes API,
//! sample images, real registries, and processes run as an ordinary user.

pub mod board;
pub mod bundle;
pub mod flaky;
pub mod http;
pub mod kernel;
pub mod kube;
pub mod memory;
pub mod registry;
pub mod sample;
pub mod stage;
