//! W3C Trace Context, version 00: `00-<32 hex>-<16 hex>-<2 hex>`.

use std::fmt;

/// Which span of which trace something belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Never 0.
    pub trace_id: u128,
    /// Never 0.
    pub span_id: u64,
    /// Whether whoever began the trace wants it recorded.
    pub sampled: bool,
}

impl Context {
    /// Reads a `traceparent`; anything that is not one is ignored, as the standard asks. Of a later version the first four fields count.
    pub fn parse(traceparent: &str) -> Option<Self> {
        let mut fields = traceparent.split('-');
        let mut hex = |digits: usize| {
            let field = fields.next()?;
            let well = field.len() == digits && field.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            well.then(|| u128::from_str_radix(field, 16).ok()).flatten()
        };
        let (version, trace_id, span_id, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
        let ends = fields.next().is_none();
        let known = (version == 0 && ends) || (1..0xff).contains(&version);
        let span_id = u64::try_from(span_id).ok()?;
        (known && trace_id != 0 && span_id != 0).then_some(Self { trace_id, span_id, sampled: flags & 1 == 1 })
    }

    /// A trace of its own.
    pub fn root(sampled: bool) -> Self {
        Self { trace_id: fastrand::u128(1..), span_id: fastrand::u64(1..), sampled }
    }

    /// Another span of the same trace.
    pub fn child(&self) -> Self {
        Self { span_id: fastrand::u64(1..), ..*self }
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, u8::from(self.sampled))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read_and_written() {
        let context = Context::parse(GOOD).unwrap();
        assert_eq!((context.span_id, context.sampled), (0x00f0_67aa_0ba9_02b7, true));
        assert_eq!(context.to_string(), GOOD);
        let unsampled = Context::parse(&GOOD.replace("-01", "-00")).unwrap();
        assert!(!unsampled.sampled);
        let later = Context::parse(&format!("cc{}-more", GOOD.strip_prefix("00").unwrap()));
        assert_eq!(later, Some(context), "a later version may have more fields");
    }

    #[test]
    fn what_is_no_traceparent_is_ignored() {
        let zeros = "0".repeat(32);
        for bad in [
            "",
            "00-1-2-3",
            &GOOD.to_uppercase(),
            &format!("{GOOD}-extra"),
            &GOOD.replace("00-4", "ff-4"),
            &format!("00-{zeros}-00f067aa0ba902b7-01"),
            &GOOD.replace("00f067aa0ba902b7", "0000000000000000"),
            &GOOD.replace("-01", "-+1"),
        ] {
            assert_eq!(Context::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn children_are_of_the_same_trace() {
        let root = Context::root(true);
        let child = root.child();
        assert_eq!((child.trace_id, child.sampled), (root.trace_id, true));
        assert_ne!(child.span_id, root.span_id);
    }
}
