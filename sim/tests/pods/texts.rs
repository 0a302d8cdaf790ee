//! The text is that of an unsplit run exactly when the KV is.

use serde_json::{Value, json};

use crate::rig::{events, loopback, pod, prompt, text, wait_for};

async fn pulled_texts_equal_computed_ones(shards: u16) {
    let flags = format!("--tensor-parallel-size {shards}");
    let seams = loopback();
    let (p, d) = (pod(&seams, &flags).await, pod(&seams, &flags).await);
    let reference = pod(&loopback(), &flags).await;
    for tokens in [1, 3, 4, 5, 8, 9, 200] {
        let prompt = prompt(tokens, tokens);
        let params = p.prefill(&prompt).await;
        let blocks = params["remote_block_ids"][0].as_array().unwrap().len();
        assert_eq!(u32::try_from(blocks).unwrap(), tokens.div_ceil(4), "{params}");
        assert_eq!(d.decode(&prompt, &params).await, reference.plain(&prompt).await, "{tokens} tokens");
    }
    assert_eq!(d.stats().transfers.get(), 7 * u64::from(shards));
    wait_for("P's blocks are free", || p.stats().pinned.get() == 0 && p.stats().used_blocks.get() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn pulled_texts_equal_computed_ones_with_one_shard() {
    pulled_texts_equal_computed_ones(1).await;
}

#[tokio::test(start_paused = true)]
async fn pulled_texts_equal_computed_ones_with_two_shards() {
    pulled_texts_equal_computed_ones(2).await;
}

#[tokio::test(start_paused = true)]
async fn a_cached_prefix_is_not_read_again_and_the_rest_is_the_end_of_the_list() {
    let seams = loopback();
    let (p, d) = (pod(&seams, "").await, pod(&seams, "").await);
    let reference = pod(&loopback(), "--prefix-caching off").await;
    let long: Vec<u32> = (0..30).collect();
    for tokens in [10, 16, 29, 30, 30] {
        let prompt = json!(long[..tokens]);
        let before = d.stats().transfer_descs.get();
        let params = p.prefill(&prompt).await;
        assert_eq!(d.decode(&prompt, &params).await, reference.plain(&prompt).await, "{tokens} tokens");
        let read = d.stats().transfer_descs.get() - before;
        let expected = match tokens {
            10 => 3, // nothing is cached
            16 => 2, // 2 full blocks are
            29 => 4, // 4 full blocks are
            _ => 1,  // 7 full blocks are, the last one is always read
        };
        assert_eq!(read, 2 * expected, "{tokens} tokens in 2 layers");
    }
    assert!(p.stats().prefix_hits.get() > 0);
}

#[tokio::test(start_paused = true)]
async fn every_rank_and_every_engine_of_a_seed_says_the_same_and_another_seed_something_else() {
    let seams = loopback();
    let many = pod(&seams, "--data-parallel-size 3").await;
    let other = pod(&seams, "--seed 1").await;
    let body = json!({"prompt": "the same words"});
    let mut texts = Vec::new();
    for rank in ["0", "1", "2"] {
        let (_, answer) = many.post("/v1/completions", &[("X-Data-Parallel-Rank", rank)], &body).await;
        texts.push(text(&answer));
    }
    assert_eq!(texts[0], texts[1]);
    assert_eq!(texts[0], texts[2]);
    assert_eq!(pod(&seams, "").await.plain(&body["prompt"]).await, texts[0]);
    assert_ne!(other.plain(&body["prompt"]).await, texts[0]);
}

#[tokio::test(start_paused = true)]
async fn zeroed_kv_gives_another_text_and_the_log_says_how_many_bytes_were_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log.jsonl");
    let seams = loopback();
    let p = pod(&seams, "").await;
    let d = pod(&seams, &format!("--request-log {}", log.display())).await;
    let prompt = prompt(5, 10);
    let good = p.plain(&prompt).await;
    let params = p.prefill(&prompt).await;
    let engine = &p.pod.engines()[0];
    let last = params["remote_block_ids"][0][2].as_u64().unwrap();
    engine.arena.overwrite(&[kv::ids::BlockId(u32::try_from(last).unwrap())], 0).unwrap();
    assert_ne!(d.decode(&prompt, &params).await, good);
    let line: Value = serde_json::from_str(std::fs::read_to_string(&log).unwrap().trim()).unwrap();
    assert_eq!(line["kind"], "decode");
    assert_eq!(line["outcome"], "ok");
    assert_eq!(line["reused_bytes"], 2 * engine.arena.geometry().page_bytes(), "one block in 2 layers");
    assert_eq!(line["remote_engine_id"], params["remote_engine_id"]);
    assert_eq!(line["remote_request_id"], params["remote_request_id"]);
}

#[tokio::test(start_paused = true)]
async fn a_longer_block_list_than_the_prompt_has_gives_another_text_as_in_vllm() {
    let seams = loopback();
    let (p, d) = (pod(&seams, "").await, pod(&seams, "").await);
    let prompt = prompt(5, 8);
    let body = json!({"prompt": prompt, "max_tokens": 6, "kv_transfer_params": {"do_remote_decode": true}});
    let (_, answer) = p.post("/v1/completions", &[], &body).await;
    let params = &answer["kv_transfer_params"];
    assert_eq!(params["remote_block_ids"][0].as_array().unwrap().len(), 4, "8 + 5 computed tokens");
    assert_ne!(d.decode(&prompt, params).await, p.plain(&prompt).await);
}

#[tokio::test(start_paused = true)]
async fn a_stream_says_what_a_whole_answer_says() {
    let seams = loopback();
    let (p, d) = (pod(&seams, "").await, pod(&seams, "").await);
    let prompt = prompt(1, 21);
    let params = p.prefill(&prompt).await;
    let options = json!({"include_usage": true});
    let body = json!({"prompt": prompt, "stream": true, "stream_options": options, "kv_transfer_params": params});
    let events = events(d.send("/v1/completions", &[], &body).await).await;
    let (last, chunks) = events.split_last().unwrap();
    assert_eq!(last, "[DONE]");
    let chunks: Vec<Value> = chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect();
    let (usage, tokens) = chunks.split_last().unwrap();
    let said: String = tokens.iter().map(text).collect();
    assert_eq!(said, p.plain(&prompt).await);
    assert_eq!(tokens.len(), 16);
    assert_eq!(tokens[15]["choices"][0]["finish_reason"], "length");
    assert_eq!(usage["usage"]["completion_tokens"], 16);
    assert_eq!(usage["usage"]["prompt_tokens"], 21);
}

#[tokio::test(start_paused = true)]
async fn a_chat_decodes_from_the_prefills_own_token_ids() {
    let seams = loopback();
    let (p, d) = (pod(&seams, "").await, pod(&seams, "").await);
    let messages = json!([{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello there"}]);
    let plain = json!({"messages": messages});
    let (_, whole) = p.post("/v1/chat/completions", &[], &plain).await;
    let content = whole["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");

    let body = json!({"messages": messages, "max_completion_tokens": 1, "return_token_ids": true,
        "kv_transfer_params": {"do_remote_decode": true}});
    let (_, prefill) = p.post("/v1/chat/completions", &[], &body).await;
    let mut params = prefill["kv_transfer_params"].clone();
    params["prompt_token_ids"] = prefill["prompt_token_ids"].clone();
    let other_date = json!([{"role": "user", "content": "a template that says something else"}]);
    let body = json!({"messages": other_date, "stream": true, "kv_transfer_params": params});
    let events = events(d.send("/v1/chat/completions", &[], &body).await).await;
    let chunks: Vec<Value> = events.iter().filter_map(|event| serde_json::from_str(event).ok()).collect();
    let said: String = chunks.iter().map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().unwrap()).collect();
    assert_eq!(said, content);
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
}

#[tokio::test(start_paused = true)]
async fn several_prompts_several_texts_and_echo() {
    let pod = pod(&loopback(), "").await;
    let body = json!({"prompt": ["ab", "cd"], "n": 2, "echo": true, "max_tokens": 3});
    let (status, answer) = pod.post("/v1/completions", &[], &body).await;
    assert_eq!(status, 200, "{answer}");
    let choices = answer["choices"].as_array().unwrap();
    let texts: Vec<&str> = choices.iter().map(|choice| choice["text"].as_str().unwrap()).collect();
    assert!(texts[0].starts_with("ab ") && texts[1].starts_with("ab ") && texts[2].starts_with("cd "), "{texts:?}");
    assert_ne!(texts[0], texts[1]);
    let (_, one) = pod.post("/v1/completions", &[], &json!({"prompt": "ab", "max_tokens": 3, "echo": true})).await;
    assert_eq!(text(&one), texts[0], "the first of several is the only one of one");
    assert_eq!(answer["usage"]["completion_tokens"], 12);
}
