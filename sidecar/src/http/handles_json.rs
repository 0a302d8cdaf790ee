//! Block handles as JSON, page by page.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

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
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) struct Page {
    pub(super) offset: Option<usize>,
    pub(super) limit: Option<usize>,
    pub(super) block_offset: Option<usize>,
    pub(super) block_limit: Option<usize>,
}

/// Blocks that are held for a request.
#[derive(Debug, Serialize)]
pub(super) struct HandleJson {
    dp_rank: u16,
    remote_engine_id: String,
    remote_request_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    transfer_id: Option<String>,
    blocks: u32,
    block_ids: Option<IdsJson>,
    bytes: u64,
    lease_left_ms: u64,
    state: &'static str,
}

/// A page of block ids, per group in prompt order.
#[derive(Debug, Serialize)]
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
    let offset = page.block_offset.unwrap_or(0);
    let limit = page.block_limit.unwrap_or(IDS).min(MOST_IDS);
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

/// A page of handles, with the totals of every rank that was asked for; `unanswered` are those that did not say theirs in time.
pub(super) fn page(ranks: &[RankHandles], unanswered: &[u16], page: &Page) -> Value {
    let offset = page.offset.unwrap_or(0);
    let limit = page.limit.unwrap_or(HANDLES).min(MOST_HANDLES);
    let total: usize = ranks.iter().map(|rank| rank.handles.len()).sum();
    let all = ranks.iter().flat_map(|rank| &rank.handles);
    let shown: Vec<HandleJson> = all.skip(offset).take(limit).map(|handle| HandleJson::new(handle, page)).collect();
    let end = offset.saturating_add(shown.len());
    json!({
        "handles": shown,
        "total": total,
        "next_offset": (end < total && !shown.is_empty()).then_some(end),
        "ranks": ranks.iter().map(totals).collect::<Vec<_>>(),
        "unanswered_ranks": unanswered,
    })
}

fn totals(rank: &RankHandles) -> Value {
    let leaked = |handle: &&HandleSnapshot| handle.state == HandleState::Leaked;
    json!({
        "dp_rank": rank.dp_rank.0,
        "handles": rank.handles.len(),
        "leaked": rank.handles.iter().filter(leaked).count(),
        "blocks": rank.handles.iter().map(|handle| u64::from(handle.blocks)).sum::<u64>(),
        "bytes": rank.handles.iter().map(|handle| handle.bytes).sum::<u64>(),
        "staging": StagingJson::from(&rank.staging),
    })
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
        assert_eq!(part(9, usize::MAX), r#"{"offset":9,"groups":[[],[],[]]}"#);
    }
}
