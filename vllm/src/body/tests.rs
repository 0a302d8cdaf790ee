//! Bodies: kept bytes, edits that cannot be bypassed, and what is read from them.

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::params::{RawParams, TokenIds};

const PARAMS: &str = r#""kv_transfer_params":{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"remote_block_ids":null,"remote_host":null,"remote_port":null}"#;

fn text(bytes: Result<Vec<u8>, BodyError>) -> String {
    String::from_utf8(bytes.unwrap()).unwrap()
}

fn read(endpoint: Endpoint, body: &[u8]) -> Result<RequestBody, BodyError> {
    RequestBody::read(endpoint, Bytes::copy_from_slice(body))
}

fn inspect(endpoint: Endpoint, body: &[u8]) -> Result<Inspected, BodyError> {
    read(endpoint, body).map(|body| body.inspected().clone())
}

fn for_prefill(endpoint: Endpoint, body: &[u8]) -> Result<Vec<u8>, BodyError> {
    read(endpoint, body).map(|body| body.for_prefill().concat().into())
}

/// What an engine gets whichever way.
fn for_decode(body: &[u8], params: Option<&Value>) -> Result<Vec<u8>, BodyError> {
    let params = params.map(|params| RawParams::read(params.to_string().into()));
    let params = params.as_ref();
    let edited = read(Endpoint::Messages, body).map(|body| body.for_decode(params).concat().into())?;
    if params.is_none() {
        assert_eq!(without_params(&Bytes::copy_from_slice(body))?.concat(), edited);
    }
    Ok(edited)
}

fn prefill(endpoint: Endpoint, body: &str) -> String {
    text(for_prefill(endpoint, body.as_bytes()))
}

#[test]
fn a_prefill_body_keeps_every_byte_that_it_is_not_about() {
    let body = "\n{ \"model\" : \"m\",\t\"temperature\":1.0E-0, \"prompt\": \"h\\u00e9\u{e9}\" ,\"max_tokens\" : 64 ,\n \"seed\": 12345678901234567890123 }\n ";
    let expected = format!(
        "\n{{ \"model\" : \"m\",\t\"temperature\":1.0E-0, \"prompt\": \"h\\u00e9\u{e9}\" ,\"max_tokens\" : 1 ,\n \"seed\": 12345678901234567890123,\"stream\":false,{PARAMS} }}\n "
    );
    assert_eq!(prefill(Endpoint::Completions, body), expected);
}

