//! `kv_transfer_params`: what a prefill hands over, and what a decode engine is told (protocol doc §4.3, §4.4).
//!
//! vLLM does not check them: a decode engine that gets a bad object dies (§9.2). So every known field is checked here.

mod block_ids;
mod raw;
#[cfg(test)]
mod tests;
mod token_ids;

use std::borrow::Cow;
use std::num::{NonZeroU16, NonZeroU64};

use kv::blocks::{GroupedBlocks, GroupedBlocksError};
use kv::ids::{EngineId, EngineRequestId};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::body::scan::{Scanned, scan};
pub use raw::RawParams;
pub use token_ids::TokenIds;

/// The most blocks over all groups: 4 Mi tokens at 16 tokens a block.
pub const MAX_BLOCKS: usize = 262_144;
/// The most KV-cache groups.
pub const MAX_GROUPS: usize = 64;
/// The most bytes of an id or a host.
pub const MAX_TEXT: usize = 512;
/// The most unknown fields that are carried along.
pub const MAX_EXTRA: usize = 64;

const TOKEN_IDS: &str = "prompt_token_ids";

/// Checked parameters of one prefill, as a decode engine understands them.
#[derive(Clone, Debug, PartialEq)]
pub struct KvTransferParams {
    /// The receiver of this object shall read the blocks: true after a prefill.
    pub do_remote_prefill: bool,
    /// The receiver of this object shall keep its blocks for a reader: false after a prefill.
    pub do_remote_decode: bool,
    /// The prefill's blocks, in prompt order, the partial last one included.
    pub remote_block_ids: GroupedBlocks,
    /// Who holds them.
    pub remote_engine_id: EngineId,
    /// By which name.
    pub remote_request_id: EngineRequestId,
    /// The holder's side channel.
    pub remote_host: String,
    /// The holder's side channel; never 0.
    pub remote_port: u16,
    /// The holder's tensor-parallel size; at least 1.
    pub tp_size: u16,
    /// The holder's decode-context-parallel size.
    pub dcp_size: u16,
    /// The holder's pipeline-parallel size.
    pub pp_size: u16,
    /// Tokens that the blocks hold; at least 1.
    pub remote_num_tokens: u64,
    /// `pull`, `push` or not told.
    pub transfer_mode: Option<String>,
    /// Every other field, as it came and in order.
    pub extra: Map<String, Value>,
}

