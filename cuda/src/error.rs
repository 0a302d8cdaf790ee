//! What can go wrong with a GPU, in words that say what to do.

use cudarc::driver::{result::DriverError, sys::CUresult};

use crate::list::ListError;

/// Why something could not be done with a GPU.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// There is no driver library.
    #[error(
        "no CUDA driver: libcuda.so.1 cannot be loaded ({detail}). In a container it comes from the host with the GPU: ask for one (Kubernetes: \
         resources.limits nvidia.com/gpu, docker: --gpus), or name its folder in LD_LIBRARY_PATH"
    )]
    NoDriver {
        /// What the loader said.
        detail: String,
    },
    /// The driver library lacks a function.
    #[error("the CUDA driver at {path} has no {symbol}: CUDA 12.0 (driver 525) or newer is needed")]
    Incomplete {
        /// Where it was loaded from.
        path: String,
        /// The function.
        symbol: &'static str,
    },
    /// The driver is older than the kernels.
    #[error("the CUDA driver is of CUDA {}.{}: 12.0 (driver 525) or newer is needed", version / 1000, version % 1000 / 10)]
    TooOld {
        /// As `cuDriverGetVersion` says it: 1000 × major + 10 × minor.
        version: i32,
    },
    /// A driver, and no GPU.
    #[error(
        "the CUDA driver sees no GPU ({name}): give the container one (nvidia.com/gpu, --gpus), and look at CUDA_VISIBLE_DEVICES and \
         NVIDIA_VISIBLE_DEVICES"
    )]
    NoDevice {
        /// What the driver said.
        name: String,
    },
    /// A number that no GPU has.
    #[error(
        "there is no GPU {ordinal}: this process sees {count} (numbered from 0; CUDA_VISIBLE_DEVICES renumbers them)"
    )]
    UnknownDevice {
        /// The number.
        ordinal: u32,
        /// How many there are.
        count: u32,
    },
    /// The GPU cannot run the kernels.
    #[error("GPU {ordinal} ({device}) is of compute capability {}.{}: 8.0 or newer is needed", capability.0, capability.1)]
    TooSmall {
        /// Its number.
        ordinal: u32,
        /// Its name.
        device: String,
        /// Its compute capability.
        capability: (i32, i32),
    },
    /// The GPU has not got so much.
    #[error("GPU {ordinal} has {free} of its {total} bytes free, {asked} are needed")]
    OutOfMemory {
        /// Its number.
        ordinal: u32,
        /// Bytes asked for.
        asked: u64,
        /// Bytes free.
        free: u64,
        /// Bytes that it has.
        total: u64,
    },
    /// A range that leaves its memory, or a list that no launch takes.
    #[error(transparent)]
    List(#[from] ListError),
    /// The driver refused a call.
    #[error("{call}: {name} ({code}){}", advice(*code))]
    Call {
        /// The call.
        call: &'static str,
        /// The driver's number.
        code: u32,
        /// What the driver calls it.
        name: String,
    },
}

/// What to do about errors whose name does not say it.
fn advice(code: u32) -> &'static str {
    match code {
        34 => ": this libcuda.so is the toolkit's stub, not a driver: take its folder out of LD_LIBRARY_PATH",
        46 | 304 | 999 => {
            ": is the driver's kernel module loaded on the node (nvidia-smi), and /dev/nvidia* in the container?"
        }
        209 | 222 => ": the driver cannot compile the kernels for this GPU: update it",
        700 | 702 | 709 | 714..=719 => ": this process has lost its GPU context: restart it",
        712 | 713 => ": the memory is page-locked already, or is not",
        801 => ": the GPU, or the way it is given to this container, does not allow it",
        802 => ": the node's NVIDIA fabric manager is not ready",
        803 | 804 => {
            ": the driver's library and its kernel module are of different versions: is an old libcuda.so in the image?"
        }
        _ => "",
    }
}

/// The driver's answer to a call.
pub(crate) fn of<T>(call: &'static str, answer: Result<T, DriverError>) -> Result<T, CudaError> {
    answer.map_err(|error| refused(call, error))
}

/// As [`of`], for the calls that are made directly.
pub(crate) fn ok(call: &'static str, answer: CUresult) -> Result<(), CudaError> {
    of(call, answer.result())
}

pub(crate) fn refused(call: &'static str, error: DriverError) -> CudaError {
    let name = error
        .error_name()
        .map_or_else(|_unknown| "an error without a name".to_owned(), |name| name.to_string_lossy().into_owned());
    CudaError::Call { call, code: error.0 as u32, name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_to_do() {
        let call = |code| CudaError::Call { call: "cuInit", code, name: "CUDA_ERROR".to_owned() }.to_string();
        assert_eq!(call(1), "cuInit: CUDA_ERROR (1)");
        assert!(call(34).contains("stub") && call(719).contains("restart") && call(803).contains("libcuda.so"));
        assert!(CudaError::TooOld { version: 11_080 }.to_string().contains("of CUDA 11.8: 12.0 (driver 525)"));
    }
}
