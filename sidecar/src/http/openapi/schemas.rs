//! Schemas that no derive can make: words of the core's enums, and vLLM's own parameters.

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use crate::model::{Code, Contact, Freed, HandleState, RankState, Retry, Stages, TransferPhase};

/// A text that is one of some words.
pub(super) fn words(words: impl IntoIterator<Item = &'static str>) -> Schema {
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words)).build().into()
}

pub(in crate::http) fn phase() -> Schema {
    words(TransferPhase::ALL.map(TransferPhase::as_str))
}

pub(in crate::http) fn rank_state() -> Schema {
    words(RankState::ALL.map(RankState::as_str))
}

pub(in crate::http) fn handle_state() -> Schema {
    words(HandleState::ALL.map(HandleState::as_str))
}

pub(in crate::http) fn freed() -> Schema {
    words(Freed::ALL.map(Freed::as_str))
}

pub(in crate::http) fn contact() -> Schema {
    words(Contact::ALL.map(Contact::as_str))
}

pub(in crate::http) fn retry() -> Schema {
    words(Retry::ALL.map(Retry::as_str))
}

pub(in crate::http) fn code() -> Schema {
    words(Code::ALL.map(Code::as_str))
}

/// The stages of a transfer.
pub(in crate::http) fn stage() -> Schema {
    words(Stages::default().named().map(|(name, _)| name))
}

/// A stage, or all of them.
pub(in crate::http) fn measure() -> Schema {
    words(Stages::default().named().map(|(name, _)| name).into_iter().chain(["total"]))
}

/// Ids of up to 256 transfers.
pub(in crate::http) fn transfer_ids() -> Schema {
    let id = ObjectBuilder::new().schema_type(Type::String).min_length(Some(1)).max_length(Some(256));
    ArrayBuilder::new().items(id.pattern(Some("^[!-~]+$"))).max_items(Some(256)).build().into()
}

/// A length of time, as in `5s`.
pub(in crate::http) fn time() -> Schema {
    patterned("^[0-9]{1,9}(ms|s|m)$")
}

/// A length of time of 1 ms to 120 s.
pub(in crate::http) fn window() -> Schema {
    patterned("^(([1-9][0-9]{0,4}|1[01][0-9]{4}|120000)ms|([1-9][0-9]?|1[01][0-9]|120)s|[12]m)$")
}

/// Any subset of three words, in any order.
pub(in crate::http) fn by() -> Schema {
    const WORDS: [&str; 3] = ["rank", "peer", "stage"];
    let mut lists = vec![Vec::new()];
    let mut at = 0;
    while let Some(list) = lists.get(at).cloned() {
        lists.extend(WORDS.into_iter().filter(|word| !list.contains(word)).map(|word| [&list[..], &[word]].concat()));
        at = at.saturating_add(1);
    }
    let lists = lists.iter().map(|list| list.join(","));
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(lists)).build().into()
}

/// Lists of block ids, one per KV-cache group.
fn block_lists() -> Schema {
    let ids = ArrayBuilder::new().items(u32::schema()).min_items(Some(1)).unique_items(true);
    ArrayBuilder::new().items(ids).min_items(Some(1)).max_items(Some(64)).build().into()
}

fn patterned(pattern: &str) -> Schema {
    ObjectBuilder::new().schema_type(Type::String).pattern(Some(pattern)).build().into()
}

#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "the path has its own extractor, this is only its description")]
pub(in crate::http) struct TransferIdPath {
    /// As `POST /v1/transfers` answered
    #[param(min_length = 1, max_length = 256, pattern = "^[!-~]+$")]
    id: String,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "the path has its own extractor, this is only its description")]
pub(in crate::http) struct RequestIdPath {
    /// The prefill engine's request, percent-encoded
    #[param(min_length = 1, max_length = 256, pattern = "^[!-~]+$")]
    remote_request_id: String,
}

/// Microseconds by stage; only the stages that the transfer has got to, in their order.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub(in crate::http) struct StagesUs(pub(in crate::http) Map<String, Value>);

impl PartialSchema for StagesUs {
    fn schema() -> RefOr<Schema> {
        let stages = Stages::default().named().into_iter();
        let object =
            ObjectBuilder::new().description(Some("Microseconds by stage; only the stages that it has got to"));
        stages.fold(object, |object, (name, _)| object.property(name, u64::schema())).build().into()
    }
}

impl ToSchema for StagesUs {}

/// vLLM's parameters of a finished prefill; members that are not named here are carried along (64 at most).
#[derive(ToSchema)]
#[schema(as = KvTransferParams)]
#[expect(dead_code, reason = "the parameters have their own parser, this is only their description")]
pub(in crate::http) struct KvTransferParamsJson {
    /// True: the receiver shall read the blocks
    do_remote_prefill: bool,
    /// False: nobody shall read the receiver's blocks
    do_remote_decode: bool,
    /// The prefill's logical block ids in prompt order, one list per KV-cache group; no id twice in a group
    #[schema(schema_with = block_lists)]
    remote_block_ids: Vec<Vec<u32>>,
    #[schema(min_length = 1, max_length = 512)]
    remote_engine_id: String,
    /// No comma, no control characters
    #[schema(min_length = 1, max_length = 512)]
    remote_request_id: String,
    #[schema(min_length = 1, max_length = 512, pattern = r"^[A-Za-z0-9._:%\[\]-]+$")]
    remote_host: String,
    #[schema(minimum = 1, maximum = 65535)]
    remote_port: u16,
    #[schema(minimum = 1, maximum = 65535)]
    tp_size: u16,
    /// 1 when it is missing
    #[schema(minimum = 1, maximum = 65535)]
    dcp_size: Option<u16>,
    /// 1 when it is missing
    #[schema(minimum = 1, maximum = 65535)]
    pp_size: Option<u16>,
    #[schema(minimum = 1)]
    remote_num_tokens: u64,
    /// `pull`, the default, is the only one that works
    transfer_mode: Option<String>,
    #[serde(flatten)]
    more: Map<String, Value>,
}
