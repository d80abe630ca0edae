//! `dogsled watch`: what happens, as it happens, and from where one was.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::cli_support::Sandbox;
use crate::cli_support::nodes::{Served, free_address};

#[test]
fn a_watch_tells_what_happens_and_goes_on_where_another_was() {
    let (sandbox, address) = (Sandbox::new(), free_address());
    let mut command = sandbox.bare(&["serve"]);
    command.env("DOGSLED_LISTEN", &address);
    let mut served = Served::start(command, &sandbox.path("log"));
    served.says("serving");
    let command = |arguments: &[&str]| -> Command {
        let mut command = sandbox.bare(&["--connect", &address]);
        command.args(arguments);
        command
    };
    let run = |arguments: &[&str]| crate::cli_support::run(command(arguments)).ok();
    run(&["put", "dog/0", "before"]);
    let mut watching = command(&["watch", "dog/", "--json"]).stdout(Stdio::piped()).spawn().expect("starts");
    let mut lines = BufReader::new(watching.stdout.take().expect("piped")).lines();
    // Until it is heard of, it may not have begun.
    let heard = std::thread::scope(|scope| {
        let first = scope.spawn(|| lines.next().expect("a line").expect("readable"));
        while !first.is_finished() {
            run(&["put", "dog/1", "Balto"]);
        }
        first.join().expect("no panic")
    });
    let first: serde_json::Value = serde_json::from_str(&heard).expect("JSON");
    assert_eq!((first["event"].as_str(), first["key"].as_str()), (Some("put"), Some("dog/1")));
    assert_eq!(first["value"], "Balto");
    watching.kill().expect("it runs");
    watching.wait().expect("it has ended");
    run(&["put", "cat/1", "Tom"]);
    run(&["put", "dog/2", "Togo"]);
    run(&["del", "dog/2"]);
    let position = first["position"].as_str().expect("a position");
    let mut again =
        command(&["watch", "dog/", "--after", position]).stdout(Stdio::piped()).spawn().expect("starts");
    let lines =
        BufReader::new(again.stdout.take().expect("piped")).lines().map(|line| line.expect("readable"));
    // It was written more than once before the watch was heard.
    let mut news = lines.filter(|line| line != "+\tdog/1\tBalto");
    assert_eq!([news.next(), news.next()].map(Option::unwrap), ["+\tdog/2\tTogo", "-\tdog/2"]);
    again.kill().expect("it runs");
    again.wait().expect("it has ended");
    let one = run(&["watch", "dog/", "--after", position, "--limit", "1"]);
    assert_eq!(one.lines().count(), 1);
    crate::cli_support::run(command(&["watch", "--after", "00"])).fails(2);
    sandbox.run(&["watch"]).fails_saying(2, &["--connect"]);
}
