//! What a call answers: [`RawStatus`] as it crosses the ABI, [`NixlError`] for people.
//!
//! The numbers are those of the C API, not of the C++ one. The library folds cancelled, disconnected and most other
//! causes into [`StatusKind::Backend`], so no policy may depend on the kind alone; NIXL writes the cause to stderr.

use std::ffi::c_int;
use std::fmt;

use crate::bindings::nixl_capi_status_t;

/// A status as the library gave it. Any number is a value: a newer library may know more than [`StatusKind`] does.
pub type RawStatus = nixl_capi_status_t;

/// How far a transfer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It has ended well.
    Done,
    /// It is still under way: memory is in use.
    Running,
}

/// What a status that is no success means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StatusKind {
    /// Not an error: the transfer is under way. Only an error where a call may not answer it.
    InProgress,
    /// An argument is null, malformed or unknown to the library.
    InvalidParam,
    /// Any failure below the C API.
    Backend,
    /// A request is destroyed before it was released.
    InvalidState,
    /// Declared, never seen.
    Exception,
    /// Telemetry is asked for and switched off.
    NoTelemetry,
    /// What is asked for does not exist. Libraries older than 1.5 answer [`StatusKind::Backend`] instead.
    NotFound,
    /// A number that this crate does not know.
    Unknown(i32),
}

/// The numbers of NIXL 0.9 to 1.5.
const KINDS: [(RawStatus, StatusKind, &str); 7] = [
    (RawStatus::NIXL_CAPI_IN_PROG, StatusKind::InProgress, "still in progress"),
    (RawStatus::NIXL_CAPI_ERROR_INVALID_PARAM, StatusKind::InvalidParam, "invalid parameter"),
    (RawStatus::NIXL_CAPI_ERROR_BACKEND, StatusKind::Backend, "backend error (the cause is in NIXL's log on stderr)"),
    (RawStatus::NIXL_CAPI_ERROR_INVALID_STATE, StatusKind::InvalidState, "invalid state"),
    (RawStatus::NIXL_CAPI_ERROR_EXCEPTION, StatusKind::Exception, "exception"),
    (RawStatus::NIXL_CAPI_ERROR_NO_TELEMETRY, StatusKind::NoTelemetry, "telemetry is off"),
    (RawStatus::NIXL_CAPI_ERROR_NOT_FOUND, StatusKind::NotFound, "not found"),
];

/// A call of NIXL that did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call} answered {code}: {kind}")]
pub struct NixlError {
    /// The C function.
    pub call: &'static str,
    /// The number that it answered.
    pub code: i32,
    /// What the number means.
    pub kind: StatusKind,
}

impl RawStatus {
    /// The number as it crossed the ABI.
    pub const fn code(self) -> c_int {
        self.0
    }

    /// What the number means; `None` for success.
    pub fn kind(self) -> Option<StatusKind> {
        if self == Self::NIXL_CAPI_SUCCESS {
            return None;
        }
        let known = KINDS.iter().find(|(status, _, _)| *status == self).map(|(_, kind, _)| *kind);
        Some(known.unwrap_or(StatusKind::Unknown(self.0)))
    }

    /// Reads the answer of a call that has no work in progress: success, or an error that names `call`.
    pub fn ok(self, call: &'static str) -> Result<(), NixlError> {
        match self.kind() {
            None => Ok(()),
            Some(kind) => Err(NixlError { call, code: self.0, kind }),
        }
    }

    /// Reads the answer of a call that starts or watches a transfer.
    pub fn progress(self, call: &'static str) -> Result<Progress, NixlError> {
        if self == Self::NIXL_CAPI_IN_PROG {
            return Ok(Progress::Running);
        }
        self.ok(call).map(|()| Progress::Done)
    }
}

impl fmt::Display for StatusKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match KINDS.iter().find(|(_, kind, _)| kind == self) {
            Some((_, _, words)) => f.write_str(words),
            None => f.write_str("a status that this version of kvgate does not know"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_declared_number_has_one_meaning() {
        for (code, kind) in [
            (1, StatusKind::InProgress),
            (-1, StatusKind::InvalidParam),
            (-2, StatusKind::Backend),
            (-3, StatusKind::InvalidState),
            (-4, StatusKind::Exception),
            (-5, StatusKind::NoTelemetry),
            (-6, StatusKind::NotFound),
        ] {
            assert_eq!(nixl_capi_status_t(code).kind(), Some(kind));
        }
        assert_eq!(nixl_capi_status_t(0).kind(), None);
    }

    #[test]
    fn an_unknown_number_is_a_value() {
        for code in [2, -7, -1000, i32::MIN, i32::MAX] {
            let error = nixl_capi_status_t(code).ok("nixl_capi_new").unwrap_err();
            assert_eq!(error, NixlError { call: "nixl_capi_new", code, kind: StatusKind::Unknown(code) });
            assert!(error.to_string().contains(&code.to_string()), "{error}");
            assert_eq!(nixl_capi_status_t(code).progress("nixl_capi_new"), Err(error));
        }
    }

    #[test]
    fn running_is_progress_but_not_ok() {
        assert_eq!(nixl_capi_status_t(1).progress("c"), Ok(Progress::Running));
        assert_eq!(nixl_capi_status_t(0).progress("c"), Ok(Progress::Done));
        assert_eq!(nixl_capi_status_t(1).ok("c").unwrap_err().kind, StatusKind::InProgress);
        assert_eq!(nixl_capi_status_t(-2).progress("c").unwrap_err().kind, StatusKind::Backend);
    }
}