#[test]
fn a_prefill_makes_one_token_and_nothing_else() {
    let body = r#"{"stream":true,"stream_options":{"include_usage":true},"prompt":"x","min_tokens":3,"n":1,"logprobs":2,"top_logprobs":1,"prompt_logprobs":null,"echo":true,"best_of":1,"response_format":{"type":"json_object"},"structured_outputs":{},"guided_json":{},"guided_regex":"a","return_token_ids":true,"ignore_eos":true}"#;
    let expected = format!(r#"{{"stream":false,"prompt":"x","n":1,"ignore_eos":true,"max_tokens":1,{PARAMS}}}"#);
    assert_eq!(prefill(Endpoint::Completions, body), expected);
}

#[test]
fn a_chat_uses_the_token_limit_that_it_has() {
    let image = r#""messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}]"#;
    let body = format!(r#"{{{image},"max_completion_tokens":9}}"#);
    let expected = format!(r#"{{{image},"max_completion_tokens":1,"stream":false,{PARAMS}}}"#);
    assert_eq!(prefill(Endpoint::Chat, &body), expected);
    let body = format!(r#"{{{image},"max_completion_tokens":null,"max_tokens":5}}"#);
    let expected = format!(r#"{{{image},"max_completion_tokens":1,"max_tokens":1,"stream":false,{PARAMS}}}"#);
    assert_eq!(prefill(Endpoint::Chat, &body), expected);
    let expected = format!(r#"{{{image},"max_tokens":1,"stream":false,{PARAMS}}}"#);
    assert_eq!(prefill(Endpoint::Chat, &format!("{{{image}}}")), expected);
}

#[test]
fn a_text_chat_is_asked_for_its_tokens() {
    for (messages, is_text) in [
        (r#"[{"role":"user","content":"hi"}]"#, true),
        (r#"[{"role":"user","content":[{"type":"text","text":"hi"}]},{"role":"assistant","content":null}]"#, true),
        (r#"[{"role":"assistant","tool_calls":[]}]"#, true),
        (r#"[{"role":"user","content":[{"type":"text","text":"a"},{"type":"input_audio"}]}]"#, false),
        (r#"[{"role":"user","content":"a","content":[{"type":"image_url"}]}]"#, false),
        (r#"[{"role":"user","content":[{"image_url":"x"}]}]"#, false),
        (r#"[{"role":"user","content":7}]"#, false),
        (r#"[]"#, false),
        (r#""hi""#, false),
    ] {
        let body = format!(r#"{{"messages":{messages},"return_token_ids":false}}"#);
        let edited: Value = serde_json::from_str(&prefill(Endpoint::Chat, &body)).unwrap();
        let asked = if is_text { json!(true) } else { Value::Null };
        assert_eq!(edited["return_token_ids"], asked, "{messages}");
        assert_eq!(inspect(Endpoint::Chat, body.as_bytes()).unwrap().text_only_chat, is_text, "{messages}");
    }
}

#[test]
fn a_decode_body_is_the_clients_with_our_parameters() {
    let params = json!({"do_remote_prefill": true, "remote_port": 7800});
    let ours = r#""kv_transfer_params":{"do_remote_prefill":true,"remote_port":7800}"#;
    let decode = |body: &str| text(for_decode(body.as_bytes(), Some(&params)));
    let plain = |body: &str| text(for_decode(body.as_bytes(), None));
    assert_eq!(decode(r#"{ "a" : 1.50 }"#), format!(r#"{{ "a" : 1.50,{ours} }}"#));
    assert_eq!(decode("{}"), format!("{{{ours}}}"));
    assert_eq!(decode(" { } "), format!(" {{{ours} }} "));
    assert_eq!(decode(r#"{"kv_transfer_params":null,"a":1}"#), format!(r#"{{{ours},"a":1}}"#));
    assert_eq!(plain(r#"{ "a" : 1.50 }"#), r#"{ "a" : 1.50 }"#);
    assert_eq!(plain(r#"{"kv_transfer_params":{"x":[1,{"y":"}"}]}, "a":1}"#), r#"{"a":1}"#);
    assert_eq!(plain(r#"{"a":1 , "kv_transfer_params":{} }"#), r#"{"a":1 }"#);
    assert_eq!(plain(r#"{ "kv_transfer_params":{} }"#), "{  }");
}

#[test]
fn neither_a_second_copy_nor_an_escaped_key_gets_past_an_edit() {
    let body = r#"{"kv_transfer_params":1,"a":2,"kv_transfer\u005fparams":{"evil":1},"\u006bv_transfer_params":3,"kv_transfer_params":4}"#;
    assert_eq!(text(for_decode(body.as_bytes(), None)), r#"{"a":2}"#);
    let ours = text(for_decode(body.as_bytes(), Some(&json!(7))));
    assert_eq!(ours, r#"{"kv_transfer_params":7,"a":2}"#);
    let tokens = r#"{"max_tokens":5,"max\u005ftokens":6,"prompt":"x","stre\u0061m":true}"#;
    let expected = format!(r#"{{"max_tokens":1,"prompt":"x","stre\u0061m":false,{PARAMS}}}"#);
    assert_eq!(prefill(Endpoint::Completions, tokens), expected);
    for smuggled in [
        r#"{"vllm_xargs":{"kv_transfer_params":"x"}}"#,
        r#"{"vllm\u005fxargs": {"a":1,"kv\u005ftransfer_params":[1]},"vllm_xargs":null}"#,
        r#"{"sampling_params":{"extra_args":{"kv_transfer_params":{"remote_host":"evil"}}}}"#,
        r#"{"sampling_params":{"extra\u005fargs":null,"extra_args":{"kv\u005ftransfer_params":1}},"sampling_params":1}"#,
    ] {
        assert!(matches!(for_decode(smuggled.as_bytes(), None), Err(BodyError::Forbidden(_))), "{smuggled}");
        assert!(matches!(inspect(Endpoint::Chat, smuggled.as_bytes()), Err(BodyError::Forbidden(_))));
        assert!(for_prefill(Endpoint::Completions, smuggled.as_bytes()).is_err());
    }
    assert!(for_decode(br#"{"vllm_xargs":{"a":"kv_transfer_params"}}"#, None).is_ok());
}

#[test]
fn what_is_no_json_object_is_named() {
    let refused = |body: &[u8]| for_decode(body, None).unwrap_err();
    for body in
        [&b""[..], b"{", b"{\"a\":}", b"{\"a\":1}}", b"{\"a\":1} x", b"{\"a\":NaN}", b"{'a':1}", b"{\"a\":1,}", b"[1"]
    {
        assert!(matches!(refused(body), BodyError::NotJson(_)), "{}", String::from_utf8_lossy(body));
    }
    for body in [&b"[]"[..], b"1", b"null", b" \"x\" "] {
        assert!(matches!(refused(body), BodyError::NotAnObject), "{}", String::from_utf8_lossy(body));
    }
    assert!(matches!(refused(b"{\"a\":\"\xff\"}"), BodyError::NotUtf8(_)));
    assert!(matches!(
        refused("{\"a\":1}".as_bytes().iter().flat_map(|b| [*b, 0]).collect::<Vec<_>>().as_slice()),
        BodyError::NotJson(_)
    ));
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(matches!(refused(deep.as_bytes()), BodyError::TooDeep));
    let brackets_in_text = format!("{{\"a\":\"\\\"{}\"}}", "[".repeat(1000));
    for_decode(brackets_in_text.as_bytes(), None).unwrap();
    assert!(matches!(refused(&vec![b' '; MAX_BODY + 1]), BodyError::TooLarge(_)));
    let members = |count: usize| format!("{{{}}}", vec!["\"\":0"; count].join(","));
    for_decode(members(MAX_MEMBERS).as_bytes(), None).unwrap();
    assert!(matches!(refused(members(MAX_MEMBERS + 1).as_bytes()), BodyError::TooManyMembers(_)));
    // A lone surrogate is valid for Python and names nothing that we look for.
    for_decode(br#"{"\ud800":1}"#, None).unwrap();
}

#[test]
fn every_api_has_its_own_names() {
    let body = r#"{"max_output_tokens":99,"request_id":"a,b","text":{"format":{"type":"text"}},"top_logprobs":3,"stream":true,"input":"x"}"#;
    let expected = format!(
        r#"{{"max_output_tokens":1,"text":{{"format":{{"type":"text"}}}},"stream":false,"input":"x",{PARAMS},"store":false}}"#
    );
    assert_eq!(prefill(Endpoint::Responses, body), expected);
    let body = r#"{"max_tokens":99,"stream":true,"thinking":{"budget_tokens":50},"system":"s"}"#;
    let expected =
        format!(r#"{{"max_tokens":1,"stream":false,"thinking":{{"budget_tokens":50}},"system":"s",{PARAMS}}}"#);
    assert_eq!(prefill(Endpoint::Messages, body), expected);
    // What a chat template may put into the prompt stays; what only constrains the answer goes.
    let body = r#"{"messages":[],"response_format":{"type":"json_object"},"structured_outputs":{},"logprobs":true,"logprob_token_ids":[1]}"#;
    let expected = format!(
        r#"{{"messages":[],"response_format":{{"type":"json_object"}},"max_tokens":1,"stream":false,{PARAMS}}}"#
    );
    assert_eq!(prefill(Endpoint::Chat, body), expected);
}

#[test]
fn several_prompts_are_told_apart() {
    let body = r#"{ "prompt" : [ "a,b" , "\"]c"] ,"n":1, "x":0.10 }"#;
    let read = read(Endpoint::Completions, body.as_bytes()).unwrap();
    assert_eq!(read.prompts(), 2);
    let each: Vec<_> =
        read.each_prompt().unwrap().iter().map(|one| String::from_utf8_lossy(one.bytes()).into_owned()).collect();
    assert_eq!(each, [r#"{ "prompt" : "a,b" ,"n":1, "x":0.10 }"#, r#"{ "prompt" : "\"]c" ,"n":1, "x":0.10 }"#]);
    let ids = self::read(Endpoint::Completions, br#"{"prompt":[[1,2],[3]],"prompt":[[4, 5],[6],[7]]}"#).unwrap();
    let each: Vec<_> =
        ids.each_prompt().unwrap().iter().map(|one| String::from_utf8_lossy(one.bytes()).into_owned()).collect();
    assert_eq!(each, [r#"{"prompt":[4, 5]}"#, r#"{"prompt":[6]}"#, r#"{"prompt":[7]}"#]);
    assert_eq!(ids.bytes_beside_prompts(), r#"{"prompt":[[1,2],[3]],"prompt":[,,]}"#.len());
    let odd = self::read(Endpoint::Completions, br#"{"prompt":["a",{}]}"#).unwrap();
    assert!(odd.each_prompt().is_err());
}

#[test]
fn a_prompts_length_is_estimated() {
    for (endpoint, body, expected) in [
        (Endpoint::Completions, r#"{"prompt":[1,22,333]}"#, 3),
        (Endpoint::Completions, r#"{"prompt":"12345678901234567890"}"#, 5),
        (Endpoint::Chat, r#"{"messages":[{"role":"user","content":"hello"}],"model":"m"}"#, 8),
        (Endpoint::Completions, "{}", 0),
    ] {
        assert_eq!(read(endpoint, body.as_bytes()).unwrap().estimated_prompt_tokens(), expected, "{body}");
    }
}

#[test]
fn a_large_body_is_edited_without_a_copy() {
    let body = Bytes::from(format!(r#"{{"prompt":"{}","max_tokens":7,"stream":true}}"#, "x".repeat(100_000)));
    let read = RequestBody::read(Endpoint::Completions, body.clone()).unwrap();
    for pieces in [read.for_prefill(), read.for_decode(Some(&RawParams::read("{}".into())))] {
        let first = pieces.iter().next().unwrap();
        assert_eq!(first.as_ptr(), body.as_ptr());
        assert!(pieces.length() - first.len() < 1000);
        assert!(serde_json::from_slice::<Value>(&pieces.concat()).is_ok());
    }
}

#[test]
fn a_body_of_another_path_loses_transfer_parameters_whatever_it_is() {
    let without = |body: &str| {
        without_params(&Bytes::copy_from_slice(body.as_bytes())).map(|pieces| text(Ok(pieces.concat().into())))
    };
    assert_eq!(without(r#"{"input":[1.0],"kv_transfer_par\u0061ms":{}}"#).unwrap(), r#"{"input":[1.0]}"#);
    assert_eq!(without("\u{feff}{\"kv_transfer_params\":1,\"a\":2}").unwrap(), "\u{feff}{\"a\":2}");
    assert_eq!(without("[1]").unwrap(), "[1]");
    assert!(without(r#"{"a":NaN}"#).is_err());
    assert!(without(r#"{"vllm_xargs":{"kv_transfer_params":1}}"#).is_err());
}

#[test]
fn what_cannot_be_split_says_why() {
    use Endpoint::{Chat, Completions, Messages, Responses};
    let why = |endpoint, body: &str| inspect(endpoint, body.as_bytes()).unwrap().plain_because;
    for (endpoint, body, expected) in [
        (Completions, r#"{"prompt":"x"}"#, None),
        (Completions, r#"{"prompt":"x","n":1,"prompt_logprobs":null,"echo":false,"logprobs":3}"#, None),
        (Completions, r#"{"prompt":"x","n":2}"#, Some(PlainReason::SeveralChoices)),
        (Completions, r#"{"prompt":"x","n":1,"n":2}"#, Some(PlainReason::SeveralChoices)),
        (Completions, r#"{"prompt":"x","best_of":2}"#, Some(PlainReason::SeveralChoices)),
        (Completions, r#"{"prompt":["x"]}"#, None),
        (Completions, r#"{"prompt":[ 1,2,3]}"#, None),
        (Completions, r#"{"prompt":[[1],[2]]}"#, Some(PlainReason::SeveralPrompts)),
        (Completions, r#"{"prompt":["x","y"]}"#, Some(PlainReason::SeveralPrompts)),
        (Completions, r#"{"prompt":"x","prompt_logprobs":0}"#, Some(PlainReason::PromptLogprobs)),
        (Completions, r#"{"prompt":"x","echo":true}"#, None),
        (Completions, r#"{"prompt":"x","echo":true,"logprobs":0}"#, Some(PlainReason::EchoLogprobs)),
        (Completions, r#"{"prompt":"x","use_beam_search":true}"#, Some(PlainReason::BeamSearch)),
        (Completions, r#"{"prompt_embeds":"AA=="}"#, Some(PlainReason::PromptEmbeds)),
        (Chat, r#"{"messages":[],"logprobs":true}"#, None),
        (Chat, r#"{"messages":[],"n":3}"#, Some(PlainReason::SeveralChoices)),
        (Chat, r#"{"messages":[],"prompt_logprobs":1}"#, Some(PlainReason::PromptLogprobs)),
        (Responses, r#"{"input":"x","tools":[{"type":"function"}],"background":false}"#, None),
        (Responses, r#"{"input":"x","background":true}"#, Some(PlainReason::Background)),
        (Responses, r#"{"input":"x","previous_response_id":"r"}"#, Some(PlainReason::PreviousResponse)),
        (Responses, r#"{"input":"x","tools":[{"type":"web_search"}]}"#, Some(PlainReason::BuiltInTools)),
        (Messages, r#"{"messages":[],"max_tokens":3}"#, None),
    ] {
        assert_eq!(why(endpoint, body), expected, "{body}");
    }
}

#[test]
fn a_body_is_inspected_as_python_reads_it() {
    let body = br#"{"model":"a","model":"b\u0021","stream":false,"stream":true,"return_token_ids":true,"prompt":"x"}"#;
    let expected = Inspected {
        endpoint: Endpoint::Completions,
        stream: true,
        plain_because: None,
        text_only_chat: false,
        wants_token_ids: true,
        sketch: Sketch {
            prompt: 93..96,
            token_ids: None,
            max_tokens: None,
            session: None,
            scope: [Some(21..30), None, None, None],
        },
    };
    assert_eq!(inspect(Endpoint::Completions, body).unwrap(), expected);
    assert_eq!(read(Endpoint::Completions, body).unwrap().model().as_deref(), Some("b!"));
    for (body, named) in [
        (r#"{"model":7}"#, "model"),
        (r#"{"stream":"true"}"#, "stream"),
        (r#"{"stream":1}"#, "stream"),
        (r#"{"n":2.0}"#, "n"),
        (r#"{"n":"2"}"#, "n"),
        (r#"{"n":true}"#, "n"),
        (r#"{"model":7}"#, "model"),
        (r#"{"echo":"yes"}"#, "echo"),
        (r#"{"prompt":7}"#, "prompt"),
        (r#"{"prompt":{}}"#, "prompt"),
    ] {
        let error = inspect(Endpoint::Completions, body.as_bytes()).unwrap_err();
        assert!(matches!(error, BodyError::Field { field, .. } if field == named), "{body}: {error}");
    }
}

fn answer(extra: &str) -> String {
    let params = r#"{"do_remote_prefill":true,"do_remote_decode":false,"remote_block_ids":[[1,2]],"remote_engine_id":"e","remote_request_id":"r","remote_host":"h","remote_port":1,"tp_size":1,"remote_num_tokens":17,"x":1.0}"#;
    format!(r#"{{"id":7,"choices":"odd",{extra}"kv_transfer_params":{params}}}"#)
}

fn ids(answer: &PrefillAnswer) -> Option<Vec<u32>> {
    answer.prompt_token_ids.as_ref().map(TokenIds::to_vec)
}

#[test]
fn an_answer_is_read_for_its_parameters() {
    let read = prefill_answer(&answer("").into()).unwrap();
    assert_eq!((read.params.remote_num_tokens, read.prompt_token_ids, read.prompt_tokens), (17, None, None));
    assert!(read.raw_params.as_str().ends_with(r#""remote_num_tokens":17,"x":1.0}"#));
    let chat = answer(r#""prompt_token_ids":[1,2],"usage":{"prompt_tokens":2},"#);
    let read = prefill_answer(&chat.into()).unwrap();
    assert_eq!((ids(&read), read.prompt_tokens), (Some(vec![1, 2]), Some(2)));
    let completion = answer(r#""choices":[{"prompt_token_ids":[3]}],"#);
    assert_eq!(ids(&prefill_answer(&completion.into()).unwrap()), Some(vec![3]));
    for odd in [r#""prompt_token_ids":[-1],"#, r#""prompt_token_ids":"x","usage":7,"error":null,"#] {
        assert_eq!(prefill_answer(&answer(odd).into()).unwrap().prompt_token_ids, None);
    }
}

#[test]
fn an_answer_without_parameters_says_what_it_is() {
    let of = |body: &str| prefill_answer(&Bytes::copy_from_slice(body.as_bytes())).unwrap_err();
    assert!(matches!(of("<html>"), AnswerError::NotReadable(_)));
    assert!(matches!(of("[]"), AnswerError::NotReadable(BodyError::NotAnObject)));
    assert!(matches!(of("{}"), AnswerError::NoParams));
    assert!(matches!(of(r#"{"kv_transfer_params":null}"#), AnswerError::NoParams));
    assert!(matches!(of(r#"{"kv_transfer_params":[]}"#), AnswerError::Params(_)));
    assert!(matches!(of(&answer("").replace("[[1,2]]", "[[1,1]]")), AnswerError::Params(_)));
    let AnswerError::Engine(error) = of(r#"{"error":{"message":"no","type":"BadRequestError","code":400}}"#) else {
        panic!("an error object is an engine's error");
    };
    assert_eq!(error.to_string(), "BadRequestError (400): no");
}

fn member() -> impl Strategy<Value = (String, String)> {
    let key = prop_oneof![
        Just("kv_transfer_params".to_owned()),
        Just("kv_transfer\\u005fparams".to_owned()),
        Just("max_tokens".to_owned()),
        Just("n".to_owned()),
        "[a-c]{1,2}",
    ];
    let value = prop_oneof![
        Just("null".to_owned()),
        Just("{\"a\":[1,\"}\"]}".to_owned()),
        Just("\"\\\"{\"".to_owned()),
        any::<i32>().prop_map(|n| n.to_string()),
    ];
    let space = "[ \n\t]{0,2}";
    (key, value, space)
        .prop_map(|(key, value, space)| (format!("{space}\"{key}\"{space}:{space}"), format!("{value}{space}")))
}

proptest! {
    #[test]
    fn edits_mean_to_python_what_they_should(members in prop::collection::vec(member(), 0..6)) {
        let inner: Vec<_> = members.iter().map(|(key, value)| format!("{key}{value}")).collect();
        let body = format!("{{{}}}", inner.join(","));
        // serde_json's map keeps the last of equal keys, as Python does.
        let mut expected: Value = serde_json::from_str(&body).unwrap();
        let edited: Value = serde_json::from_slice(&for_decode(body.as_bytes(), Some(&json!({"x": 1}))).unwrap()).unwrap();
        expected["kv_transfer_params"] = json!({"x": 1});
        prop_assert_eq!(&edited, &expected);
        let stripped: Value = serde_json::from_slice(&for_decode(body.as_bytes(), None).unwrap()).unwrap();
        expected.as_object_mut().unwrap().shift_remove("kv_transfer_params");
        prop_assert_eq!(&stripped, &expected);
        let one: Value = serde_json::from_slice(&for_prefill(Endpoint::Messages, body.as_bytes()).unwrap()).unwrap();
        prop_assert_eq!(&one["max_tokens"], &json!(1));
        prop_assert!(one.get("n").is_none_or(|n| *n == json!(1)));
    }

    #[test]
    fn any_bytes_are_edited_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        for_decode(&bytes, None).ok();
        prefill_answer(&bytes.into()).ok();
    }

    #[test]
    fn damaged_bodies_are_edited_or_refused(at in any::<prop::sample::Index>(), byte: u8) {
        let mut body = br#"{"model":"m","messages":[{"role":"user","content":"x"}],"n":1,"kv_transfer_params":{}}"#.to_vec();
        let at = at.index(body.len());
        body[at] = byte;
        inspect(Endpoint::Chat, &body).ok();
        if let Ok(edited) = for_prefill(Endpoint::Chat, &body) {
            prop_assert!(serde_json::from_slice::<Value>(&edited).is_ok() || serde_json::from_slice::<Value>(&body).is_err());
        }
    }
}
