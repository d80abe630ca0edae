//! The status page used by the keyboard alone, in a real browser: headless Chromium, whose keys are pressed by way of the
//! pipes that it takes orders on (its DevTools protocol, `--remote-debugging-pipe`). What it shows is compared with what
//! happens to the nodes meanwhile: who waits for a lock, who is behind, what was slow.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::status_page::{chromium, prepare};
use crate::cli_support::{Sandbox, run, skipped};

const PATIENCE: Duration = Duration::from_secs(30);

/// A browser with one page.
struct Browser {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    number: u64,
    session: String,
}

impl Browser {
    fn open(sandbox: &Sandbox, program: &Path, page: &str) -> Browser {
        let mut command = Command::new("sh");
        // It reads orders from descriptor 3 and answers on 4.
        command.args(["-c", "exec \"$@\" 3<&0 4>&1", "sh"]).arg(program);
        command.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]);
        command.args([
            "--disable-background-networking",
            "--window-size=1280,1750",
            "--remote-debugging-pipe",
        ]);
        command.arg(format!("--user-data-dir={}", sandbox.path("browser").display()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the browser starts");
        let orders = child.stdin.take().expect("piped");
        let answers = BufReader::new(child.stdout.take().expect("piped"));
        let mut browser = Browser { child, orders, answers, number: 0, session: String::new() };
        let target = browser.order("Target.createTarget", &json!({ "url": page }))["targetId"].clone();
        let attached =
            browser.order("Target.attachToTarget", &json!({ "targetId": target, "flatten": true }));
        browser.session = attached["sessionId"].as_str().expect("it is attached").to_owned();
        browser.order("Emulation.setFocusEmulationEnabled", &json!({ "enabled": true }));
        browser
    }

    /// Gives an order and returns what it came to.
    fn order(&mut self, method: &str, parameters: &Value) -> Value {
        self.number += 1;
        let mut order = json!({ "id": self.number, "method": method, "params": parameters });
        if !self.session.is_empty() {
            order["sessionId"] = json!(self.session);
        }
        let order = format!("{order}\0");
        self.orders.write_all(order.as_bytes()).expect("it reads orders");
        loop {
            let mut bytes = Vec::new();
            self.answers.read_until(0, &mut bytes).expect("it answers");
            assert_eq!(bytes.pop(), Some(0), "the browser has ended");
            let mut answer: Value = serde_json::from_slice(&bytes).expect("JSON");
            // The others are events.
            if answer["id"] == self.number {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].take();
            }
        }
    }

    /// What an expression of the page's own language comes to, in text.
    fn sees(&mut self, expression: &str) -> String {
        let seen = self.order("Runtime.evaluate", &json!({ "expression": format!("String({expression})") }));
        seen["result"]["value"].as_str().unwrap_or_else(|| panic!("{expression}: {seen}")).to_owned()
    }

    fn text(&mut self, id: &str) -> String {
        self.sees(&format!("document.getElementById({id:?})?.textContent ?? ''"))
    }

    /// Waits until the text of an element is as it should be.
    #[track_caller]
    fn shows(&mut self, id: &str, is_right: impl Fn(&str) -> bool) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let text = self.text(id);
            if is_right(&text) {
                return text;
            }
            assert!(Instant::now() < until, "#{id} still shows {text:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Presses a key and lets it go.
    fn press(&mut self, key: &str) {
        let code = match key {
            "Tab" => 9,
            "Enter" => 13,
            "End" => 35,
            "Home" => 36,
            "ArrowLeft" => 37,
            "ArrowRight" => 39,
            other => panic!("{other} is not known here"),
        };
        let mut event =
            json!({ "type": "rawKeyDown", "key": key, "code": key, "windowsVirtualKeyCode": code });
        if key == "Enter" {
            event["type"] = json!("keyDown");
            event["text"] = json!("\r");
        }
        self.order("Input.dispatchKeyEvent", &event);
        event["type"] = json!("keyUp");
        self.order("Input.dispatchKeyEvent", &event);
    }

    fn focus(&mut self) -> String {
        self.sees("document.activeElement.id")
    }

    fn polls(&mut self) -> u64 {
        self.sees("document.body.dataset.polls || 0").parse().expect("a number")
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_keyboard_alone_reaches_everything_and_what_happens_is_shown() {
    let Some(program) = chromium() else {
        skipped("there is no Chromium; no keys of the status page were pressed");
        return;
    };
    let page = prepare();
    let mut browser = Browser::open(&page.sandbox, &program, &format!("http://{}/", page.http));
    browser.shows("ring-note", |text| text.contains("16 of 16 have a leader"));

    // The tabulator goes to all there is to use or to scroll, in the order of the page.
    browser.press("Tab");
    assert_eq!(browser.focus(), "pause");
    browser.press("Enter");
    assert_eq!(browser.text("pause"), "Go on");
    // What it had asked for before has come.
    let (mut polls, mut since, until) = (browser.polls(), Instant::now(), Instant::now() + PATIENCE);
    while since.elapsed() < Duration::from_millis(1_500) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(50));
        let now = browser.polls();
        if now != polls {
            (polls, since) = (now, Instant::now());
        }
    }
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(browser.polls(), polls, "it asks although it is paused");
    browser.press("Enter");
    assert_eq!(browser.text("pause"), "Pause");
    let mut places = Vec::new();
    for _ in 0..7 {
        browser.press("Tab");
        places.push(browser.focus());
    }
    assert_eq!(places, ["ring", "members", "stages", "operations", "moves", "locks", "slow"]);

    // Arrows go around the ring.
    browser.sees("document.getElementById('ring').focus()");
    for (key, partition) in
        [("ArrowRight", 1), ("ArrowRight", 2), ("End", 16), ("ArrowRight", 1), ("ArrowLeft", 16)]
    {
        browser.press(key);
        let about = browser.text("about");
        assert!(about.starts_with(&format!("Partition {partition}: led by node ")), "{key}: {about}");
        assert_eq!(browser.sees("document.querySelectorAll('#ring .chosen').length"), "1");
    }

    // Somebody waits for a lock, which another one has.
    let mut waits =
        page.command(&["lock", "acquire", "<b>printer</b>", "--owner", "cy <waits>", "--wait", "60"]);
    let mut waits = waits.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary starts");
    browser.shows("locks", |text| text.contains("ann & bo") && text.contains("cy <waits>"));

    // One node is paused, and is behind; so is another, and what is written meanwhile is slow.
    let behind = &page.nodes[0];
    behind.signal(Signal::STOP);
    let mut written = 0;
    let until = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < until, "nobody is shown as behind: {:?}", browser.text("about"));
        for number in 0..20 {
            run(page.command(&["-t", "dogs", "put", &format!("dog {number}"), "growl"])).ok();
            written += 1;
        }
        let seen = (0..16).any(|_| {
            browser.press("ArrowRight");
            browser.text("about").contains("node 3 ") && browser.text("about").contains(" behind")
        });
        if seen {
            break;
        }
    }
    assert!(written > 0);
    let is_slow = |text: &str| text.contains("insert") || text.contains("put");
    // They stand still for longer each time, if nothing that is slow was sent before they went on.
    for round in 1..=4 {
        page.nodes[1].signal(Signal::STOP);
        behind.signal(Signal::STOP);
        // Of so many keys some are of partitions that node 1, which serves the page, leads.
        let slow: Vec<Child> = (0..12)
            .map(|number| {
                let key = format!("slow dog {number}");
                let mut put = page.command(&["--timeout", "60", "-t", "dogs", "put", &key, "bark"]);
                put.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary starts")
            })
            .collect();
        std::thread::sleep(Duration::from_secs(2) * round);
        page.nodes[1].signal(Signal::CONT);
        behind.signal(Signal::CONT);
        for mut put in slow {
            put.wait().expect("it ends");
        }
        // The page asks every two seconds.
        let until = Instant::now() + Duration::from_secs(6);
        let mut shown = String::new();
        while !is_slow(&shown) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(100));
            shown = browser.text("slow");
        }
        if is_slow(&shown) {
            break;
        }
        assert!(round < 4, "#slow still shows {shown:?}");
    }

    let _ = waits.kill();
    let _ = waits.wait();
    drop(browser);
    for served in page.nodes {
        served.kill_nine();
    }
}
