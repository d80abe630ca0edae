//! The status page in a real browser: headless Chromium, in light and in dark, beside three nodes that work.
//!
//! Without Chromium (`apt-get install chromium`, or its path in `CHROMIUM`) there is nothing to be shown, and the
//! test says so loudly. Screenshots for people go to the directory in `DOGSLED_SCREENSHOTS`, if that is set.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::cli_support::http::{get, get_until};
use crate::cli_support::nodes::{Served, free_address};
use crate::cli_support::{Sandbox, run, skipped};
use serde_json::Value;

pub(crate) fn chromium() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("CHROMIUM") {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH")?;
    let mut places = std::env::split_paths(&path)
        .flat_map(|place| ["chromium", "chromium-browser", "google-chrome"].map(|name| place.join(name)));
    places.find(|place| place.exists())
}

/// Runs the browser on a page for so long of its own time; what it prints.
fn browse(sandbox: &Sandbox, browser: &PathBuf, arguments: &[String], page: &str) -> String {
    let mut command = Command::new(browser);
    // Its sandbox needs rights that containers do not give, and this page is our own.
    command.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]);
    command.args(["--disable-background-networking", "--enable-logging=stderr", "--window-size=1280,1750"]);
    command.arg("--virtual-time-budget=16000");
    command.arg(format!("--user-data-dir={}", sandbox.path("browser").display()));
    command.args(arguments).arg(page).stdin(Stdio::null());
    let output = command.output().expect("the browser starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    // What the page's own script, or its policy, complains about.
    for wrong in ["CONSOLE", "Content Security Policy", "Uncaught"] {
        let lines: Vec<&str> = said.lines().filter(|line| line.contains(wrong)).collect();
        assert!(lines.is_empty(), "{lines:?}");
    }
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Three nodes at work, and where the last one that was started serves the page.
pub(crate) struct Page {
    pub(crate) sandbox: Sandbox,
    pub(crate) http: String,
    /// Node 3, 2 and 1.
    pub(crate) nodes: Vec<Served>,
    addresses: Vec<String>,
}

impl Page {
    /// A command against the cluster.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let connect = ["--certs", "certs", "--connect", &self.addresses[0]];
        self.sandbox.bare(&[&connect[..], arguments].concat())
    }
}

pub(crate) fn prepare() -> Page {
    let sandbox = Sandbox::new();
    sandbox.certificates(&[1, 2, 3]);
    let addresses: Vec<String> = (0..3).map(|_| free_address()).collect();
    let members: Vec<String> =
        addresses.iter().enumerate().map(|(at, address)| format!("{}={address}", at + 1)).collect();
    let members = members.join(",");
    let mut nodes = Vec::new();
    let mut http = String::new();
    for node in [3, 2, 1] {
        let (id, data) = (node.to_string(), format!("data-{node}"));
        let mut command =
            sandbox.bare(&["serve", "--json", "--certs", "certs", "--node", &id, "--data", &data]);
        command.args(["--listen", &addresses[node - 1], "--members", &members, "--http", "127.0.0.1:0"]);
        command.args(["--cache", "16", "--zone", ["east", "west", "north"][node - 1]]);
        if node == 1 {
            command.args(["--init", "--partitions", "16"]);
        }
        let mut served = Served::start(command, &sandbox.path(&format!("log-{node}")));
        let told: Value = serde_json::from_str(&served.says("\"listening\"")).expect("JSON");
        http = told["http"].as_str().expect("an address").to_owned();
        nodes.push(served);
    }
    for served in &mut nodes {
        served.says("\"serving\"");
    }
    let page = Page { sandbox, http, nodes, addresses };
    let ask = |arguments: &[&str]| run(page.command(arguments));
    for number in 0..30 {
        ask(&["-t", "dogs", "put", &format!("dog {number}"), "bark"]).ok();
    }
    // A node's page has the commands of the partitions that it leads: this counts on until one is among them.
    for number in 0..200 {
        ask(&["counter", "add", &format!("visits {number}"), "3"]).ok();
        if get(&page.http, "/metrics.json").body.contains("counter_add_within") {
            break;
        }
        assert!(number < 199, "node 1 leads no partition, or does not tell of its commands");
    }
    ask(&["lock", "acquire", "<b>printer</b>", "--owner", "ann & bo", "--lease", "600"]).ok();
    get_until(&page.http, "/metrics.json", |answer| answer.body.contains("<b>printer</b>"));
    get_until(&page.http, "/status", |answer| answer.body.matches("\"answers\":true").count() == 3);
    page
}

#[test]
fn a_browser_shows_the_cluster_in_light_and_in_dark() {
    let Some(browser) = chromium() else {
        skipped("there is no Chromium; the status page was not looked at");
        return;
    };
    let Page { sandbox, http, nodes, .. } = prepare();
    let page = format!("http://{http}/");
    let shown = browse(&sandbox, &browser, &["--dump-dom".to_owned()], &page);
    let has = |part: &str| assert!(shown.contains(part), "{part:?} is not in\n{shown}");
    has("node 1</span>");
    has("badge good\" id=\"ready\" role=\"status\">ready<");
    has("16 of 16 have a leader");
    has("partitions</text>");
    // Names are text, whatever they look like.
    has("&lt;b&gt;printer&lt;/b&gt;");
    has("ann &amp; bo");
    assert!(!shown.contains("<b>printer"), "{shown}");
    has("insert</td>");
    has("counter_add_within</td>");
    has("Every partition is where it is to be.");
    has("<polyline class=\"line0\"");
    for node in ["node 1", "node 2", "node 3", "east", "west", "north"] {
        has(node);
    }
    // It goes on asking by itself, and got answers.
    let polls = shown.split("data-polls=\"").nth(1).and_then(|rest| rest.split('"').next());
    let polls: u32 = polls.and_then(|polls| polls.parse().ok()).expect("it has polled");
    assert!(polls >= 3, "{polls} polls");
    has("id=\"banner\" role=\"alert\" hidden");
    // Each partition is drawn, in the colour of its leader, and the ring can be reached by the keyboard.
    assert_eq!(shown.matches("class=\"of").count(), 16 + 3 + 3, "arcs, members and legend:\n{shown}");
    has("<svg id=\"ring\" viewBox=\"0 0 260 260\" tabindex=\"0\"");

    // 0 is dark and 1 is light to Chromium.
    let mut sizes = Vec::new();
    for (name, scheme) in [("light", 1), ("dark", 0)] {
        let picture = match std::env::var_os("DOGSLED_SCREENSHOTS") {
            Some(place) => PathBuf::from(place).join(format!("status-{name}.png")),
            None => sandbox.path(&format!("status-{name}.png")),
        };
        let arguments = [
            format!("--screenshot={}", picture.display()),
            format!("--blink-settings=preferredColorScheme={scheme}"),
        ];
        browse(&sandbox, &browser, &arguments, &page);
        let bytes = std::fs::read(&picture).expect("a screenshot");
        assert!(bytes.starts_with(b"\x89PNG") && bytes.len() > 20_000, "{} bytes", bytes.len());
        sizes.push(bytes);
    }
    assert_ne!(sizes[0], sizes[1], "light and dark look the same");
    for served in nodes {
        served.kill_nine();
    }
}
