//! Client libraries that others wrote, unmodified.

use crate::harness::{Start, command, python, repository, run, stdout};

fn script(name: &str) -> std::path::PathBuf {
    repository().join("crates/flux/tests/e2e/python").join(name)
}

fn python_library(library: &str) {
    let Some(python) = python(library) else {
        return;
    };
    for shards in ["1", "4"] {
        let process = Start::node().args(&["--shards", shards]).ready();
        let mut command = command(&python);
        command.arg(script("redis_py.py")).arg(library);
        command.args([&process.resp().port().to_string(), shards]);
        assert_eq!(stdout(&run(&mut command, b"")), "passed\n");
    }
}

#[test]
fn redis_py_works_with_pipelines_transactions_and_both_protocols() {
    python_library("redis");
}

#[test]
fn valkey_py_works_with_pipelines_transactions_and_both_protocols() {
    python_library("valkey");
}

#[test]
fn a_python_client_generated_from_our_idl_speaks_both_services() {
    let Some(python) = python("grpcio") else {
        return;
    };
    let process = Start::node().ready();
    let mut command = command(&python);
    command
        .arg(script("grpc_client.py"))
        .arg(repository().join("crates/proto/proto"));
    command.arg(
        process
            .addresses()
            .grpc
            .expect("a node speaks gRPC")
            .to_string(),
    );
    assert!(stdout(&run(&mut command, b"")).ends_with("passed\n"));
}
