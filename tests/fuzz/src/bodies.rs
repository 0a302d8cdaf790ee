//! Clients' request bodies and the edits of them; engines' answers.

use bytes::Bytes;
use serde_json::Value;
use vllm_wire::body::{
    Endpoint, RequestBody, merged_answer, merged_usage_chunk, prefill_answer, prompt_part, without_params,
};
use vllm_wire::openai::{error_in, is_announcement};

use crate::memory::Bound;

/// A body is scanned, not built; the members of its top level are.
const SCANNED: Bound = Bound { base: 64 << 10, each: 200 };
const PARAMS: &str = "kv_transfer_params";
const ENDPOINTS: [Endpoint; 4] = [Endpoint::Completions, Endpoint::Chat, Endpoint::Responses, Endpoint::Messages];

/// A request: the first byte says to which endpoint, the rest is its body.
pub fn bodies(data: &[u8]) {
    let Some((first, body)) = data.split_first() else { return };
    let endpoint = ENDPOINTS.into_iter().cycle().nth(usize::from(*first)).unwrap_or(Endpoint::Chat);
    let body = Bytes::copy_from_slice(body);
    if let Ok(pieces) = SCANNED.holds_for(body.len(), || without_params(&body)) {
        without(&body, &pieces.concat());
    }
    let Ok(read) = SCANNED.holds_for(body.len(), || RequestBody::read(endpoint, body.clone())) else { return };
    let decode = read.for_decode(None).concat();
    without(&body, &decode);
    let again = RequestBody::read(endpoint, decode.clone()).expect("what an engine gets is a body");
    assert_eq!(again.for_decode(None).concat(), decode, "there is nothing left to edit");
    let prefill = read.for_prefill().concat();
    // It has a few members more, perhaps too many for us.
    if let Ok(prefilled) = RequestBody::read(endpoint, prefill.clone()) {
        assert!(!prefilled.inspected().stream, "a prefill is not streamed");
    }
    if let Ok(Value::Object(prefill)) = serde_json::from_slice::<Value>(&prefill) {
        assert_eq!(prefill.get(PARAMS).and_then(|params| params.get("do_remote_decode")), Some(&Value::Bool(true)));
    }
    drop((read.model(), read.estimated_prompt_tokens(), read.bytes_beside_prompts()));
    // Each repeats all that is not a prompt: servers bound their number and their bytes.
    if read.prompts() <= 8 {
        for one in read.each_prompt().into_iter().flatten() {
            assert_eq!(one.prompts(), 1);
        }
    }
}

/// The same but for a client's transfer parameters, however they are spelt.
fn without(original: &[u8], edited: &[u8]) {
    let Ok(original) = serde_json::from_slice::<Value>(original) else { return };
    let mut expected = original;
    if let Some(members) = expected.as_object_mut() {
        members.remove(PARAMS);
    }
    let edited: Value = serde_json::from_slice(edited).expect("the edited body is JSON where the original is");
    assert_eq!(edited, expected);
}

/// What engines answer: a prefill's whole, and the parts of answers to several prompts.
pub fn answers(data: &[u8]) {
    let body = Bytes::copy_from_slice(data);
    drop(SCANNED.holds_for(data.len(), || prefill_answer(&body)));
    drop((error_in(data), is_announcement(data)));
    drop(SCANNED.holds_for(data.len(), || merged_usage_chunk(data, &[])));
    let part = SCANNED.holds_for(data.len(), || prompt_part(data, 3, Some("\"id\"")));
    if let (Ok(part), Ok(_)) = (part, serde_json::from_slice::<Value>(data)) {
        let json: Value = serde_json::from_slice(&part.body).expect("a part is JSON where the original is");
        assert_eq!(part.has_choices, choices(&json) > 0);
    }
    let merged = SCANNED.holds_for(2 * data.len(), || merged_answer(&[body.clone(), body]));
    if let (Ok(merged), Ok(one)) = (merged, serde_json::from_slice::<Value>(data)) {
        let merged: Value = serde_json::from_slice(&merged).expect("several answers are JSON where each is");
        assert_eq!(choices(&merged), 2 * choices(&one));
    }
}

fn choices(answer: &Value) -> usize {
    answer.get("choices").and_then(Value::as_array).map_or(0, Vec::len)
}
