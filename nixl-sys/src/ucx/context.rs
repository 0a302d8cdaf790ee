//! Configuration and memory types: what a UCX context of this process would have.

use std::ffi::{c_char, c_void};
use std::{io, ptr, slice};

use super::bindings::{
    ucp_config_t, ucp_context_attr, ucp_context_attr_field, ucp_context_h, ucp_feature, ucp_params, ucp_params_field,
    ucs_config_print_flags_t, ucs_memory_type as Type, ucs_thread_mode_t,
};
use super::{OLDEST, Ucx, UcxError};

/// The kinds of memory that UCX can move here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryTypes(u64);

impl MemoryTypes {
    /// Whether GPU memory of CUDA is among them.
    pub fn has_cuda(self) -> bool {
        self.0 & (1 << Type::UCS_MEMORY_TYPE_CUDA.0) != 0
    }

    /// Whether host memory is among them.
    pub fn has_host(self) -> bool {
        self.0 & (1 << Type::UCS_MEMORY_TYPE_HOST.0) != 0
    }

    /// Their names; `type 7` for a kind that this crate does not know.
    pub fn names(self) -> Vec<String> {
        let bits = (0..u64::BITS).filter(|bit| self.0 & (1 << bit) != 0);
        bits.map(|bit| match Type(bit) {
            Type::UCS_MEMORY_TYPE_HOST => "host".to_owned(),
            Type::UCS_MEMORY_TYPE_CUDA => "cuda".to_owned(),
            Type::UCS_MEMORY_TYPE_CUDA_MANAGED => "cuda-managed".to_owned(),
            Type::UCS_MEMORY_TYPE_ROCM => "rocm".to_owned(),
            Type::UCS_MEMORY_TYPE_ROCM_MANAGED => "rocm-managed".to_owned(),
            Type(other) => format!("type {other}"),
        })
        .collect()
    }
}

impl Ucx {
    /// UCX's settings as `UCX_NAME=value` lines, as this process's environment gives them. What NIXL sets on top for
    /// its own backends is not among them.
    pub fn config(&self) -> Result<String, UcxError> {
        let config = self.read_config()?;
        let text = printed(|stream| {
            // SAFETY: configuration and stream are alive; without the header flag the title is not read.
            unsafe {
                (self.functions.ucp_config_print)(
                    config,
                    stream,
                    ptr::null(),
                    ucs_config_print_flags_t::UCS_CONFIG_PRINT_CONFIG,
                );
            }
        });
        // SAFETY: made by UCX above, and not used again.
        unsafe { (self.functions.ucp_config_release)(config) };
        text.map_err(UcxError::Stream)
    }

    /// The kinds of memory that UCX can move here. Makes a context and drops it: the most expensive question.
    pub fn memory_types(&self) -> Result<MemoryTypes, UcxError> {
        let config = self.read_config()?;
        let params = ucp_params {
            field_mask: ucp_params_field::UCP_PARAM_FIELD_FEATURES.0.into(),
            features: ucp_feature::UCP_FEATURE_RMA.0.into(),
        };
        let mut context: ucp_context_h = ptr::null_mut();
        let (major, minor) = OLDEST;
        // SAFETY: UCX reads of the parameters what their mask names, and copies the configuration.
        let status =
            unsafe { (self.functions.ucp_init_version)(major, minor, &raw const params, config, &raw mut context) };
        // SAFETY: made by UCX above, and not used again.
        unsafe { (self.functions.ucp_config_release)(config) };
        self.ok("ucp_init_version", status)?;

        let mut attributes = ucp_context_attr {
            field_mask: ucp_context_attr_field::UCP_ATTR_FIELD_MEMORY_TYPES.0.into(),
            request_size: 0,
            thread_mode: ucs_thread_mode_t::UCS_THREAD_MODE_SINGLE,
            memory_types: 0,
        };
        // SAFETY: the context is alive; UCX writes the one field that the mask names.
        let status = unsafe { (self.functions.ucp_context_query)(context, &raw mut attributes) };
        // SAFETY: made above, and not used again.
        unsafe { (self.functions.ucp_cleanup)(context) };
        self.ok("ucp_context_query", status)?;
        Ok(MemoryTypes(attributes.memory_types))
    }

    fn read_config(&self) -> Result<*mut ucp_config_t, UcxError> {
        let mut config: *mut ucp_config_t = ptr::null_mut();
        // SAFETY: no prefix and no file mean the UCX_ environment; UCX writes a configuration of its own.
        let status = unsafe { (self.functions.ucp_config_read)(ptr::null(), ptr::null(), &raw mut config) };
        self.ok("ucp_config_read", status)?;
        Ok(config)
    }
}

/// What `print` writes to the C stream that it is given.
fn printed(print: impl FnOnce(*mut c_void)) -> io::Result<String> {
    let (mut text, mut length): (*mut c_char, usize) = (ptr::null_mut(), 0);
    // SAFETY: the two stay where they are until the stream is closed.
    let stream = unsafe { libc::open_memstream(&raw mut text, &raw mut length) };
    if stream.is_null() {
        return Err(io::Error::last_os_error());
    }
    print(stream.cast());
    // SAFETY: opened above, and not used again.
    let closed = unsafe { libc::fclose(stream) };
    if closed != 0 || text.is_null() {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: closing has set both to a buffer of that many bytes, which is ours.
    let bytes = unsafe { slice::from_raw_parts(text.cast::<u8>(), length) };
    let copied = String::from_utf8_lossy(bytes).into_owned();
    // SAFETY: allocated by the stream, copied, and not used again.
    unsafe { libc::free(text.cast()) };
    Ok(copied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_types_have_names() {
        let types = MemoryTypes(0b1000_0011);
        assert_eq!(types.names(), ["host", "cuda", "type 7"]);
        assert!(types.has_cuda() && types.has_host());
        assert!(!MemoryTypes(1).has_cuda());
    }

    #[test]
    fn a_stream_in_memory_gives_its_text_back() {
        let text = printed(|stream| {
            // SAFETY: the stream is open and the string ends with NUL.
            unsafe { libc::fputs(c"UCX_TLS=all\n".as_ptr(), stream.cast()) };
        });
        assert_eq!(text.unwrap(), "UCX_TLS=all\n");
        assert_eq!(printed(|_| ()).unwrap(), "");
    }
}
