//! Which problem documents an operation answers with.

use std::collections::BTreeMap;

use utoipa::IntoResponses;
use utoipa::openapi::schema::{AllOfBuilder, ArrayBuilder, ObjectBuilder, Type};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder, Schema};

use super::named;
use super::schemas::words;
use crate::model::Code;
use crate::problem::{Kind, MEDIA_TYPE};

/// Every operation may be asked without the token or on one connection too many, and may meet a defect of ours.
const ALWAYS: [Kind; 3] = [Kind::Of(Code::Unauthorized), Kind::TooManyConnections, Kind::Internal];
/// Every query and path may be wrong.
const ASKED: [Kind; 1] = [Kind::Of(Code::ParamsInvalid)];
/// Every body may be wrong.
const BODY: [Kind; 5] = [
    Kind::Of(Code::ParamsInvalid),
    Kind::RequestTimeout,
    Kind::Of(Code::TooLarge),
    Kind::TooManyBodies,
    Kind::UnsupportedMediaType,
];
const NOT_FOUND: [Kind; 1] = [Kind::Of(Code::NotFound)];
const RANK: [Kind; 1] = [Kind::Of(Code::RankUnknown)];
const NOT_READY: [Kind; 1] = [Kind::Of(Code::RankNotReady)];
const ENDING: [Kind; 1] = [Kind::Of(Code::ShuttingDown)];

/// What a transfer may end in.
const TRANSFER: [Kind; 13] = [
    Kind::Of(Code::AttemptConflict),
    Kind::Of(Code::Cancelled),
    Kind::Of(Code::RequestExceedsStaging),
    Kind::Of(Code::StagingFull),
    Kind::Of(Code::PeerNotAllowed),
    Kind::Of(Code::PeerUnreachable),
    Kind::Of(Code::PeerChanged),
    Kind::Of(Code::LeaseExpired),
    Kind::Of(Code::DigestMismatch),
    Kind::Of(Code::TransferFailed),
    Kind::Of(Code::Deadline),
    Kind::Of(Code::LayoutMismatch),
    Kind::Of(Code::VersionUnsupported),
];

/// What the taking of digests may end in.
const DIGEST: [Kind; 4] = [
    Kind::Of(Code::StagingFull),
    Kind::Of(Code::PeerChanged),
    Kind::Of(Code::TransferFailed),
    Kind::Of(Code::Deadline),
];

macro_rules! answers {
    ($($(#[$doc:meta])* $name:ident = $($kinds:expr),+;)+) => {$(
        $(#[$doc])*
        pub(in crate::http) struct $name;

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                let all: [&[Kind]; _] = [$(&$kinds),+];
                problems(&all.concat())
            }
        }
    )+};
}

answers! {
    /// Operations that take nothing.
    Always = ALWAYS;
    /// Operations with a query.
    Asked = ALWAYS, ASKED;
    /// Operations with a body.
    Sent = ALWAYS, BODY;
    /// One thing of many.
    One = ALWAYS, ASKED, NOT_FOUND;
    /// One rank.
    OneRank = ALWAYS, ASKED, RANK;
    /// `POST /v1/transfers`.
    Started = ALWAYS, BODY, RANK, NOT_READY, ENDING, TRANSFER;
    /// `POST /v1/transfers/{id}/claim`.
    Claimed = ALWAYS, ASKED, NOT_FOUND, [Kind::Of(Code::Cancelled)], ENDING;
    /// `DELETE /v1/transfers/{id}`.
    Finished = ALWAYS, ASKED, NOT_FOUND, ENDING;
    /// `POST /v1/finished-transfers`.
    FinishedAll = ALWAYS, BODY, ENDING;
    /// `POST /v1/handles`.
    Reported = ALWAYS, BODY, RANK, NOT_READY, ENDING;
    /// `DELETE /v1/handles/{remote_request_id}`.
    Released = ALWAYS, ASKED, RANK, NOT_READY, ENDING;
    /// `POST /v1/digests`.
    Digested = ALWAYS, BODY, NOT_READY, ENDING, DIGEST;
    /// `POST /v1/probe`.
    Probed = ALWAYS, BODY, ENDING, [Kind::Of(Code::AttemptConflict), Kind::Of(Code::TransferFailed)];
    /// `GET /livez`, which needs no token.
    Alive = [Kind::NotAlive, Kind::Internal];
}

/// `GET /readyz`, which needs no token: its problem documents list the ranks.
pub(in crate::http) struct Ready;

impl IntoResponses for Ready {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let kinds = [Kind::Of(Code::RankNotReady), Kind::Of(Code::ShuttingDown), Kind::Internal];
        let ranks = ObjectBuilder::new().property("ranks", ArrayBuilder::new().items(named("BriefRankJson"))).build();
        by_status(&kinds, |kind| (kind != Kind::Internal).then(|| ranks.clone().into()))
    }
}

/// `GET /quietz`, which needs no token: the problem documents of an engine in use list the ranks.
pub(in crate::http) struct Quiet;

impl IntoResponses for Quiet {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let kinds = [
            Kind::EngineInUse,
            Kind::Of(Code::ShuttingDown),
            Kind::TooManyConnections,
            Kind::Of(Code::ParamsInvalid),
            Kind::Internal,
        ];
        let ranks = ObjectBuilder::new().property("ranks", ArrayBuilder::new().items(named("InUseJson"))).build();
        by_status(&kinds, |kind| (kind == Kind::EngineInUse).then(|| ranks.clone().into()))
    }
}

fn problems(kinds: &[Kind]) -> BTreeMap<String, RefOr<Response>> {
    by_status(kinds, |_| None)
}

/// One answer for each status, with the codes that it may have.
fn by_status(kinds: &[Kind], also: impl Fn(Kind) -> Option<RefOr<Schema>>) -> BTreeMap<String, RefOr<Response>> {
    let mut statuses: BTreeMap<u16, Vec<Kind>> = BTreeMap::new();
    for kind in kinds {
        let same = statuses.entry(kind.status().as_u16()).or_default();
        if !same.contains(kind) {
            same.push(*kind);
        }
    }
    let answer = |(status, kinds): (u16, Vec<Kind>)| {
        let mut schema = AllOfBuilder::new().item(problem()).item(narrowed(status, &kinds));
        if let Some(also) = kinds.first().and_then(|kind| also(*kind)) {
            schema = schema.item(also);
        }
        let titles: Vec<String> = kinds
            .iter()
            .map(|kind| format!("`{}` ({}): {}", kind.code(), kind.retry().as_str(), kind.title()))
            .collect();
        let content = ContentBuilder::new().schema(Some(Schema::from(schema))).build();
        let response = ResponseBuilder::new().description(titles.join("; ")).content(MEDIA_TYPE, content).build();
        (status.to_string(), RefOr::T(response))
    };
    statuses.into_iter().map(answer).collect()
}

fn problem() -> Ref {
    named("Problem")
}

/// What the members of a problem document are for these.
fn narrowed(status: u16, kinds: &[Kind]) -> Schema {
    let codes = words(kinds.iter().map(|kind| kind.code()));
    let status = ObjectBuilder::new().schema_type(Type::Integer).enum_values(Some([status]));
    ObjectBuilder::new().property("code", codes).property("status", status).build().into()
}
