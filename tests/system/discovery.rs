//! The router finds pods in Kubernetes: flags to workers, against a stand-in for the API that lists what it is told.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::process::{Running, wait_for};

/// Answers lists with `pods` (of the decode side only) and ends each watch at once, so that the next list is never far.
fn api(pods: &Arc<Mutex<Vec<&'static str>>>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let pods = Arc::clone(pods);
    // Ends with the test's process.
    std::thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            let pods = Arc::clone(&pods);
            std::thread::spawn(move || serve(&socket, &pods));
        }
    });
    port
}

fn serve(mut socket: &TcpStream, pods: &Mutex<Vec<&'static str>>) -> Option<()> {
    let mut reader = BufReader::new(socket);
    loop {
        let mut first = String::new();
        reader.read_line(&mut first).ok().filter(|read| *read > 0)?;
        let mut line = String::new();
        while reader.read_line(&mut line).ok()? > 2 {
            line.clear();
        }
        let decode = first.contains("labelSelector=llm-d.ai/role=decode,app=x");
        let item = |address: &&'static str| json!({ "metadata": { "uid": address, "name": address }, "status": { "phase": "Running", "podIP": address } });
        let items: Vec<Value> = if decode { pods.lock().iter().map(item).collect() } else { Vec::new() };
        let list = json!({ "metadata": { "resourceVersion": "1" }, "items": items }).to_string();
        let body = if first.contains("watch=true") { String::new() } else { list };
        write!(socket, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).ok()?;
    }
}

fn workers(router: &Running) -> Vec<String> {
    let (_, page) = router.request("GET", "/v1/workers", "");
    let word = |worker: &Value| format!("{} {} {}", worker["id"], worker["url"], worker["sidecar"]).replace('"', "");
    page["workers"].as_array().map(|all| all.iter().map(word).collect()).unwrap_or_default()
}

#[test]
fn pods_that_kubernetes_names_are_workers_until_it_names_them_no_more() {
    let pods = Arc::new(Mutex::new(vec!["127.0.0.2", "127.0.0.3"]));
    let port = api(&pods);
    let router = Running::start(&format!(
        "router --host 127.0.0.1 --port 0 --service-discovery --kubernetes-api http://127.0.0.1:{port} \
         --service-discovery-namespace ns --prefill-selector llm-d.ai/role=prefill \
         --decode-selector llm-d.ai/role=decode app=x --service-discovery-port 8000 --decode-discovery-port 8200"
    ));
    let worker = |n: usize, address: &str| format!("decode-{n}@0 http://{address}:8200@0 http://{address}:7700/");
    let both = vec![worker(0, "127.0.0.2"), worker(1, "127.0.0.3")];
    wait_for("both pods", || (workers(&router) == both).then_some(()));
    let (status, page) = router.request("GET", "/readyz", "");
    assert_eq!(status, 503, "neither has a sidecar: {page}");
    let of = |side: usize| (&page["discovery"][side]["pods"], &page["discovery"][side]["of"]);
    assert_eq!(of(1), (&json!(2), &json!("llm-d.ai/role=decode,app=x in ns")), "{page}");
    assert_eq!(of(0).0, &json!(0), "{page}");
    pods.lock().remove(0);
    let one = vec![worker(1, "127.0.0.3")];
    wait_for("the one that is left", || (workers(&router) == one).then_some(()));
}
