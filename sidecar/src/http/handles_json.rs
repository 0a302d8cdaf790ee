//! Block handles as JSON, page by page.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::http::openapi::schemas;
use crate::http::rank_json::StagingJson;
use crate::http::transfer_json::whole_ms;
use crate::model::{HandleSnapshot, HandleState, RankHandles};

/// Handles in one answer, unless asked for more or less.
const HANDLES: usize = 100;
/// The most handles in one answer.
const MOST_HANDLES: usize = 1000;
/// Block ids of each handle in one answer, unless asked for more or less.
const IDS: usize = 64;
/// The most block ids of each handle in one answer.
const MOST_IDS: usize = 65_536;

/// Which part is wanted.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Page {
    /// Handles to leave out from the start
    #[param(maximum = 4_294_967_295_i64)]
    pub(super) offset: Option<u32>,
    /// Handles in one answer: 100 unless asked for, never more than 1000
    #[param(maximum = 4_294_967_295_i64)]
    pub(super) limit: Option<u32>,
    /// Block ids of each handle to leave out from the start, counted through its groups
    #[param(maximum = 4_294_967_295_i64)]
    pub(super) block_offset: Option<u32>,
    /// Block ids of each handle in one answer: 64 unless asked for, never more than 65536
    #[param(maximum = 4_294_967_295_i64)]
    pub(super) block_limit: Option<u32>,
}

/// Blocks that are held for a request.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct HandleJson {
    dp_rank: u16,
    remote_engine_id: String,
    remote_request_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    transfer_id: Option<String>,
    blocks: u32,
    /// Null when they are not kept any more: a rank keeps half a million
    block_ids: Option<IdsJson>,
    bytes: u64,
    lease_left_ms: u64,
    #[schema(schema_with = schemas::handle_state)]
    state: &'static str,
}

/// A page of block ids, per group in prompt order.
#[derive(Debug, Serialize, ToSchema)]
struct IdsJson {
    offset: usize,
    groups: Vec<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_offset: Option<usize>,
}

impl HandleJson {
    /// A handle with the page of its block ids that is wanted.
    pub(super) fn new(handle: &HandleSnapshot, page: &Page) -> Self {
        Self {
            dp_rank: handle.dp_rank.0,
            remote_engine_id: handle.engine_id.as_str().to_owned(),
            remote_request_id: handle.request_id.as_str().to_owned(),
            transfer_id: handle.transfer.as_ref().map(|transfer| transfer.as_str().to_owned()),
            blocks: handle.blocks,
            block_ids: handle.block_ids.as_deref().map(|groups| ids(groups, page)),
            bytes: handle.bytes,
            lease_left_ms: whole_ms(handle.lease_left),
            state: handle.state.as_str(),
        }
    }
}

/// Counts through all groups.
fn ids(groups: &[Vec<u32>], page: &Page) -> IdsJson {
    let offset = asked(page.block_offset, 0);
    let limit = asked(page.block_limit, IDS).min(MOST_IDS);
    let end = offset.saturating_add(limit);
    let (mut at, mut shown) = (0_usize, Vec::with_capacity(groups.len()));
    for group in groups {
        let from = offset.saturating_sub(at);
        let to = end.saturating_sub(at);
        shown.push(group.iter().take(to).skip(from).copied().collect());
        at = at.saturating_add(group.len());
    }
    IdsJson { offset, groups: shown, next_offset: (end < at).then_some(end) }
}

/// What was asked for, or what is told otherwise.
fn asked(number: Option<u32>, otherwise: usize) -> usize {
    number.map_or(otherwise, |number| usize::try_from(number).unwrap_or(usize::MAX))
}

/// A page of handles, with the totals of every rank that was asked for.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct HandlesJson {
    handles: Vec<HandleJson>,
    /// Handles of all pages
    total: usize,
    /// Where the next page starts; null on the last
    next_offset: Option<usize>,
    ranks: Vec<HeldJson>,
    /// Ranks that did not say theirs in time
    unanswered_ranks: Vec<u16>,
}

/// What one rank holds. A handle that is being filled has its slots in use from the start.
#[derive(Debug, Serialize, ToSchema)]
struct HeldJson {
    dp_rank: u16,
    handles: usize,
    leaked: usize,
    blocks: u64,
    bytes: u64,
    staging: StagingJson,
}

impl HandlesJson {
    /// `unanswered` are the ranks that did not say theirs in time.
    pub(super) fn new(ranks: &[RankHandles], unanswered: Vec<u16>, page: &Page) -> Self {
        let offset = asked(page.offset, 0);
        let limit = asked(page.limit, HANDLES).min(MOST_HANDLES);
        let total: usize = ranks.iter().map(|rank| rank.handles.len()).sum();
        let all = ranks.iter().flat_map(|rank| &rank.handles);
        let handles: Vec<HandleJson> =
            all.skip(offset).take(limit).map(|handle| HandleJson::new(handle, page)).collect();
        let end = offset.saturating_add(handles.len());
        Self {
            next_offset: (end < total && !handles.is_empty()).then_some(end),
            handles,
            total,
            ranks: ranks.iter().map(HeldJson::from).collect(),
            unanswered_ranks: unanswered,
        }
    }
}

impl From<&RankHandles> for HeldJson {
    fn from(rank: &RankHandles) -> Self {
        Self {
            dp_rank: rank.dp_rank.0,
            handles: rank.handles.len(),
            leaked: rank.handles.iter().filter(|handle| handle.state == HandleState::Leaked).count(),
            blocks: rank.handles.iter().map(|handle| u64::from(handle.blocks)).sum(),
            bytes: rank.handles.iter().map(|handle| handle.bytes).sum(),
            staging: StagingJson::from(&rank.staging),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_paged_through_all_groups() {
        let groups = [vec![1, 2, 3], vec![], vec![4, 5]];
        let part = |offset, limit| {
            let page = Page { block_offset: Some(offset), block_limit: Some(limit), ..Page::default() };
            serde_json::to_string(&ids(&groups, &page)).unwrap()
        };
        assert_eq!(part(0, 5), r#"{"offset":0,"groups":[[1,2,3],[],[4,5]]}"#);
        assert_eq!(part(2, 2), r#"{"offset":2,"groups":[[3],[],[4]],"next_offset":4}"#);
        assert_eq!(part(4, 2), r#"{"offset":4,"groups":[[],[],[5]]}"#);
        assert_eq!(part(9, u32::MAX), r#"{"offset":9,"groups":[[],[],[]]}"#);
    }
}
