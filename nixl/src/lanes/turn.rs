//! Work that any thread may come to do, and one at a time does.

use crate::sync::{AtomicU8, Ordering};

/// Whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Turn(AtomicU8);

/// Nobody works.
const FREE: u8 = 0;
/// One works.
const TAKEN: u8 = 1;
/// One works, and somebody has come since that one last looked.
const WORD: u8 = 2;

impl Turn {
    /// Somebody comes for what has happened before. True: the work is theirs until [`Self::leave`] lets them go. False: whoever works
    /// does theirs too.
    pub(super) fn come(&self) -> bool {
        let next = |state| Some(if state == FREE { TAKEN } else { WORD });
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, next) == Ok(FREE)
    }

    /// The one who works has seen to everything. False: somebody has come meanwhile, so there may be more.
    pub(super) fn leave(&self) -> bool {
        if self.0.compare_exchange(TAKEN, FREE, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            return true;
        }
        // Exchanged and not stored: only so what the last of those who came has done is certainly seen now.
        self.0.swap(TAKEN, Ordering::AcqRel);
        false
    }
}
