//! `kv_transfer_params`: what a prefill hands over, and what a decode engine is told (protocol doc §4.3, §4.4).
//!
//! vLLM does not check them: a decode engine that gets a bad object dies (§9.2). So every known field is checked here.

#[cfg(test)]
mod tests;

use kv::blocks::{GroupedBlocks, GroupedBlocksError};
use kv::ids::{BlockId, EngineId, EngineRequestId};
use serde_json::{Map, Value};

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
    /// Checks the types and ranges of an object that a prefill returned. Whether it is one for a decode engine, of an engine
    /// that kvgate supports, is [`Self::check_supported`]'s question.
    ///
    /// # Errors
    /// [`ParamsError`] for the first field that is wrong.
    pub fn parse(json: &Value) -> Result<Self, ParamsError> {
        let object = json.as_object().ok_or(ParamsError::NotAnObject)?;
        let known = Known(object);
        let params = Self {
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
            remote_host: known.text("remote_host", "a host name or address", is_host)?.to_owned(),
            remote_port: known.size("remote_port")?,
            tp_size: known.size("tp_size")?,
            dcp_size: known.size_or_one("dcp_size")?,
            pp_size: known.size_or_one("pp_size")?,
            remote_num_tokens: known.tokens("remote_num_tokens")?,
            transfer_mode: known.mode("transfer_mode")?,
            extra: object.iter().filter(|(key, _)| !FIELDS.contains(&key.as_str())).map(owned).collect(),
        };
        if params.extra.len() > MAX_EXTRA {
            return Err(ParamsError::TooManyFields(params.extra.len()));
        }
        Ok(params)
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

/// Gives a decode engine the very tokens of the prefill (text-only chats; protocol doc §4.4). Does nothing to a non-object.
pub fn merge_token_ids(params: &mut Value, ids: &[u32]) {
    if let Some(object) = params.as_object_mut() {
        object.insert(TOKEN_IDS.to_owned(), Value::from_iter(ids.iter().copied()));
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

/// The object under inspection. `null` counts as missing, as it does for vLLM.
struct Known<'a>(&'a Map<String, Value>);

impl<'a> Known<'a> {
    fn find(&self, field: &'static str) -> Result<&'a Value, ParamsError> {
        self.0.get(field).filter(|value| !value.is_null()).ok_or(ParamsError::Missing(field))
    }

    fn flag(&self, field: &'static str) -> Result<bool, ParamsError> {
        self.find(field)?.as_bool().ok_or(ParamsError::Field { field, expected: "true or false" })
    }

    fn text(
        &self,
        field: &'static str,
        expected: &'static str,
        valid: impl Fn(&str) -> bool,
    ) -> Result<&'a str, ParamsError> {
        let text = self.find(field)?.as_str();
        let sane = |text: &&str| !text.is_empty() && text.len() <= MAX_TEXT && !text.chars().any(char::is_control);
        text.filter(sane).filter(|text| valid(text)).ok_or(ParamsError::Field { field, expected })
    }

    fn size(&self, field: &'static str) -> Result<u16, ParamsError> {
        let size = self.find(field)?.as_u64().and_then(|size| u16::try_from(size).ok());
        size.filter(|size| *size > 0).ok_or(ParamsError::Field { field, expected: SIZE })
    }

    fn size_or_one(&self, field: &'static str) -> Result<u16, ParamsError> {
        if self.find(field).is_err() { Ok(1) } else { self.size(field) }
    }

    fn tokens(&self, field: &'static str) -> Result<u64, ParamsError> {
        let tokens = self.find(field)?.as_u64().filter(|tokens| *tokens > 0);
        tokens.ok_or(ParamsError::Field { field, expected: "a positive integer" })
    }

    fn mode(&self, field: &'static str) -> Result<Option<String>, ParamsError> {
        if self.find(field).is_err() {
            return Ok(None);
        }
        self.text(field, "a word", |_| true).map(|mode| Some(mode.to_owned()))
    }

    fn blocks(&self, field: &'static str) -> Result<GroupedBlocks, ParamsError> {
        let wrong = |expected| ParamsError::Field { field, expected };
        let lists = "a list (one per group) of lists of block ids";
        let groups = self.find(field)?.as_array().ok_or(wrong(lists))?;
        if groups.len() > MAX_GROUPS {
            return Err(wrong("at most 64 groups"));
        }
        let mut total = 0_usize;
        let mut parsed = Vec::with_capacity(groups.len());
        for group in groups {
            let ids = group.as_array().ok_or(wrong(lists))?;
            total = total.saturating_add(ids.len());
            if total > MAX_BLOCKS {
                return Err(wrong("at most 262144 blocks"));
            }
            let id = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok()).map(BlockId);
            parsed.push(ids.iter().map(id).collect::<Option<Vec<_>>>().ok_or(wrong(lists))?);
        }
        Ok(GroupedBlocks::new(parsed)?)
    }
}
