//! Cross-memory attach: what UCX's `cma` transport moves bytes with.

use std::io;

/// Copies bytes of another process into `out` by the very call that UCX's `cma` uses, and answers how many were copied.
///
/// # Errors
/// `EPERM` when this process may not trace the other one, `ENOSYS` when the kernel lacks the call or a seccomp profile hides it, `EFAULT`
/// when the other process has no such address. A process cannot read itself this way: that proves nothing.
pub fn read_process(pid: i32, address: usize, out: &mut [u8]) -> io::Result<usize> {
    // SAFETY: takes nothing, cannot fail.
    if pid == unsafe { libc::getpid() } {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let local = libc::iovec { iov_base: out.as_mut_ptr().cast(), iov_len: out.len() };
    let remote = libc::iovec { iov_base: std::ptr::with_exposed_provenance_mut(address), iov_len: out.len() };
    // SAFETY: the kernel writes at most `out.len()` bytes to `out`; the other address is looked up in the other process only.
    let copied = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(copied).map_err(|_negative| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_not_there_and_this_one_are_errors() {
        let mut out = [0_u8; 8];
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(read_process(own, 0, &mut out).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        // Above the kernel's largest process id.
        assert!(read_process(i32::MAX, 0, &mut out).is_err());
    }
}