/// Why an object is not `kv_transfer_params` of a finished prefill.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParamsError {
    /// Something else than an object.
    #[error("kv_transfer_params is not an object")]
    NotAnObject,
    /// A field that must be there is not, or is null.
    #[error("kv_transfer_params.{0} is missing")]
    Missing(&'static str),
    /// A field is of another type or out of range.
    #[error("kv_transfer_params.{field} is not {expected}")]
    Field {
        /// Which.
        field: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// The block lists are empty or name a block twice.
    #[error("kv_transfer_params.remote_block_ids is not usable")]
    Blocks(#[from] GroupedBlocksError),
    /// An unknown field cannot be kept: a number out of range, nested too deeply, a key that is no text.
    #[error("kv_transfer_params has an unknown field that is not readable")]
    Unreadable,
    /// More than [`MAX_EXTRA`] unknown fields.
    #[error("kv_transfer_params has {0} unknown fields, too many")]
    TooManyFields(usize),
}

/// Parameters that are well-formed and still lead to no transfer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnsupportedParams {
    /// Not parameters for a decode engine.
    #[error("kv_transfer_params asks for no read (do_remote_prefill must be true, do_remote_decode false)")]
    Direction,
    /// Pipeline or context parallelism.
    #[error("the prefill engine has {field} {size}; kvgate supports 1")]
    Parallel {
        /// Which.
        field: &'static str,
        /// Its value.
        size: u16,
    },
    /// Another way of moving blocks.
    #[error("the prefill engine's transfer_mode is {0:?}; kvgate supports \"pull\"")]
    Mode(String),
}

const SIZE: &str = "an integer from 1 to 65535";

impl KvTransferParams {
    /// Checks the types and ranges of the object that a prefill returned. Whether it is one for a decode engine, of an engine
    /// that kvgate supports, is [`Self::check_supported`]'s question.
    ///
    /// # Errors
    /// [`ParamsError`] for the first field that is wrong.
    pub fn read(json: &str) -> Result<Self, ParamsError> {
        let scanned = scan(json.as_bytes()).map_err(|_| ParamsError::NotAnObject)?;
        let known = Known(&scanned);
        Ok(Self {
            do_remote_prefill: known.flag("do_remote_prefill")?,
            do_remote_decode: known.flag("do_remote_decode")?,
            remote_block_ids: known.blocks("remote_block_ids")?,
            remote_engine_id: EngineId::new(known.text(
                "remote_engine_id",
                "an id without control characters",
                |_| true,
            )?),
            remote_request_id: EngineRequestId::new(known.text(
                "remote_request_id",
                "a request id (no comma, no control characters, no notification prefix)",
                |id| !id.contains(',') && !id.starts_with("HB:") && !id.starts_with("PUSH_REG:"),
            )?),
            remote_host: known.text("remote_host", "a host name or address", is_host)?.into_owned(),
            remote_port: known.size("remote_port")?,
            tp_size: known.size("tp_size")?,
            dcp_size: known.size_or_one("dcp_size")?,
            pp_size: known.size_or_one("pp_size")?,
            remote_num_tokens: known.tokens("remote_num_tokens")?,
            transfer_mode: known.mode("transfer_mode")?,
            extra: known.extra()?,
        })
    }

    /// The same for an object that has been read already.
    ///
    /// # Errors
    /// [`ParamsError`] for the first field that is wrong.
    pub fn parse(json: &Value) -> Result<Self, ParamsError> {
        Self::read(&json.to_string())
    }

    /// The object as a decode engine takes it; parses back to the same.
    pub fn to_value(&self) -> Value {
        let groups = self.remote_block_ids.groups().iter();
        let blocks = groups.map(|group| Value::from_iter(group.ids().iter().map(|id| id.0))).collect();
        let mode = self.transfer_mode.as_ref().map(|mode| ("transfer_mode", mode.as_str().into()));
        let known = [
            ("do_remote_prefill", self.do_remote_prefill.into()),
            ("do_remote_decode", self.do_remote_decode.into()),
            ("remote_block_ids", Value::Array(blocks)),
            ("remote_engine_id", self.remote_engine_id.as_str().into()),
            ("remote_request_id", self.remote_request_id.as_str().into()),
            ("remote_host", self.remote_host.as_str().into()),
            ("remote_port", self.remote_port.into()),
            ("tp_size", self.tp_size.into()),
            ("dcp_size", self.dcp_size.into()),
            ("pp_size", self.pp_size.into()),
            ("remote_num_tokens", self.remote_num_tokens.into()),
        ];
        let known = known.into_iter().chain(mode).map(|(key, value)| (key.to_owned(), value));
        Value::Object(known.chain(self.extra.iter().map(owned)).collect())
    }

    /// Whether this asks for a read of blocks that kvgate can move.
    ///
    /// # Errors
    /// [`UnsupportedParams`] in words for an operator.
    pub fn check_supported(&self) -> Result<(), UnsupportedParams> {
        if !self.do_remote_prefill || self.do_remote_decode {
            return Err(UnsupportedParams::Direction);
        }
        for (field, size) in [("dcp_size", self.dcp_size), ("pp_size", self.pp_size)] {
            if size != 1 {
                return Err(UnsupportedParams::Parallel { field, size });
            }
        }
        match self.transfer_mode.as_deref() {
            None | Some("pull") => Ok(()),
            Some(other) => Err(UnsupportedParams::Mode(other.to_owned())),
        }
    }
}

const FIELDS: [&str; 12] = [
    "do_remote_prefill",
    "do_remote_decode",
    "remote_block_ids",
    "remote_engine_id",
    "remote_request_id",
    "remote_host",
    "remote_port",
    "tp_size",
    "dcp_size",
    "pp_size",
    "remote_num_tokens",
    "transfer_mode",
];

fn owned((key, value): (&String, &Value)) -> (String, Value) {
    (key.clone(), value.clone())
}

/// Letters, digits and the punctuation of names, IPv4 and IPv6 addresses: nothing that could end the host in a URL.
fn is_host(host: &str) -> bool {
    host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:[]%".contains(&byte))
}

/// The object under inspection. `null` counts as missing, as it does for vLLM; of equal keys the last one counts.
struct Known<'a>(&'a Scanned<'a>);

impl<'a> Known<'a> {
    fn find(&self, field: &'static str) -> Result<&'a str, ParamsError> {
        self.0.get(field).ok_or(ParamsError::Missing(field))
    }

    fn value<T: DeserializeOwned>(&self, field: &'static str, expected: &'static str) -> Result<T, ParamsError> {
        serde_json::from_str(self.find(field)?).map_err(|_| ParamsError::Field { field, expected })
    }

    fn flag(&self, field: &'static str) -> Result<bool, ParamsError> {
        self.value(field, "true or false")
    }

    fn text(
        &self,
        field: &'static str,
        expected: &'static str,
        valid: impl Fn(&str) -> bool,
    ) -> Result<Cow<'a, str>, ParamsError> {
        let json = self.find(field)?;
        let text = match json.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
            Some(plain) if !plain.contains('\\') => Cow::Borrowed(plain),
            Some(_) | None => self.value::<String>(field, expected)?.into(),
        };
        let sane = !text.is_empty() && text.len() <= MAX_TEXT && !text.chars().any(char::is_control);
        if sane && valid(&text) { Ok(text) } else { Err(ParamsError::Field { field, expected }) }
    }

    fn size(&self, field: &'static str) -> Result<u16, ParamsError> {
        self.value::<NonZeroU16>(field, SIZE).map(NonZeroU16::get)
    }

    fn size_or_one(&self, field: &'static str) -> Result<u16, ParamsError> {
        if self.find(field).is_err() { Ok(1) } else { self.size(field) }
    }

    fn tokens(&self, field: &'static str) -> Result<u64, ParamsError> {
        self.value::<NonZeroU64>(field, "a positive integer").map(NonZeroU64::get)
    }

    fn mode(&self, field: &'static str) -> Result<Option<String>, ParamsError> {
        if self.find(field).is_err() {
            return Ok(None);
        }
        self.text(field, "a word", |_| true).map(|word| Some(word.into_owned()))
    }

    fn blocks(&self, field: &'static str) -> Result<GroupedBlocks, ParamsError> {
        let wrong = |expected| ParamsError::Field { field, expected };
        let json = self.find(field)?;
        let groups = block_ids::read(json).ok_or_else(|| wrong("a list (one per group) of lists of block ids"))?;
        if groups.len() > MAX_GROUPS {
            return Err(wrong("at most 64 groups"));
        }
        if groups.iter().map(Vec::len).sum::<usize>() > MAX_BLOCKS {
            return Err(wrong("at most 262144 blocks"));
        }
        Ok(GroupedBlocks::new(groups)?)
    }

    fn extra(&self) -> Result<Map<String, Value>, ParamsError> {
        let mut extra = Map::new();
        for member in self.0.layout.members.iter() {
            let key = member.key(self.0.text.as_bytes()).and_then(|key| std::str::from_utf8(key).ok());
            let Some(key) = key else { return Err(ParamsError::Unreadable) };
            if FIELDS.contains(&key) {
                continue;
            }
            let value = self.0.text.get(member.value_start..member.span.end).unwrap_or_default();
            extra.insert(key.to_owned(), serde_json::from_str(value).map_err(|_| ParamsError::Unreadable)?);
        }
        if extra.len() > MAX_EXTRA { Err(ParamsError::TooManyFields(extra.len())) } else { Ok(extra) }
    }
}
