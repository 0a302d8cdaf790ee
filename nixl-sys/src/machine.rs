//! What NIXL's transports need of this machine, where only C can ask: for `doctor`, not for a data path.
//!
//! Each of these runs code of other libraries or looks into another process: ask from a process that may be lost.

mod cma;
mod cuda;
mod plugins;

pub use cma::read_process;
pub use cuda::{CudaDriver, CudaError, cuda_driver};
pub use plugins::{TriedPlugin, try_cuda_modules, try_plugins};
